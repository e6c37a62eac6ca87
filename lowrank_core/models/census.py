"""A census of adapters: a row for every one under a folder, made on any executor, streamed to a file and resumed."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import TYPE_CHECKING, Any

from lowrank_core.models.adapters import open_adapter
from lowrank_core.models.files import open_file
from lowrank_core.models.inspection import DEFAULT_RANKS, checked_ranks, layer_reports
from lowrank_core.models.inspection_report import (
    VARIANCE_FRACTIONS,
    LayerFailure,
    LayerReport,
    total,
    variance_column,
)
from lowrank_core.models.kohya import is_kohya, other_kind
from lowrank_core.models.peft import PEFT_CONFIG, PEFT_WEIGHTS, is_peft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor, Future
    from os import PathLike

    from lowrank_core.models.layers import Adapter

# Enough to keep a large cluster busy, few enough that a hundred thousand adapters are not all handed over at once.
_IN_FLIGHT = 1024
# What every row in a file begins with; it tells a row cut short from another file's content.
_ROW_START = b'{"path": "'


@dataclass(frozen=True)
class AdapterRow:
    """
    One adapter in a census.

    What cannot be known is None, as the norm of an adapter that could not be read.

    Attributes
    ----------
    path : str
        The PEFT folder or kohya file, absolute.
    stamp : str
        Sizes and modification times of its files: a row stands for as long as they do. Empty where the system did not
        let the files be read, which another time may be different.
    kind : str or None
        "peft" or "kohya".
    layers, failed_layers : int
        How many layers are in the figures, and how many could not be read or are no product γBA.
    not_low_rank : int
        Tensors that no low-rank update carries.
    warnings : int
        How many warnings :func:`~lowrank_core.models.inspection.inspect` has about it.
    parameters : int
        Number of entries of all stored factors.
    adapter_ranks : tuple of int
        The ranks of its layers, each once, ascending.
    smallest_scaling, largest_scaling : float or None
        The effective scales γ.
    norm : float or None
        √ΣN² over the layers, scales included.
    effective_rank, largest_effective_rank, stable_rank, largest_stable_rank : float or None
        Median and largest over the layers.
    rank_for_variance : dict of float to int
        The least rank that, given to every layer alike, holds 90, 95 and 99 % of the variance.
    ranks : tuple of int
        The ranks asked for; every layer is taken at its own largest where that is less.
    variance_captured, best_error : tuple of float
        Of all layers together, at each of these ranks.
    failure : str or None
        Why it could not be read; where only some layers failed, the first of them and why.
    """

    path: str
    stamp: str
    kind: str | None = None
    layers: int = 0
    failed_layers: int = 0
    not_low_rank: int = 0
    warnings: int = 0
    parameters: int = 0
    adapter_ranks: tuple[int, ...] = ()
    smallest_scaling: float | None = None
    largest_scaling: float | None = None
    norm: float | None = None
    effective_rank: float | None = None
    largest_effective_rank: float | None = None
    stable_rank: float | None = None
    largest_stable_rank: float | None = None
    rank_for_variance: dict[float, int] | None = None
    ranks: tuple[int, ...] = ()
    variance_captured: tuple[float, ...] = ()
    best_error: tuple[float, ...] = ()
    failure: str | None = None


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
    >>> from lowrank_core.models.census import census
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
    kept = {} if jsonl is None else _resume(Path(jsonl), asked, {str(path): path for path in candidates})
    rows = [kept[str(path)] for path in candidates if str(path) in kept]
    missing = [path for path in candidates if str(path) not in kept]
    done = len(rows)
    with _appending(jsonl) as add:
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
    >>> from lowrank_core.models.census import find_adapters
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


def read_census(jsonl: str | PathLike[str]) -> tuple[AdapterRow, ...]:
    """
    Read the rows of a census from its file, finished or not.

    Parameters
    ----------
    jsonl : path-like
        The file; a last line that was cut short is left out.

    Returns
    -------
    tuple of AdapterRow
        In the file's order, which is that of their completion.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is no row of a census.
    """
    return _read_rows(Path(jsonl))[0]


def row_to_json(row: AdapterRow) -> dict[str, Any]:
    """
    Turn a row into plain JSON: dicts, lists, strings, finite numbers and None.

    Parameters
    ----------
    row : AdapterRow
        As :func:`census` gives it.

    Returns
    -------
    dict
        All of it, under the names of its attributes.
    """
    values = asdict(row)
    if row.rank_for_variance is not None:
        values["rank_for_variance"] = {f"{fraction:g}": rank for fraction, rank in row.rank_for_variance.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_table(rows: Sequence[AdapterRow]) -> list[dict[str, Any]]:
    """
    Turn rows into those of a flat table, one column a figure.

    Parameters
    ----------
    rows : sequence of AdapterRow
        Of one census.

    Returns
    -------
    list of dict
        All with the same keys in the same order; what a row does not have is None. Columns are named by the rank asked
        for, as "best_error_8"; several ranks of one adapter are one text, as "8 16".
    """
    return [_flat(row) for row in rows]


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


def _flat(row: AdapterRow) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row_to_json(row).items():
        if name == "rank_for_variance":
            needed = row.rank_for_variance or {}
            flat |= {variance_column(fraction): needed.get(fraction) for fraction in VARIANCE_FRACTIONS}
        elif name in {"variance_captured", "best_error"}:
            flat |= {f"{name}_{rank}": figure for rank, figure in zip_longest(row.ranks, value)}
        elif name == "adapter_ranks":
            flat[name] = " ".join(map(str, value))
        elif name != "ranks":
            flat[name] = value
    return flat


def _holds_factors(file: Path) -> bool:
    tensors, _ = open_file(file)
    return is_kohya(tensors) or is_peft(tensors) or other_kind(tensors) is not None


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


def _resume(jsonl: Path, ranks: tuple[int, ...], candidates: dict[str, Path]) -> dict[str, AdapterRow]:
    if not jsonl.is_file():
        return {}
    rows, whole = _read_rows(jsonl)
    other = next((row for row in rows if row.ranks != ranks), None)
    if other is not None:
        raise ValueError(
            f"{str(jsonl)!r} is a census with the ranks {_commas(other.ranks)}, and not {_commas(ranks)}: ask for "
            "its own, or give another file"
        )
    latest = {row.path: row for row in rows}
    kept = {
        path: row for path, row in latest.items() if path not in candidates or row.stamp == _stamp(candidates[path])
    }
    if not whole or len(kept) < len(rows):
        _rewrite(jsonl.resolve(), kept.values())
    return kept


def _read_rows(jsonl: Path) -> tuple[tuple[AdapterRow, ...], bool]:
    rows: list[AdapterRow] = []
    with jsonl.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and line.startswith(_ROW_START[: len(line)]):
                return tuple(rows), False
            try:
                rows.append(_row_from_json(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {str(jsonl)!r} is no row of a census: give the file of one, or a new name"
                ) from error
    return tuple(rows), True


def _row_from_json(line: bytes) -> AdapterRow:
    values = json.loads(line)
    if values.keys() != {field.name for field in fields(AdapterRow)}:
        raise ValueError("other columns than a census has")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if values["rank_for_variance"] is not None:
        values["rank_for_variance"] = {float(key): rank for key, rank in values["rank_for_variance"].items()}
    return AdapterRow(**values)


def _line(row: AdapterRow) -> bytes:
    return json.dumps(row_to_json(row), allow_nan=False).encode() + b"\n"


def _rewrite(jsonl: Path, rows: Iterable[AdapterRow]) -> None:
    temporary = jsonl.with_name(f".{jsonl.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(map(_line, rows))
        temporary.replace(jsonl)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _appending(jsonl: str | PathLike[str] | None) -> Iterator[Callable[[AdapterRow], None]]:
    if jsonl is None:
        yield lambda _row: None
        return
    with Path(jsonl).open("ab") as file:

        def add(row: AdapterRow) -> None:
            file.write(_line(row))
            file.flush()

        yield add


def _commas(ranks: tuple[int, ...]) -> str:
    return ",".join(map(str, ranks))
