"""The one concurrency mechanism: worker threads over a batch, and BLAS held to a known number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Self, TypeVar

__all__ = ["Team", "blas_threads", "in_threads"]

Task = TypeVar("Task")
Result = TypeVar("Result")


class Team:
    """Workers, of which the caller is one, that stay for several batches of tasks: ``with Team(workers) as team``.

    On an error or an interrupt the tasks not yet begun are dropped, and those under way are waited for.
    """

    def __init__(self, workers: int) -> None:
        self._others = workers - 1
        self._pool: Any = None
        if self._others > 0:
            from concurrent.futures import ThreadPoolExecutor  # a tenth of this package's import time

            self._pool = ThreadPoolExecutor(self._others, thread_name_prefix="lowrank_core")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """Map `function` over `tasks`; results, and the first error, in the order of the tasks."""
        if self._pool is None:
            return [function(task) for task in tasks]
        results: dict[int, Result] = {}
        errors: dict[int, BaseException] = {}
        # An iterator gives a number to one thread only.
        waiting = iter(range(len(tasks)))

        def work() -> None:
            for i in waiting:
                try:
                    results[i] = function(tasks[i])
                except BaseException as error:
                    errors[i] = error
                    _drop(waiting)

        try:
            others = [self._pool.submit(work) for _ in range(min(self._others, len(tasks) - 1))]
            work()
            for other in others:
                other.result()
        finally:
            _drop(waiting)
        if errors:
            raise errors[min(errors)]
        return [results[i] for i in range(len(tasks))]


def _drop(tasks: Iterator[int]) -> None:
    for _ in tasks:
        pass


def in_threads(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """Map `function` over one batch of tasks on up to `workers` threads, as a Team does."""
    with Team(min(workers, len(tasks))) as team:
        return team.map(function, tasks)


@cache
def _controller() -> Any:
    # A fresh controller walks every loaded library, about 0.5 ms: as long as the SVD of a 64 × 64 matrix.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _set_threads(library: Any, threads: int) -> None:
    # threadpoolctl 3.8 and later listen to the first thread that set a count and silently to no other, so that threads
    # do not fight over the setting. The gate sees to that here, and whoever leaves last must be heard.
    release = getattr(library, "clear_controlling_thread", lambda **_: None)
    release(force=True)
    library.set_num_threads(threads)
    release(force=True)


class _BlasGate:
    """A lock on BLAS's thread count, which is one setting for the whole process.

    Calls that want the same count share the gate: the first in saves and sets, the last out restores. A call that
    wants another count waits until they have left.

    An interrupt may strike anywhere. Leaving is therefore safe to repeat, and for a holder that never came in; and the
    lock is a plain one, taken with its own ``with``, which no interrupt can part from the block it guards.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._holders: set[object] = set()
        self._threads: int | None = None
        self._before: list[tuple[Any, int]] = []

    def enter(self, holder: object, threads: int | None) -> None:
        with self._lock:
            while self._holders and self._threads != threads:
                self._free.wait()
            if not self._holders:
                self._threads = threads
                if threads is not None:
                    self._before = [(library, library.get_num_threads()) for library in _controller().lib_controllers]
                    for library, _ in self._before:
                        _set_threads(library, threads)
            self._holders.add(holder)

    def leave(self, holder: object) -> None:
        with self._lock:
            self._holders.discard(holder)
            if not self._holders:
                self.restore()
                self._free.notify_all()

    def restore(self) -> None:
        for library, threads in self._before:
            _set_threads(library, threads)
        self._before = []


_gate = _BlasGate()


def _reset_after_fork() -> None:
    # The child has none of the threads that hold the gate: nobody would ever leave it.
    global _gate  # noqa: PLW0603 - a lock copied by fork cannot be repaired, only replaced
    _gate.restore()
    _gate = _BlasGate()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_reset_after_fork)


class blas_threads:  # noqa: N801 - used as a function is
    """Hold BLAS to `threads` threads, or to the process's own setting (None), and put it back afterwards.

    Not reentrant: a holder that asks for another count would wait for itself, so only leaf calculations hold it.
    A class, because a generator's context manager leaves an interrupt a dozen places to fall between.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._gate = _gate

    def __enter__(self) -> None:
        try:
            self._gate.enter(self, self._threads)
        except BaseException:
            self._gate.leave(self)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._gate.leave(self)
        except BaseException:
            self._gate.leave(self)
            raise
