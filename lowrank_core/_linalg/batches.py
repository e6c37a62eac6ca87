"""A stack of matrices divided among worker threads, on the BLAS threads that suit its matrices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.threads import blas_threads, in_threads
from lowrank_core._linalg.values import Values

__all__ = ["BLOCK_ENTRIES", "MIN_THREADED_WORK", "Batching", "map_batch", "values_in_chunks"]

Result = TypeVar("Result")

# Entries converted to float64 at a time: 8 MiB, which stay in the outer cache beside a Gram matrix.
BLOCK_ENTRIES = 2**20

# Multiplications below which starting threads costs more than they save (about a millisecond's worth).
MIN_THREADED_WORK = 2**22


class Batching(NamedTuple):
    """How a stack is divided: one matrix after another on all threads, or in chunks on one BLAS thread a worker.

    `entries` are those of a matrix that are in float64 at a time; None for all.
    """

    one_at_a_time: bool
    multiple_of: int = 1
    takes_blas_lock: bool = False
    entries: int | None = None

    def blas_lock(self) -> AbstractContextManager[None]:
        """Return the lock on BLAS's threads that matrices of such a stack are decomposed under."""
        return blas_threads(None if self.one_at_a_time else 1)


def map_batch(
    function: Callable[[slice], Result], count: int, shape: tuple[int, int], workers: int, batching: Batching
) -> list[Result]:
    """Map `function` over slices of a stack of `count` matrices; all but the last have a multiple of `multiple_of`.

    The BLAS lock is taken here, once for the whole stack, unless the function `takes_blas_lock` itself.
    """
    with nullcontext() if batching.takes_blas_lock else batching.blas_lock():
        if batching.one_at_a_time:
            return [function(slice(i, i + 1)) for i in range(count)]
        entries, work = batching.entries or shape[0] * shape[1], shape[0] * shape[1] * min(shape)
        threads = workers if count * work >= MIN_THREADED_WORK else 1
        # Several chunks a worker even out their times; a chunk's float64 copy is the working set of its worker.
        chunk = max(1, min(BLOCK_ENTRIES // entries, count if threads == 1 else -(-count // (4 * threads))))
        chunk = -(-chunk // batching.multiple_of) * batching.multiple_of
        slices = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
        return in_threads(function, slices, threads)


def values_in_chunks(
    function: Callable[[NDArray[Any]], Values], batching: Batching, stack: NDArray[Any], workers: int
) -> Values:
    """Compute the values of a stack (count, m, n) by a function of smaller stacks."""
    count, m, n = stack.shape
    values, norms = np.empty((count, min(m, n))), np.empty(count)

    def fill(chunk: slice) -> None:
        computed = function(stack[chunk])
        values[chunk], norms[chunk] = computed.values, computed.norms

    map_batch(fill, count, (m, n), workers, batching)
    return Values(values, norms)
