# ruff: noqa: B023 - each function made in a loop is called in the same round
"""Measure where one route overtakes another: ``python -m benchmarks.thresholds``.

Beside each figure stands the threshold in ``lowrank_core._linalg.thresholds``. Near a threshold both routes take about
the same time; a matrix alone and a matrix in a batch would need different ones, though they must take one route.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import inputs
from benchmarks.timing import shortest
from lowrank_core import spectrum, truncate, update_with_spectrum

# Each function imports what it measures: asv imports every file of this folder beside each commit's own package, which
# may not have these modules.
COLUMNS = "{:<28} {:>10} {:>12} {:>12} {:>8}"


def row(name: str, size: Any, first: float, second: float) -> None:
    """Print both times in milliseconds, and the second as a multiple of the first."""
    print(COLUMNS.format(name, str(size), f"{1e3 * first:.3f}", f"{1e3 * second:.3f}", f"{second / first:.2f}"))


def of_stack(count: int) -> str:
    """Return the words for a stack of so many matrices."""
    return "alone" if count == 1 else f"stack of {count}"


def small_matrices() -> None:
    """Compare the kernel for small matrices and LAPACK: stacks, and single matrices."""
    from lowrank_core._linalg import blas_threads, lapack, small, thresholds

    print(f"\nSMALL_ENTRIES = {thresholds.SMALL_ENTRIES}: float64, one worker, milliseconds a stack")
    print(COLUMNS.format("", "n", "kernel", "LAPACK", "ratio"))
    for n in (8, 16, 32, 48, 64, 96, 128):
        for count in (1, 8 * max(1, 2**13 // n**2)):
            stack = inputs.generator(n).standard_normal((count, n, n))
            with blas_threads(1):
                kernel = shortest(lambda: small.kernel_svd_values(stack, 1))
                row(of_stack(count), n, kernel, shortest(lambda: lapack.lapack_svd_values(stack)))


def large_matrices() -> None:
    """Compare the kernel for Gram matrices and LAPACK on all threads, for float32 matrices."""
    from lowrank_core._linalg import gram, thresholds

    print(f"\nLARGE = {thresholds.LARGE}: float32, milliseconds; threads take matrices by the kernel, parts by LAPACK")
    print(COLUMNS.format("", "n", "kernel", "LAPACK", "ratio"))
    for n in (128, 256, 512, 768, 1024):
        for count in (1, 8):
            stack = inputs.generator(n).standard_normal((count, n, n), dtype=np.float32)
            kernel = shortest(lambda: gram.kernel_gram_values(stack, 2))
            each = shortest(lambda: [gram.lapack_gram_values(stack[i : i + 1]) for i in range(count)])
            row(of_stack(count), n, kernel, each)


def two_stages() -> None:
    """Compare the reduction in two stages and LAPACK's in one, for one float32 matrix."""
    from lowrank_core._linalg import gram, thresholds, two_stage

    print(f"\nTWO_STAGES = {thresholds.TWO_STAGES}: one float32 matrix, milliseconds")
    print(COLUMNS.format("", "n", "two stages", "LAPACK", "ratio"))
    for n in (768, 1024, 1536, 2048):
        matrix = inputs.generator(n).standard_normal((1, n, n), dtype=np.float32)
        two = shortest(lambda: two_stage.two_stage_gram_values(matrix, 2))
        row("alone", n, two, shortest(lambda: gram.lapack_gram_values(matrix)))


def two_stages_of_doubles() -> None:
    """Compare the bidiagonal reduction in two stages and in one pass for each column, for one float64 matrix."""
    from lowrank_core._linalg import bidiagonal, thresholds, two_stage_svd

    print(f"\nTWO_STAGES_SVD = {thresholds.TWO_STAGES_SVD}: one float64 matrix, milliseconds")
    print(COLUMNS.format("", "n", "two stages", "one", "ratio"))
    for n in (512, 768, 1024, 1536):
        matrix = inputs.generator(n).standard_normal((1, n, n))
        two = shortest(lambda: two_stage_svd.two_stage_svd_values(matrix, 2))
        row("alone", n, two, shortest(lambda: bidiagonal.bidiagonal_svd_values(matrix, 2)))


def leading_values() -> None:
    """Compare block Krylov and the Gram route where singular values fall as 1/i."""
    from lowrank_core._linalg import thresholds

    print(f"\nKRYLOV_SMALLEST_SIDE = {thresholds.KRYLOV_SMALLEST_SIDE}, ", end="")
    print(f"KRYLOV_LARGEST_FRACTION = {thresholds.KRYLOV_LARGEST_FRACTION}: one float32 matrix, milliseconds")
    print(COLUMNS.format("", "n", "krylov", "gram", "ratio"))
    for n in (512, 1024, 2048):
        matrix, _ = inputs.falling(n, 1.0)
        all_values = shortest(lambda: spectrum(matrix, method="gram"))
        for rank in (n // 64, n // 32, n // 16, n // 8):
            leading = shortest(lambda: spectrum(matrix, rank=rank, method="krylov"))
            row(f"leading {rank}", n, leading, all_values)


def factors() -> None:
    """Compare factors by block Krylov and all of them, where singular values fall as 1/i and for Gaussian entries."""
    from lowrank_core._linalg import thresholds

    print(f"\nKRYLOV_FACTORS_SMALLEST_SIDE = {thresholds.KRYLOV_FACTORS_SMALLEST_SIDE}: rank n/16, milliseconds")
    print(COLUMNS.format("", "n", "krylov", "all", "ratio"))
    for n in (384, 512, 640, 768, 1024):
        falling = update_with_spectrum(1.0 / np.arange(1, n + 1), (n, n), rng=n)
        for kind, doubles in (("1/i", falling), ("noise", inputs.generator(n).standard_normal((n, n)))):
            for dtype, method in (("float32", "gram"), ("float64", "lapack")):
                matrix = doubles.astype(dtype)
                some = shortest(lambda: truncate(matrix, n // 16, method="krylov"))
                row(f"{kind}, {dtype}", n, some, shortest(lambda: truncate(matrix, n // 16, method=method)))


def main() -> None:
    """Print all comparisons."""
    small_matrices()
    large_matrices()
    two_stages()
    two_stages_of_doubles()
    leading_values()
    factors()


if __name__ == "__main__":
    main()
