"""Where the work over many layers and many adapters runs, beyond the caller's own thread: local processes, or Dask."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

CONNECT_SECONDS = 15


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
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except ValueError as error:
        raise ValueError(f"{address!r} is no address of a scheduler, as tcp://10.0.0.1:8786 is ({error})") from error
    with client:
        try:
            # Not pure: files change, so that the same question may have another answer later.
            yield client.get_executor(pure=False)
        except (CancelledError, distributed.KilledWorker) as error:
            raise ConnectionError(f"the Dask cluster at {address} lost its work: {error or 'no connection'}") from error


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
