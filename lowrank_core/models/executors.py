"""Where the work over many layers and many adapters runs, beyond the caller's own thread: local processes, or Dask."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from os import PathLike

CONNECT_SECONDS = 15
# Enough to keep the workers of a cluster busy; and what waits for its turn to be taken are results, not layers.
IN_FLIGHT = 64

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def local_processes(workers: int) -> Iterator[Executor]:
    """
    Start processes of this machine, and end them afterwards.

    Parameters
    ----------
    workers : int
        How many.

    Yields
    ------
    concurrent.futures.Executor
        Each of its processes is a fresh interpreter, holds BLAS to one thread, leaves Ctrl-C to its parent, and ends
        with it however that ends.

    Raises
    ------
    ValueError
        If there is to be no worker.
    ChildProcessError
        If a process died.

    Notes
    -----
    A script that starts processes needs ``if __name__ == "__main__":`` around what it does, because each of them
    imports it.

    Examples
    --------
    >>> from lowrank_core.models.executors import local_processes
    >>> with local_processes(1) as executor:
    ...     list(executor.map(abs, [-1, 2]))
    [1, 2]
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    # Fresh interpreters, because a fork copies the locks of threads that it does not copy.
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=_become_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} worker processes died, as one does that takes too much memory: take fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def dask_cluster(address: str) -> Iterator[Executor]:
    """
    Connect to a Dask cluster, and leave it afterwards.

    Parameters
    ----------
    address : str
        Its scheduler's, as "tcp://10.0.0.1:8786".

    Yields
    ------
    concurrent.futures.Executor
        The cluster's. Its scheduler and workers need lowrank_core too, and see files under the same absolute paths.

    Raises
    ------
    ImportError
        If `distributed` is not installed.
    OSError
        If there is no scheduler at that address, or the cluster is lost on the way.
    ValueError
        If it is no address.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise ImportError(
            f'a Dask cluster needs {error.name}, which is not installed: pip install "lowrank_core[dask]"'
        ) from error
    try:
        # Before the client is made: one that could not begin waits half a minute for itself when it is collected.
        distributed.comm.resolve_address(address)
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except ValueError as error:
        raise ValueError(f"{address!r} is no address of a scheduler, as tcp://10.0.0.1:8786 is ({error})") from error
    with client:
        try:
            # Not pure: files change, so that the same question may have another answer later.
            yield client.get_executor(pure=False)
        except (CancelledError, distributed.KilledWorker) as error:
            raise ConnectionError(f"the Dask cluster at {address} lost its work: {error or 'no connection'}") from error


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None
) -> Generator[Result, None, None]:
    """
    Map a function over items, and give the results in the order of the items.

    Parameters
    ----------
    function : callable
        Picklable, and its results too, where the executor has processes.
    items : iterable
        Taken as they are needed.
    executor : concurrent.futures.Executor or None
        Where the function runs. None: here, each when its result is asked for.

    Yields
    ------
    Result
        One for each item. At most :data:`IN_FLIGHT` items are with the executor, or done and not yet asked for:
        ``Executor.map`` would take all of them at once.

    Notes
    -----
    Closing the iterator cancels what has not begun.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from lowrank_core.models.executors import map_in_order
    >>> with ThreadPoolExecutor(2) as executor:
    ...     list(map_in_order(abs, [-2, 1, -3], executor))
    [2, 1, 3]
    """
    if executor is None:
        yield from map(function, items)
        return
    following = iter(items)
    under_way: deque[Future[Result]] = deque()
    try:
        under_way.extend(executor.submit(function, item) for item in islice(following, IN_FLIGHT))
        while under_way:
            result = under_way.popleft().result()
            under_way.extend(executor.submit(function, item) for item in islice(following, 1))
            yield result
    finally:
        for future in under_way:
            future.cancel()


def path_for(path: str | PathLike[str], executor: Executor | None) -> Path:
    """
    Give the path by which an executor's workers find a file: one of them may have another current folder.

    Parameters
    ----------
    path : path-like
        As the caller sees it.
    executor : concurrent.futures.Executor or None
        Where it will be read; None: here.

    Returns
    -------
    Path
        Absolute where there is an executor.
    """
    return Path(path) if executor is None else Path(path).absolute()


def _become_worker() -> None:
    from threadpoolctl import threadpool_limits

    # As many processes as cores, each with as many BLAS threads as cores, would stand in each other's way.
    threadpool_limits(limits=1, user_api="blas")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker waits for tasks on a pipe whose other end it holds itself: it would never notice that its parent is gone.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
