"""The one concurrency mechanism: worker threads over a batch, and a lock on the number of threads of BLAS."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Self, TypeVar

__all__ = ["Team", "blas_threads", "call_with_lock", "in_threads"]

Task = TypeVar("Task")
Result = TypeVar("Result")


class Team:
    """A pool of workers for several batches of tasks, of which the caller is one: ``with Team(workers) as team``.

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
        """Return the results of `function` in the order of the tasks, or raise the first error in that order."""
        if self._pool is None:
            return [function(task) for task in tasks]
        results: dict[int, Result] = {}
        errors: dict[int, BaseException] = {}
        # Iterators are thread-safe: each number goes to one thread only.
        waiting = iter(range(len(tasks)))
        # Of the others that have begun. Futures would not do: an interrupt may come before there is one.
        ends: list[threading.Event] = []

        def work() -> None:
            for i in waiting:
                try:
                    results[i] = function(tasks[i])
                except BaseException as error:
                    errors[i] = error
                    _drop(waiting)

        def help_with_work() -> None:
            end = threading.Event()
            ends.append(end)
            work()
            end.set()

        try:
            for _ in range(min(self._others, len(tasks) - 1)):
                self._pool.submit(help_with_work)
            work()
        finally:
            _drop(waiting)
            for end in ends:
                end.wait()
        if errors:
            raise errors[min(errors)]
        return [results[i] for i in range(len(tasks))]


def _drop(tasks: Iterator[int]) -> None:
    for _ in tasks:
        pass


def in_threads(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """Return the results of `function` for one batch of tasks, by a Team of up to so many workers."""
    with Team(min(workers, len(tasks))) as team:
        return team.map(function, tasks)


def call_with_lock(lock: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function returns while a reentrant lock is held, which no interrupt leaves held.

    From Python 3.14 on an interrupt can come between the acquisition and the block of a ``with`` statement.
    """
    is_owned = lock._is_owned  # noqa: SLF001 - as threading.Condition asks
    if is_owned():  # by a call that a signal handler has interrupted
        return function(*arguments)
    try:
        with lock:
            return function(*arguments)
    except BaseException:
        if is_owned():
            lock.release()
        raise


@cache
def _controller() -> Any:
    # A new controller searches all loaded libraries, in about 0.5 ms: the time of the SVD of a 64 × 64 matrix.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _set_threads(library: Any, threads: int) -> None:
    # threadpoolctl 3.8 and later ignore every thread but the first that set a count, without a word, so that threads do
    # not overwrite each other's setting. Here the lock prevents that, and any thread may have to restore the count.
    release = getattr(library, "clear_controlling_thread", lambda **_: None)
    release(force=True)
    library.set_num_threads(threads)
    release(force=True)


class _Call(NamedTuple):
    """A call that wants BLAS to have so many threads, and the thread that makes it."""

    threads: int | None
    caller: int


class _BlasLock:
    """A lock on BLAS's thread count, which is one setting for the whole process: first come, first served.

    Calls that want the same count share the lock: the first sets the count, the last restores it. A call waits for all
    earlier ones that want another count, those that wait themselves among them, so that no stream of later calls can
    keep it waiting.

    An interrupt may come anywhere. To release is therefore safe twice, and for a call that never acquired. A signal
    handler may come anywhere too, and call in the thread that it interrupts. The mutex is therefore reentrant, and a
    call is registered before it changes anything, and until it has changed everything back.
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._released = threading.Condition(self._mutex)
        self._calls: dict[object, _Call] = {}  # in the order in which they came
        self._holders: set[object] = set()
        self._before: list[tuple[Any, int]] = []

    def acquire(self, holder: object, threads: int | None) -> None:
        call_with_lock(self._mutex, self._acquire, holder, threads)

    def release(self, holder: object) -> None:
        call_with_lock(self._mutex, self._release, holder)

    def _acquire(self, holder: object, threads: int | None) -> None:
        call = _Call(threads, threading.get_ident())
        # A list, since a handler may call in between, and be served.
        outer = {other for other, earlier in list(self._calls.items()) if earlier.caller == call.caller}
        if outer - self._holders or any(self._calls[other] != call for other in outer):
            raise RuntimeError(
                "lowrank_core was called within another call of it that is under way in the same thread, as a signal "
                "handler or a destructor can do, and would wait for that one for ever. Let the handler set a flag, and "
                "call lowrank_core where the flag is read, or call it in a thread of its own."
            )
        self._calls[holder] = call
        # Within a call of its own thread it cannot wait for those that wait for that one.
        while not outer and not self._is_next(holder):
            self._released.wait()
        if not self._holders and threads is not None:
            self._before = [(library, library.get_num_threads()) for library in _controller().lib_controllers]
            for library, _ in self._before:
                _set_threads(library, threads)
        self._holders.add(holder)

    def _is_next(self, holder: object) -> bool:
        """Whether all earlier calls want the same count."""
        earlier = itertools.takewhile(lambda other: other is not holder, self._calls)
        return all(self._calls[other].threads == self._calls[holder].threads for other in earlier)

    def _release(self, holder: object) -> None:
        if holder not in self._calls:
            return
        self._holders.discard(holder)
        if not self._holders:
            self.restore()
        self._released.notify_all()
        del self._calls[holder]

    def restore(self) -> None:
        for library, threads in self._before:
            _set_threads(library, threads)
        self._before = []


_blas_lock = _BlasLock()


def _reset_after_fork() -> None:
    # The child has none of the threads that hold the lock: none would ever release it.
    global _blas_lock  # noqa: PLW0603 - a lock copied by fork cannot be repaired, only replaced
    _blas_lock.restore()
    _blas_lock = _BlasLock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_reset_after_fork)


class blas_threads:  # noqa: N801 - used as a function is
    """Set BLAS to `threads` threads, or to the process's own setting (None), and restore it afterwards.

    Only leaf calculations take the lock: within it another count is a RuntimeError, and a worker would wait for ever.
    A class, because a context manager made of a generator can be interrupted before its ``finally`` is in effect.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._lock = _blas_lock

    def __enter__(self) -> None:
        try:
            self._lock.acquire(self, self._threads)
        except BaseException:
            self._lock.release(self)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._lock.release(self)
        except BaseException:
            self._lock.release(self)
            raise
