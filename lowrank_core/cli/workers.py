"""Where the work over layers and adapters runs: this process, its threads, local processes, or a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from lowrank_core._validation import as_workers
from lowrank_core.cli.options import Work
from lowrank_core.cli.output import progress_bar
from lowrank_core.models import dask_cluster, local_processes

Result = TypeVar("Result")


def over_layers(operation: Callable[..., Result], work: Work) -> Result:
    """Return the result of an operation on layers, run with an executor and a progress bar."""
    # Threads share a layer's arrays; processes would copy them.
    return _run(operation, work, ThreadPoolExecutor, "layers")


def over_adapters(operation: Callable[..., Result], work: Work) -> Result:
    """Return the result of an operation on many adapters, run with an executor and a progress bar."""
    return _run(operation, work, local_processes, "adapters")


def _run(
    operation: Callable[..., Result],
    work: Work,
    local: Callable[[int], AbstractContextManager[Executor]],
    things: str,
) -> Result:
    with _executor(work, local) as executor, progress_bar(things) as progress:
        return operation(executor=executor, progress=progress)


def _executor(
    work: Work, local: Callable[[int], AbstractContextManager[Executor]]
) -> AbstractContextManager[Executor | None]:
    if work.dask is not None:
        return dask_cluster(work.dask)
    workers = as_workers(work.workers)
    return local(workers) if workers > 1 else nullcontext()
