"""A census of adapters: a row for each one under a folder, made on any executor, written to a file and resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any

from lowrank_core.models.executors import Progress, map_as_completed
from lowrank_core.models.formats import adapter_files, holds_adapter, is_adapter_folder, open_adapter
from lowrank_core.models.formats.adapter import Adapter
from lowrank_core.models.formats.format import SUFFIXES
from lowrank_core.models.inspection.census_rows import AdapterRow, appending, resume
from lowrank_core.models.inspection.layers import DEFAULT_RANKS, check_ranks, layer_reports
from lowrank_core.models.inspection.report import LayerReport, total


def census(
    folder: str | PathLike[str],
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    executor: Executor | None = None,
    jsonl: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[AdapterRow, ...]:
    """Report every adapter under a folder, one row each.

    Parameters
    ----------
    folder : path-like
        Where to look, in all its subfolders too.
    ranks : sequence of int
        Ranks to give variances and errors at.
    executor : concurrent.futures.Executor, optional
        Where the adapters are read, each a task of its own, as layers are in :func:`~lowrank_core.models.inspect`.
    jsonl : path-like, optional
        A file that each row is added to as soon as it is made, one JSON object a line. Where it exists already, its
        rows are taken as they are, unless an adapter has changed since, and only the others are made. Rows of adapters
        elsewhere are left in it.
    progress : callable, optional
        Called as ``progress(path, done, total)`` after each adapter.

    Returns
    -------
    tuple of AdapterRow
        In alphabetical order of their paths, those from the file included. A damaged adapter has a row that says why.
        A safetensors file without any LoRA factors is a checkpoint, and has none.

    Raises
    ------
    NotADirectoryError
        If `folder` is not a folder.
    ValueError
        If the ranks are not ranks, or `jsonl` is not the file of a census with these ranks.

    See Also
    --------
    lowrank_core.models.inspect : Every layer of one adapter.
    lowrank_core.models.read_census : Read the rows of `jsonl`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import census
    >>> factors = {"a.lora_down.weight": np.eye(2, 4), "a.lora_up.weight": np.diag([4.0, 3.0])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(factors, pathlib.Path(folder, "first.safetensors"))
    ...     save_file(factors | {"a.alpha": np.array(4.0)}, pathlib.Path(folder, "second.safetensors"))
    ...     rows = census(folder, ranks=[1])
    >>> [(pathlib.Path(row.path).stem, row.norm, row.best_error) for row in rows]
    [('first', 5.0, (0.6,)), ('second', 10.0, (0.6,))]
    """
    requested = check_ranks(ranks)
    candidates = {str(path): path for path in find_adapters(folder)}
    known = {} if jsonl is None else resume(Path(jsonl), requested, partial(_is_current, candidates=candidates))
    rows = [row for path, row in known.items() if path in candidates]
    missing = [path for name, path in candidates.items() if name not in known]
    done = len(candidates) - len(missing)
    results = map_as_completed(partial(adapter_row, ranks=requested), missing, executor)
    with appending(jsonl) as append, closing(results):
        for path, row in results:
            done += 1
            if row is not None:
                rows.append(row)
                append(row)
            if progress is not None:
                progress(str(path), done, len(candidates))
    return tuple(sorted(rows, key=lambda row: row.path))


def find_adapters(folder: str | PathLike[str]) -> tuple[Path, ...]:
    """Return what may be an adapter, absolute and in alphabetical order: only its content tells it from a checkpoint.

    These are folders with the files of an adapter in them, all other safetensors and GGUF files, and folders that may
    not be listed. Links to files are followed, links to folders are not.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is not a folder: a census is taken of the adapters under one")
    unlisted: list[Path] = []
    candidates: list[Path] = []
    for parent, _, names in os.walk(root, onerror=lambda error: unlisted.append(Path(error.filename))):
        if is_adapter_folder(names):
            candidates.append(Path(parent))
        files = (Path(parent, name) for name in names if not is_adapter_folder([name]))
        candidates += (file for file in files if file.suffix in SUFFIXES)
    return tuple(sorted(candidates + unlisted))


def adapter_row(path: str | PathLike[str], *, ranks: Sequence[int] = DEFAULT_RANKS) -> AdapterRow | None:
    """Report one adapter, with one layer in memory at a time; None for a file without any LoRA factors."""
    requested = check_ranks(ranks)
    location = Path(path).absolute()
    stamp = _stamp(location)
    try:
        if not (location.is_dir() or holds_adapter(location)):
            return None
        adapter = open_adapter(location)
    except (ValueError, OSError, ImportError) as error:
        stamp = "" if _is_systems_fault(error) else stamp
        return AdapterRow(str(location), stamp, ranks=requested, failure=str(error))
    return _row(adapter, location, stamp, requested)


def _row(adapter: Adapter, location: Path, stamp: str, ranks: tuple[int, ...]) -> AdapterRow:
    layers, failures = layer_reports(adapter, ranks=ranks, rules=())
    failures |= adapter.incomplete
    return AdapterRow(
        path=str(location),
        stamp=stamp,
        format=adapter.format,
        layers=len(layers),
        failed_layers=len(failures),
        not_low_rank=len(adapter.others),
        warnings=len(adapter.warnings),
        ranks=ranks,
        complete=not (failures or adapter.others),
        failure=next((f"{name}: {reason}" for name, reason in sorted(failures.items())), None),
        **(_figures(layers, ranks) if layers else {}),
    )


def _figures(layers: Sequence[LayerReport], ranks: tuple[int, ...]) -> dict[str, Any]:
    totals = total(layers, 0, ranks, ())
    scalings = [layer.scaling for layer in layers if layer.scaling is not None]
    effective, stable = [layer.effective_rank for layer in layers], [layer.stable_rank for layer in layers]
    return {
        "parameters": totals.adapter_parameters,
        "adapter_ranks": tuple(sorted({layer.rank for layer in layers if layer.rank is not None})),
        "smallest_scaling": min(scalings),
        "largest_scaling": max(scalings),
        "norm": totals.norm,
        "effective_rank": median(effective),
        "largest_effective_rank": max(effective),
        "stable_rank": median(stable),
        "largest_stable_rank": max(stable),
        "rank_for_variance": totals.rank_for_variance,
        "variance_captured": totals.variance_captured,
        "best_error": totals.best_error,
    }


def _is_current(row: AdapterRow, candidates: Mapping[str, Path]) -> bool:
    # A row of another folder belongs to another census.
    return row.path not in candidates or row.stamp == _stamp(candidates[row.path])


def _stamp(location: Path) -> str:
    return " ".join(map(_file_stamp, adapter_files(location)))


def _file_stamp(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return "absent"
    return f"{status.st_size}@{status.st_mtime_ns}"


def _is_systems_fault(error: Exception) -> bool:
    """Whether the system, or a package it lacks, is to blame; an absent file has a stamp that says so."""
    causes = (error, error.__cause__)
    return any(
        isinstance(cause, OSError | ImportError) and not isinstance(cause, FileNotFoundError) for cause in causes
    )
