"""Fuzz the readers of files: whatever the bytes, a reader answers or raises an error with a message.

    python .ci/fuzz.py [MINUTES]

atheris (`pip install -e '.[models]' --group fuzz`) guides the bytes by the branches of lowrank_core.models that they
reach; half of its changes are to entries of the JSON within, which remains valid. Any outcome but an answer, a
ValueError, a FileNotFoundError or the ImportError of a container's own package is a fault, and so is a warning, or an
answer that cannot be written as JSON: its bytes are kept, and `python .ci/fuzz.py FILE` runs them again. How many
inputs were tried is written to docs/numbers/fuzz.json.
"""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import records

# Between the parts of an input; the first byte says which kind of input they are.
CUT = b"\xff\xfe"
KINDS = ("adapter", "file", "checkpoints", "shards", "census")
# Names that a reader looks for, which random bytes would rarely contain.
WORDS = (
    "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".lora_bias",
    "lora_magnitude_vector", ".base_layer.", ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha",
    "dora_scale", "hada_w1_a", "lokr_w1", "__metadata__", "peft_type", "LORA", "lora_alpha", "use_rslora", "use_dora",
    "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters", "fan_in_fan_out", "init_lora_weights",
    "pissa", "weight_map", "model-00001-of-00002.safetensors", "shape", "dtype", "data_offsets", "BF16", "F16",
    "F8_E4M3", "I64", "BOOL", "NaN", "Infinity", "1e999", "null", "true", "9223372036854775807",
)  # fmt: skip
VALUES = (
    None, True, 0, 1, 2, -1, 2**63, 10**400, 0.5, 1e-320, 1e308, math.nan, math.inf, "", "(", ".*", "LORA", "pissa",
    [], [0], [2, 2], ["head"], [[]], {}, {"q": 2}, {"(": 1}, {"q": {}},
)  # fmt: skip


def main(minutes: float) -> int:
    """Run the fuzzer for some minutes in a process of its own, and write its record."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / str(number)).write_bytes(seed)
        words.write_text("".join(f'"{word}"\n' for word in WORDS), encoding="utf-8")
        options = [f"-max_total_time={minutes * 60:.0f}", "-max_len=4096", "-print_final_stats=1", f"-dict={words}"]
        # The first input compiles the kernels, so only one that takes minutes is at fault for its time.
        options += ["-timeout=300", "-report_slow_units=300"]
        command = [sys.executable, __file__, "--fuzz", str(corpus), *options, f"-artifact_prefix={records.ROOT}/fault-"]
        begun = time.monotonic()
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        taken = (time.monotonic() - begun) / 60
        log = run.stdout + run.stderr
    tried = re.search(r"number_of_executed_units: (\d+)", log)
    reached = re.findall(r"cov: (\d+)", log)
    if run.returncode or tried is None:
        print(log[-6000:])
        return 1
    result = {
        "inputs": int(tried[1]),
        "minutes": round(taken, 1),
        "branches reached": int(reached[-1]),
        "atheris": version("atheris"),
    }
    records.write("fuzz", result)
    print(result)
    return 0


def seeds() -> list[bytes]:
    """Return a valid input of each kind."""
    import numpy as np
    from ml_dtypes import bfloat16
    from safetensors.numpy import save

    def stored(tensors: dict[str, np.ndarray]) -> bytes:
        """Return the header without its length, and the data."""
        whole = save(tensors)
        end = 8 + int.from_bytes(whole[:8], "little")
        return whole[8:end] + CUT + whole[end:]

    A, B = np.eye(2, 3, dtype=np.float32), np.ones((4, 2), dtype=np.float32)
    peft = {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B.astype(bfloat16)}
    others = {
        "base_model.model.e.lora_embedding_A": A, "base_model.model.e.lora_embedding_B": B,
        "base_model.model.q.lora_magnitude_vector": A[0], "base_model.model.head.weight": B,
    }  # fmt: skip
    kernel = np.ones((2, 3, 3, 3), dtype=np.float16)
    convolution = {"base_model.model.c.lora_A.weight": kernel, "base_model.model.c.lora_B.weight": B[..., None, None]}
    kohya = {"u.lora_down.weight": A, "u.lora_up.weight": B, "u.alpha": np.array(1.0), "v.hada_w1_a": A}
    before, after = {"m.weight": A, "m.bias": A[0]}, {"m.weight": A + 1, "m.bias": A[1], "n.weight": B}
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
    patterns = {"rank_pattern": {"q": 2}, "alpha_pattern": {".*e": 4}, "use_rslora": True, "modules_to_save": ["head"]}
    configs = [json.dumps(config).encode() for config in (plain, plain | patterns)]
    index = json.dumps({"weight_map": dict.fromkeys(before, "model-00001-of-00002.safetensors")}).encode()
    row = json.dumps({"path": "a", "stamp": "b", "rank_for_variance": {"0.9": 2}, "ranks": [1]}).encode() + b"\n"
    parts = [
        (0, [configs[0], stored(peft)]),
        (0, [configs[1], stored(peft | others)]),
        (0, [configs[0], stored(convolution)]),
        (1, [stored(kohya)]),
        (1, [stored(peft)]),
        (2, [stored(before), stored(after)]),
        (3, [index, stored(before)]),
        (4, [row]),
    ]
    return [bytes([kind]) + CUT.join(content) for kind, content in parts]


def fuzz(arguments: list[str]) -> None:
    """Run atheris, which ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["lowrank_core.models"]):
        try_readers = readers()
    # A warning of NumPy is a number that the reader did not check.
    warnings.simplefilter("error")
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        atheris.Setup(
            [sys.argv[0], *arguments],
            lambda data: try_readers(data, Path(folder)),
            custom_mutator=lambda data, most, seed: changed(data, most, seed, atheris.Mutate),
        )
        atheris.Fuzz()


