"""A census of adapters: a row for every one under a folder, made on any executor, streamed to a file and resumed."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import TYPE_CHECKING, Any

from lowrank_core.models.files.tensors import open_file
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.kohya import is_kohya, other_kind
from lowrank_core.models.formats.peft import PEFT_CONFIG, PEFT_WEIGHTS, is_peft
from lowrank_core.models.inspection.census_rows import AdapterRow, appending, read_census, resume, row_to_json, to_table
from lowrank_core.models.inspection.layers import DEFAULT_RANKS, checked_ranks, layer_reports
from lowrank_core.models.inspection.report import LayerFailure, LayerReport, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor, Future
    from os import PathLike

    from lowrank_core.models.formats.adapter import Adapter

__all__ = ["AdapterRow", "adapter_row", "census", "find_adapters", "read_census", "row_to_json", "to_table"]

# Enough to keep a large cluster busy, few enough that a hundred thousand adapters are not all handed over at once.
_IN_FLIGHT = 1024


def census(
    folder: str | PathLike[str],
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    executor: Executor | None = None,
    jsonl: str | PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[AdapterRow, ...]:
    """
    Report every adapter under a folder, one row each.

    Parameters
    ----------
    folder : path-like
        Where to look, in all its subfolders too.
    ranks : sequence of int
        Ranks to give variances and errors at.
    executor : concurrent.futures.Executor, optional
        Where the adapters are read, each a task of its own: threads, processes, or a Dask cluster's
        ``Client.get_executor()``. Its workers have to see the folder under the same absolute path. None: here, one
        adapter after the other.
    jsonl : path-like, optional
        A file that each row is added to as soon as it is there, one JSON object a line. Where it exists already, its
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
        If `folder` is no folder.
    ValueError
        If the ranks are none, or `jsonl` is not the file of a census with these ranks.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.inspection.census import census
    >>> factors = {"a.lora_down.weight": np.eye(2, 4), "a.lora_up.weight": np.diag([4.0, 3.0])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(factors, pathlib.Path(folder, "first.safetensors"))
    ...     save_file(factors | {"a.alpha": np.array(4.0)}, pathlib.Path(folder, "second.safetensors"))
    ...     rows = census(folder, ranks=[1])
    >>> [(pathlib.Path(row.path).stem, row.norm, row.best_error) for row in rows]
    [('first', 5.0, (0.6,)), ('second', 10.0, (0.6,))]
    """
    asked = checked_ranks(ranks)
    candidates = find_adapters(folder)
    here = {str(path): path for path in candidates}
    kept = {} if jsonl is None else resume(Path(jsonl), asked, partial(_stands, here=here))
    rows = [kept[str(path)] for path in candidates if str(path) in kept]
    missing = [path for path in candidates if str(path) not in kept]
    done = len(rows)
    with appending(jsonl) as add:
        for path, row in _as_they_come(partial(adapter_row, ranks=asked), missing, executor):
            done += 1
            if row is not None:
                rows.append(row)
                add(row)
            if progress is not None:
                progress(str(path), done, len(candidates))
    return tuple(sorted(rows, key=lambda row: row.path))


def find_adapters(folder: str | PathLike[str]) -> tuple[Path, ...]:
    """
    Find what may be an adapter: only reading it tells a kohya file from a checkpoint.

    Parameters
    ----------
    folder : path-like
        Where to look, in all its subfolders too.

    Returns
    -------
    tuple of Path
        Absolute and in alphabetical order: folders with PEFT's files in them, all other safetensors files, and folders
        that may not be listed. Links to files are followed, links to folders are not.

    Raises
    ------
    NotADirectoryError
        If it is no folder.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from lowrank_core.models.inspection.census import find_adapters
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("one/adapter_config.json", "two.safetensors", "notes.txt"):
    ...         file = pathlib.Path(folder, name)
    ...         file.parent.mkdir(exist_ok=True)
    ...         file.touch()
    ...     [path.name for path in find_adapters(folder)]
    ['one', 'two.safetensors']
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is no folder: a census is taken of the adapters under one")
    closed: list[Path] = []
    found: list[Path] = []
    for place, _, names in os.walk(root, onerror=lambda error: closed.append(Path(error.filename))):
        if not {PEFT_CONFIG, PEFT_WEIGHTS}.isdisjoint(names):
            found.append(Path(place))
        found.extend(Path(place, name) for name in names if name.endswith(".safetensors") and name != PEFT_WEIGHTS)
    return tuple(sorted(found + closed))


def adapter_row(path: str | PathLike[str], *, ranks: Sequence[int] = DEFAULT_RANKS) -> AdapterRow | None:
    """
    Report one adapter: what a census does for each.

    Parameters
    ----------
    path : path-like
        A PEFT folder, or a safetensors file.
    ranks : sequence of int
        Ranks to give variances and errors at.

    Returns
    -------
    AdapterRow or None
        None for a safetensors file without any LoRA factors. One layer was in memory at a time.

    Raises
    ------
    ValueError
        If the ranks are none.
    """
    asked = checked_ranks(ranks)
    where = Path(path).absolute()
    stamp = _stamp(where)
    try:
        if not (where.is_dir() or _holds_factors(where)):
            return None
        adapter = open_adapter(where)
    except (ValueError, OSError) as error:
        return AdapterRow(str(where), "" if _may_pass(error) else stamp, ranks=asked, failure=str(error))
    return _row(adapter, where, stamp, asked)


def _row(adapter: Adapter, where: Path, stamp: str, ranks: tuple[int, ...]) -> AdapterRow:
    layers: list[LayerReport] = []
    failures: dict[str, str] = {}
    for report in layer_reports(adapter, ranks=ranks, rules=()):
        if isinstance(report, LayerFailure):
            failures[report.name] = report.reason
        else:
            layers.append(report)
    failures |= adapter.unsupported
    row = AdapterRow(
        path=str(where),
        stamp=stamp,
        kind=adapter.kind,
        layers=len(layers),
        failed_layers=len(failures),
        not_low_rank=len(adapter.others),
        warnings=len(adapter.warnings),
        ranks=ranks,
        failure=next((f"{name}: {reason}" for name, reason in sorted(failures.items())), None),
    )
    return replace(row, **_figures(layers, ranks)) if layers else row


def _figures(layers: Sequence[LayerReport], ranks: tuple[int, ...]) -> dict[str, Any]:
    together = total(layers, 0, ranks, ())
    scalings = [layer.scaling for layer in layers if layer.scaling is not None]
    effective, stable = [layer.effective_rank for layer in layers], [layer.stable_rank for layer in layers]
    return {
        "parameters": together.adapter_parameters,
        "adapter_ranks": tuple(sorted({layer.rank for layer in layers if layer.rank is not None})),
        "smallest_scaling": min(scalings),
        "largest_scaling": max(scalings),
        "norm": together.norm,
        "effective_rank": median(effective),
        "largest_effective_rank": max(effective),
        "stable_rank": median(stable),
        "largest_stable_rank": max(stable),
        "rank_for_variance": together.rank_for_variance,
        "variance_captured": together.variance_captured,
        "best_error": together.best_error,
    }


def _holds_factors(file: Path) -> bool:
    tensors, _ = open_file(file)
    return is_kohya(tensors) or is_peft(tensors) or other_kind(tensors) is not None


def _stands(row: AdapterRow, here: dict[str, Path]) -> bool:
    # What lies elsewhere is another census's to judge.
    return row.path not in here or row.stamp == _stamp(here[row.path])


def _stamp(where: Path) -> str:
    folder, weights = (where, where / PEFT_WEIGHTS) if where.is_dir() else (where.parent, where)
    return " ".join(_file_stamp(file) for file in (weights, folder / PEFT_CONFIG))


def _file_stamp(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:
        return "absent"
    return f"{found.st_size}@{found.st_mtime_ns}"


def _may_pass(error: Exception) -> bool:
    """Whether the system, and not the file, is to blame; an absent file has a stamp that says so."""
    causes = (error, error.__cause__)
    return any(isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) for cause in causes)


def _as_they_come(
    function: Callable[[Path], AdapterRow | None], tasks: Iterable[Path], executor: Executor | None
) -> Iterator[tuple[Path, AdapterRow | None]]:
    if executor is None:
        yield from ((task, function(task)) for task in tasks)
        return
    finished: SimpleQueue[Future[AdapterRow | None]] = SimpleQueue()
    under_way: dict[Future[AdapterRow | None], Path] = {}
    following = iter(tasks)

    def hand_over(count: int) -> None:
        for task in islice(following, count):
            future = executor.submit(function, task)
            under_way[future] = task
            future.add_done_callback(finished.put)

    try:
        hand_over(_IN_FLIGHT)
        while under_way:
            future = finished.get()
            yield under_way.pop(future), future.result()
            hand_over(1)
    finally:
        for future in under_way:
            future.cancel()
