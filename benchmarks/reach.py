"""What the machine reaches by itself, with which every time of the table is to be compared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from benchmarks.timing import shortest, threads


class Reach(NamedTuple):
    """A figure with its unit in its name."""

    name: str
    figure: float


def _product_speed(dtype: str, count: int | None) -> float:
    X = np.ones((1024, 1024), dtype)
    with threads(count):
        return 2e-9 * 1024**3 / shortest(lambda: X @ X)


def _thread_gain() -> float:
    """Return the speed of two threads over one, where they share nothing but the machine."""
    X = np.ones((192, 192))

    def work(_: int) -> None:
        for _ in range(40):
            X @ X

    with threads(1), ThreadPoolExecutor(2) as pool:
        return 2.0 * shortest(lambda: work(0)) / shortest(lambda: list(pool.map(work, range(2))))


def reaches() -> list[Reach]:
    """Measure matrix products, memory and threads."""
    moved, copy = np.ones(2**24), np.empty(2**24)
    return [
        Reach("float64 matrix product, one thread, GFLOP/s", _product_speed("float64", 1)),
        Reach("float64 matrix product, all threads, GFLOP/s", _product_speed("float64", None)),
        Reach("float32 matrix product, all threads, GFLOP/s", _product_speed("float32", None)),
        Reach("memcpy, read and written, GB/s", 2e-9 * moved.nbytes / shortest(lambda: np.copyto(copy, moved))),
        Reach("two threads over one, products in cache", _thread_gain()),
    ]
