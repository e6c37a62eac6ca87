"""``lowrank inspect DIR --recursive``: a census of the adapters under a folder, and where its work runs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from lowrank_core.cli import output
from lowrank_core.cli.reports import census_tables
from lowrank_core.cli.workers import check_workers
from lowrank_core.models.executors import dask_cluster, local_processes
from lowrank_core.models.inspection.census import census
from lowrank_core.models.inspection.census_rows import to_table
from lowrank_core.models.results import to_json

__all__ = ["check_options", "run"]

SOME_FAILED = 1


def check_options(*, recursive: bool, jsonl: Path | None, workers: int, dask: str | None, **others: object) -> None:
    """Refuse options of an inspection that do not go together.

    Parameters
    ----------
    recursive : bool
        Whether many adapters are inspected, and not one.
    jsonl, workers, dask
        Of the command line.
    **others
        Options that one adapter alone can have, by name; None or False where not given.

    Raises
    ------
    ValueError
        If two of them exclude each other.
    """
    check_workers(workers, dask)
    if jsonl == output.STDOUT:
        raise ValueError("--jsonl names a file, for a later run goes on from it; --json - prints every row at the end.")
    if recursive:
        given = next((name for name, value in others.items() if value), None)
        if given is not None:
            raise ValueError(f"--{given} is of one adapter, and --recursive of many: leave one of the two out.")
    elif jsonl is not None:
        raise ValueError("--jsonl has a row for each of many adapters: it goes with --recursive.")


def run(
    folder: Path,
    ranks: tuple[int, ...],
    *,
    full: bool,
    json: Path | None,
    csv: Path | None,
    jsonl: Path | None,
    workers: int,
    dask: str | None,
) -> int:
    """Take a census of a folder and write it.

    Parameters
    ----------
    folder : Path
    ranks : tuple of int
    full : bool
        Print every adapter.
    json, csv, jsonl : Path, optional
        Files to write.
    workers : int
        Local processes; with 1 the work is done in this one.
    dask : str, optional
        Address of a Dask cluster to take instead.

    Returns
    -------
    int
        0, or 1 where some adapters failed, in whole or in part.

    Raises
    ------
    ValueError
        If there is no adapter.
    OSError
        If the workers are lost; what they have done until then is in `jsonl`.
    """
    here = local_processes(workers) if workers > 1 else nullcontext(None)
    with here if dask is None else dask_cluster(dask) as executor, output.progress_bar("adapters") as advance:
        rows = census(folder, ranks=ranks, executor=executor, jsonl=jsonl, progress=advance)
    if not rows:
        raise ValueError(
            f"no adapter under {str(folder)!r}: neither a folder with adapter_config.json nor a safetensors file with "
            "LoRA factors"
        )
    output.write_report(
        lambda: census_tables.census(folder, rows, full=full),
        [
            (json, lambda: output.json_text({"adapters": [to_json(row) for row in rows]})),
            (csv, lambda: output.csv_text(to_table(rows))),
        ],
    )
    return SOME_FAILED if any(row.failure is not None for row in rows) else 0
