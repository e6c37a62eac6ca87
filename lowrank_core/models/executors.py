"""Work on many layers and many adapters, one after the other or on executors: local processes, a Dask cluster."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from itertools import islice
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

CONNECT_SECONDS = 15
# Layers under way, and results that wait for an earlier one: enough to keep the workers of a cluster busy.
LAYERS_IN_FLIGHT = 64
# Adapters under way: a hundred thousand are not submitted at once.
ADAPTERS_IN_FLIGHT = 1024

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(name, done, total)`` after each layer or adapter."""


class Named(Protocol):
    """What has a name, as a layer does."""

    @property
    def name(self) -> str:
        """Its name."""


Layer = TypeVar("Layer", bound=Named)
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def local_processes(workers: int) -> Iterator[Executor]:
    """Start processes on this machine, and end them afterwards.

    Parameters
    ----------
    workers : int
        How many.

    Yields
    ------
    concurrent.futures.Executor
        Each of its processes is a fresh interpreter with one BLAS thread, leaves Ctrl-C to its parent, and ends when
        the parent ends, however that ends.

    Raises
    ------
    ValueError
        If there is to be no worker.
    ChildProcessError
        If a process died.

    See Also
    --------
    dask_cluster : Workers on other machines.

    Notes
    -----
    A script that starts processes needs ``if __name__ == "__main__":`` around what it does, because each of them
    imports it.

    Examples
    --------
    >>> from lowrank_core.models import local_processes
    >>> with local_processes(1) as executor:
    ...     list(executor.map(abs, [-1, 2]))
    [1, 2]
    """
    import multiprocessing
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

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
    """Connect to a Dask cluster, and disconnect afterwards.

    Parameters
    ----------
    address : str
        That of its scheduler, as "tcp://10.0.0.1:8786".

    Yields
    ------
    concurrent.futures.Executor
        The cluster's. Its scheduler and workers need lowrank_core too, and see files under the same absolute paths.

    Raises
    ------
    ImportError
        If `distributed` is not installed.
    OSError
        If there is no scheduler at that address, or the connection to the cluster is lost.
    ValueError
        If it is not an address.

    See Also
    --------
    local_processes : Workers on this machine.
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
        raise ValueError(
            f"{address!r} is not the address of a scheduler, as tcp://10.0.0.1:8786 is ({error})"
        ) from error
    with client:
        try:
            # Not pure: files change, so that the same call may have another result later.
            yield client.get_executor(pure=False)
        except (CancelledError, distributed.KilledWorker) as error:
            raise ConnectionError(f"the Dask cluster at {address} lost its work: {error or 'no connection'}") from error


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None
) -> Generator[Result, None, None]:
    """Yield a function's results in the order of the items, or compute each when asked for it without an executor.

    ``Executor.map`` would submit all items at once; here at most :data:`LAYERS_IN_FLIGHT` are submitted and not yet
    asked for. Closing the generator cancels those that have not begun.
    """
    if executor is None:
        yield from map(function, items)
        return
    remaining = iter(items)
    pending: deque[Future[Result]] = deque()
    try:
        pending.extend(executor.submit(function, item) for item in islice(remaining, LAYERS_IN_FLIGHT))
        while pending:
            result = pending.popleft().result()
            pending.extend(executor.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()


def map_layers(
    function: Callable[[Layer], Result],
    layers: Sequence[Layer],
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generator[tuple[Layer, Result | str], None, None]:
    """Yield layers in their order, each with a function's result or the reason why there is none."""
    with closing(map_in_order(partial(_result_or_reason, function), layers, executor)) as results:
        for done, (layer, result) in enumerate(zip(layers, results, strict=True), 1):
            yield layer, result
            if progress is not None:
                progress(layer.name, done, len(layers))


def collect_layers(
    function: Callable[[Layer], Result],
    layers: Sequence[Layer],
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> tuple[list[tuple[str, Result]], dict[str, str]]:
    """Return the names of layers with a function's results, and the names of the others with the reasons."""
    results: list[tuple[str, Result]] = []
    failures: dict[str, str] = {}
    for layer, result in map_layers(function, layers, executor, progress):
        if isinstance(result, str):
            failures[layer.name] = result
        else:
            results.append((layer.name, result))
    return results, failures


def map_as_completed(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None
) -> Generator[tuple[Item, Result], None, None]:
    """Yield items with a function's results, the first to be complete first; closing it cancels what has not begun."""
    if executor is None:
        yield from ((item, function(item)) for item in items)
        return
    completed: SimpleQueue[Future[Result]] = SimpleQueue()
    pending: dict[Future[Result], Item] = {}
    remaining = iter(items)

    def submit(count: int) -> None:
        for item in islice(remaining, count):
            future = executor.submit(function, item)
            pending[future] = item
            future.add_done_callback(completed.put)

    try:
        submit(ADAPTERS_IN_FLIGHT)
        while pending:
            future = completed.get()
            yield pending.pop(future), future.result()
            submit(1)
    finally:
        for future in pending:
            future.cancel()


def _result_or_reason(function: Callable[[Layer], Result], layer: Layer) -> Result | str:
    try:
        return function(layer)
    except ValueError as error:
        return str(error)
    except MemoryError as error:
        return f"needs more memory than there is ({error})"


def _become_worker() -> None:
    from threadpoolctl import threadpool_limits

    # As many processes as cores, each with as many BLAS threads as cores, would compete for them.
    threadpool_limits(limits=1, user_api="blas")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import connection, parent_process

    # A worker waits for tasks on a pipe whose other end is open in itself too: it would not notice its parent's end.
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