def changed(data: bytes, most: int, seed: int, bytewise: Callable[[bytes, int], bytes]) -> bytes:
    """Return an input changed in one place: a byte, or an entry of one of its JSON objects."""
    rng = random.Random(seed)
    parts = data[1:].split(CUT)
    objects = [number for number, part in enumerate(parts) if part.lstrip()[:1] == b"{"]
    if not objects or rng.random() < 0.5:
        return bytewise(data, most)
    number = rng.choice(objects)
    try:
        tree = json.loads(parts[number])
    except ValueError:
        return bytewise(data, most)
    change_entry(tree, rng)
    parts[number] = json.dumps(tree).encode()
    return (data[:1] + CUT.join(parts))[:most]


def change_entry(tree: dict[str, Any], rng: random.Random) -> None:
    """Rename, drop, replace or exchange entries of an object, or of one within it."""
    keys = list(tree)
    if not keys:
        return
    key, other = rng.choice(keys), rng.choice(keys)
    if isinstance(tree[key], dict) and rng.random() < 0.6:
        change_entry(tree[key], rng)
        return
    word = rng.choice(WORDS)
    change = rng.randrange(6)
    if change == 0:
        tree[key], tree[other] = tree[other], tree[key]
    elif change == 1:
        tree[rng.choice([word, key + word, word + key, key.replace("lora_A", "lora_B")])] = tree.pop(key)
    elif change == 2:
        del tree[key]
    elif change == 3:
        tree[word] = tree[key]
    elif change == 4 and isinstance(tree[key], list):
        tree[key] = rng.choice([tree[key][::-1], tree[key][1:], [*tree[key], 1], [rng.choice(VALUES), *tree[key]]])
    else:
        tree[key] = rng.choice([*VALUES, word])


def readers() -> Callable[[bytes, Path], None]:
    """Import the readers, and return a function that tries one input on them."""
    from lowrank_core.models import inspect, open_adapter, open_checkpoint, read_census, to_json
    from lowrank_core.models.inspection.census import adapter_row
    from lowrank_core.models.inspection.report import to_rows

    def read(kind: str, folder: Path) -> Any:
        if kind == "adapter":
            open_adapter(folder)
            return adapter_row(folder), inspect(folder, ranks=[1, 8])
        if kind == "file":
            return None, inspect(folder / "adapter_model.safetensors", ranks=[1, 8])
        if kind == "checkpoints":
            return None, inspect(folder / "tuned.safetensors", folder / "base.safetensors", ranks=[1, 8])
        if kind == "shards":
            open_checkpoint(folder)
            return None, None
        return next(iter(read_census(folder / "census.jsonl")), None), None

    def try_one(data: bytes, folder: Path) -> None:
        kind = KINDS[data[0] % len(KINDS)] if data else "census"
        for name, content in written(kind, data[1:]).items():
            (folder / name).write_bytes(content)
        try:
            row, report = read(kind, folder)
        except (ValueError, FileNotFoundError, ImportError) as error:
            if not str(error):
                raise RuntimeError("an error without a message") from error
        else:
            # JSON has neither NaN nor infinity.
            json.dumps(row and to_json(row), allow_nan=kind == "census")
            json.dumps(report and [to_json(report), to_rows(report)], allow_nan=False)
        finally:
            for file in folder.iterdir():
                file.unlink()

    return try_one


def written(kind: str, data: bytes) -> dict[str, bytes]:
    """Return the files that an input consists of, by name."""
    parts = [*data.split(CUT), b"", b"", b"", b""]

    def file(first: int) -> bytes:
        header, tensors = parts[first], parts[first + 1]
        return len(header).to_bytes(8, "little") + header + tensors

    return {
        "adapter": lambda: {"adapter_config.json": parts[0], "adapter_model.safetensors": file(1)},
        # Unchanged where there is one part alone: a wrong length, a truncated file.
        "file": lambda: {"adapter_model.safetensors": file(0) if parts[1] else data},
        "checkpoints": lambda: {"base.safetensors": file(0), "tuned.safetensors": file(2)},
        "shards": lambda: {
            "model.safetensors.index.json": parts[0],
            "model-00001-of-00002.safetensors": file(1),
        },
        "census": lambda: {"census.jsonl": data},
    }[kind]()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(sys.argv[2:])
    elif sys.argv[1:] and Path(sys.argv[1]).is_file():
        fuzz(sys.argv[1:])
    else:
        sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 10.0))
