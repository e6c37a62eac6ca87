"""Peak memory of extracting an adapter, above that of the process after imports and a warm-up (Linux).

``python -m benchmarks.model_memory WARM_BASE WARM_TUNED BASE TUNED RANK`` measures itself and prints bytes: the peak is
the system's own high-water mark, which includes pages of mapped files. ``peak`` runs it in a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.model_cases import make_checkpoints
from lowrank_core.models import extract

WARM_UP = (1024, 1024)
_HIGH_WATER = "5"  # written to clear_refs, sets VmHWM back to VmRSS


def peak(blocks: int, shapes: tuple[tuple[int, int], ...], rank: int, dtype: str = "float32") -> float:
    """Return the peak over the largest layer's size in float32, for a model of as many blocks."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = Path(temporary, "warm"), Path(temporary, "model")
        for folder in folders:
            folder.mkdir()
        warm = make_checkpoints(folders[0], 1, shapes=(WARM_UP,), dtype=dtype, power=0.7)
        paths = make_checkpoints(folders[1], blocks, shapes=shapes, dtype=dtype, power=0.7)
        command = [sys.executable, "-m", "benchmarks.model_memory", *map(str, (*warm, *paths, rank))]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    largest = max(m * n for m, n in shapes) * np.dtype(np.float32).itemsize
    return int(printed) / largest


def main(warm_base: str, warm_tuned: str, base: str, tuned: str, rank: str) -> None:
    """Measure this process."""
    with tempfile.TemporaryDirectory() as folder:
        extract(warm_base, warm_tuned, Path(folder, "warm"), rank=int(rank))
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text(_HIGH_WATER)
        extract(base, tuned, Path(folder, "out"), rank=int(rank))
        print(_status("VmHWM") - before)


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}: this measurement needs Linux")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
