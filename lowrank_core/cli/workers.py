"""Where the work over the layers of one adapter or model runs: ``--workers`` and ``--dask``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

from lowrank_core.models.executors import dask_cluster

__all__ = ["check_workers", "workers_for_layers"]


def check_workers(workers: int, dask: str | None) -> None:
    """Refuse options that name two places to work in.

    Parameters
    ----------
    workers : int
    dask : str, optional

    Raises
    ------
    ValueError
        If there are several workers here and a cluster.
    """
    if dask is not None and workers > 1:
        raise ValueError("--workers and --dask exclude each other: a Dask cluster has the workers that it has.")


@contextmanager
def workers_for_layers(workers: int, dask: str | None) -> Iterator[Executor | None]:
    """Give what the layers of one adapter or model are read on: threads, for these share a layer's arrays, or Dask."""
    check_workers(workers, dask)
    here = ThreadPoolExecutor(workers) if workers > 1 else nullcontext(None)
    with here if dask is None else dask_cluster(dask) as executor:
        yield executor
