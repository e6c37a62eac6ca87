"""Print how long BLAS's own threads work while each verb does: ``python -m tests.models.blas_of_verbs FOLDER``."""

import json
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lowrank_core import models

SHAPES = {"q_proj": (400, 600), "up_proj": (600, 400)}
NAMES = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in SHAPES.items()}
RANK = 64


def blas_nanoseconds():
    """Return the processor time of all threads but those that Python started: of BLAS's."""
    own = {str(thread.native_id) for thread in threading.enumerate()}
    others = [task for task in Path("/proc/self/task").iterdir() if task.name not in own]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in others)


def write_checkpoints(folder, rng):
    weights = {f"{name}.weight": rng.standard_normal(shape, dtype=np.float32) for name, shape in NAMES.items()}
    tuned = {key: weight + 0.1 * rng.standard_normal(weight.shape, dtype=np.float32) for key, weight in weights.items()}
    for name, stored in (("base", weights), ("tuned", tuned)):
        save_file({key: weight.astype(ml_dtypes.bfloat16) for key, weight in stored.items()}, folder / name)


def write_adapter(folder, rng):
    sides = {name: {"A": (RANK, n), "B": (m, RANK)} for name, (m, n) in NAMES.items()}
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": rng.standard_normal(shape, dtype=np.float32) / 100
        for name, shapes in sides.items()
        for side, shape in shapes.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(SHAPES)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def verbs_in(folder):
    """Return a call of every verb on the files of a folder."""
    base, tuned, one, two = (folder / name for name in ("base", "tuned", "one", "two"))
    return {
        "inspect": lambda: models.inspect(tuned, base),
        "inspect, of an adapter": lambda: models.inspect(one),
        "extract": lambda: models.extract(base, tuned, folder / "extracted", rank=16),
        "extract, above noise": lambda: models.extract(base, tuned, folder / "above", rank=models.AboveNoise()),
        "resize": lambda: models.resize(one, folder / "resized", rank=8),
        "merge": lambda: models.merge([one, two], folder / "merged", rank=16),
        "convert": lambda: models.convert(one, folder / "converted.safetensors"),
        "plan": lambda: models.plan(one, budget=models.Budget(parameters=20_000)),
        "apply": lambda: models.apply(base, one, folder / "applied.safetensors"),
        "verify": lambda: models.verify(base, one, folder / "applied.safetensors"),
        "census": lambda: models.census(folder),
    }


def main(folder):
    rng = np.random.default_rng(0)
    write_checkpoints(folder, rng)
    for name in ("one", "two"):
        write_adapter(folder / name, rng)
    square = rng.standard_normal((1000, 1000))
    # Load the other libraries that have a BLAS, Numba's among them: threads of one begin by waiting.
    models.inspect(folder / "one")
    models.inspect(folder / "tuned", folder / "base")
    spent = {}
    for name, call in (verbs_in(folder) | {"a product on all threads": lambda: square @ square}).items():
        before = blas_nanoseconds()
        call()
        spent[name] = blas_nanoseconds() - before
    print(json.dumps(spent))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
