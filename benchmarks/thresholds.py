# ruff: noqa: B023 - what is made here is called here
"""Measure where one route overtakes another: ``python -m benchmarks.thresholds``.

Beside each figure stands what ``lowrank_core._linalg.thresholds`` has. A threshold is no law: near it both routes take
about the same time, and a matrix alone and a matrix in a batch do not agree on it, though they must take one route.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import inputs
from lowrank_core import spectrum

# asv imports every file of this folder beside each commit's own package, in which these may not be.
try:
    from lowrank_core._linalg import dense, krylov, thresholds
except ImportError:
    dense = krylov = thresholds = None  # type: ignore[assignment]

COLUMNS = "{:<28} {:>10} {:>12} {:>12} {:>8}"


def shortest(call: Callable[[], Any], least: float = 0.2) -> float:
    """Shortest time of calls for `least` seconds."""
    call()
    best, until = np.inf, time.perf_counter() + least
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            return best


def row(name: str, size: Any, first: float, second: float) -> None:
    """Print both times in milliseconds, and how many times as long the second takes."""
    print(COLUMNS.format(name, str(size), f"{1e3 * first:.3f}", f"{1e3 * second:.3f}", f"{second / first:.2f}"))


def small() -> None:
    """Compare the kernel for small matrices and LAPACK: stacks, and single matrices."""
    print(f"\nSMALL_ENTRIES = {thresholds.SMALL_ENTRIES}: float64, one worker, milliseconds a stack")
    print(COLUMNS.format("", "n", "kernel", "LAPACK", "ratio"))
    for n in (8, 16, 32, 48, 64, 96, 128):
        for count in (1, 8 * max(1, 2**13 // n**2)):
            stack = inputs.generator(n).standard_normal((count, n, n))
            with dense.blas_threads(1):
                times = [shortest(lambda f=f: f(stack)) for f in (dense.small_values_of, dense.direct_values)]
            row("alone" if count == 1 else f"stack of {count}", n, *times)


def large() -> None:
    """Compare the kernel for Gram matrices and LAPACK on all threads, for one float32 matrix."""
    print(f"\nLARGE = {thresholds.LARGE}: float32, milliseconds; the kernel shares a batch out, LAPACK each matrix")
    print(COLUMNS.format("", "n", "kernel", "LAPACK", "ratio"))
    for n in (128, 256, 512, 768, 1024):
        for count in (1, 8):
            stack = inputs.generator(n).standard_normal((count, n, n), dtype=np.float32)
            kept, thresholds.LARGE = thresholds.LARGE, n  # type: ignore[misc]
            try:
                kernel = shortest(lambda: dense.medium_gram_values(stack, 2))
            finally:
                thresholds.LARGE = kept  # type: ignore[misc]
            lapack = shortest(lambda: [dense.gram_values(stack[i : i + 1]) for i in range(count)])
            row("alone" if count == 1 else f"stack of {count}", n, kernel, lapack)


def two_stages() -> None:
    """Compare the reduction in two stages and LAPACK's in one, for one float32 matrix."""
    print(f"\nTWO_STAGES = {thresholds.TWO_STAGES}: one float32 matrix, milliseconds")
    print(COLUMNS.format("", "n", "two stages", "LAPACK", "ratio"))
    for n in (768, 1024, 1536, 2048):
        matrix = inputs.generator(n).standard_normal((1, n, n), dtype=np.float32)
        two = shortest(lambda: dense.large_gram_values(matrix, 2))
        row("alone", n, two, shortest(lambda: dense.gram_values(matrix)))


def few() -> None:
    """Compare block Krylov and the Gram route where singular values fall as 1/i."""
    print(f"\nKRYLOV_SMALLEST_SIDE = {thresholds.KRYLOV_SMALLEST_SIDE}, ", end="")
    print(f"KRYLOV_LARGEST_FRACTION = {thresholds.KRYLOV_LARGEST_FRACTION}: one float32 matrix, milliseconds")
    print(COLUMNS.format("", "n", "krylov", "gram", "ratio"))
    for n in (512, 1024, 2048):
        matrix, _ = inputs.falling(n, 1.0)
        gram = shortest(lambda: spectrum(matrix, method="gram"))
        for rank in (n // 64, n // 32, n // 16, n // 8):
            row(f"leading {rank}", n, shortest(lambda: krylov.krylov(matrix, rank, n, 0)), gram)


def main() -> None:
    """Print all of them."""
    small()
    large()
    two_stages()
    few()


if __name__ == "__main__":
    main()
