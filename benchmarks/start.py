"""What a new process takes to its first answer: ``python -m benchmarks.start``.

Sides run alternately, each in a new process with bytecode and kernels on disk; the best of several is taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from safetensors.numpy import save_file

ROUNDS, LAYERS, SIDE, RANK = 10, 300, 2048, 16
FIRST = "import numpy as np; from lowrank_core import spectrum; spectrum({})"
INSPECT = """
import contextlib, io, sys, time
from lowrank_core.cli.app import main
times = []
for _ in range(4):
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        main(["inspect", sys.argv[1], "--workers", "1"])
        times.append(time.perf_counter() - start)
print(min(times[1:]))
"""
SIDES = {
    "import numpy": ["-c", "import numpy"],
    "spectrum of 8² float64": ["-c", FIRST.format("np.eye(8)")],
    "spectrum of 100² float64": ["-c", FIRST.format("np.eye(100)")],
    "spectrum of 100² float32": ["-c", FIRST.format("np.eye(100, dtype=np.float32)")],
    "import numba, and a first call": ["-c", "import numba; numba.njit(lambda x: x)(1)"],
    "import numpy, rich, typer": ["-c", "import numpy, rich, typer"],
    "a typer program with one path": [
        "-c",
        "import numpy, rich, typer, sys, pathlib\ndef main(path: pathlib.Path): pass\ntyper.run(main)",
        "x",
    ],
    "lowrank inspect": ["-m", "lowrank_core.cli.app", "inspect", "ADAPTER", "--workers", "1"],
}


def write_adapter(folder: Path) -> None:
    """Write a PEFT adapter of many layers of rank 16."""
    draw = np.random.default_rng(0).standard_normal
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = draw((RANK, SIDE)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = draw((SIDE, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def run(arguments: list[str]) -> str:
    """Return what Python prints, with bytecode on disk as an installed package has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def main() -> None:
    """Print the times, and the two ratios to what a process cannot do without."""
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder))
        sides = {
            name: [folder if each == "ADAPTER" else each for each in arguments] for name, arguments in SIDES.items()
        }
        times = dict.fromkeys(sides, float("inf"))
        work = float("inf")
        for attempt in range(ROUNDS + 1):
            for name, arguments in sides.items():
                start = perf_counter()
                run(arguments)
                if attempt:  # the first compiles what is not on disk
                    times[name] = min(times[name], perf_counter() - start)
            work = min(work, float(run(["-c", INSPECT, folder]))) if attempt % 3 == 1 else work
    for name, seconds in {**times, "lowrank inspect, in a running process": work}.items():
        print(f"{1000 * seconds:7.0f} ms  {name}")
    print(
        f"{times['spectrum of 8² float64'] / times['import numpy']:.2f} of NumPy's import: a first spectrum (at most 2)"
    )
    imports = (times["lowrank inspect"] - work) / times["import numpy, rich, typer"]
    print(f"{imports:.2f} of the imports, besides its work: lowrank inspect (at most 1.5)")


if __name__ == "__main__":
    main()
