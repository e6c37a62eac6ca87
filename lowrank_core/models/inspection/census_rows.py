"""The rows of a census: as values and as a table, and in the file from which a later run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from lowrank_core.models.files.atomic import explaining_full_disk, replacing
from lowrank_core.models.inspection.report import rank_columns, variance_columns
from lowrank_core.models.results import to_json

# What every row in a file begins with; it tells a row cut short from another file's content.
_ROW_START = b'{"path": "'


@dataclass(frozen=True)
class AdapterRow:
    """One adapter in a census.

    What cannot be known is None, as the norm of an adapter that could not be read.

    Attributes
    ----------
    path : str
        The PEFT folder or kohya file, absolute.
    stamp : str
        Sizes and modification times of its files: a row is valid while they are unchanged. Empty where the system did
        not let the files be read, which another time may be different.
    format : str or None
        The name of its format, as "peft".
    layers, failed_layers : int
        How many layers are in the figures, and how many could not be read or are not a product γBA.
    not_low_rank, warnings : int
        How many tensors are not in any low-rank update, and how many warnings :func:`~lowrank_core.models.inspect` has.
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
        The least rank that, given to every layer alike, captures 90, 95 and 99 % of the variance.
    ranks : tuple of int
        The requested ranks; every layer is taken at its own largest where that is less.
    variance_captured, best_error : tuple of float
        Of all layers together, at each of these ranks.
    complete : bool
        Whether the layers are all that the adapter has.
    failure : str or None
        Why it could not be read; where only some layers failed, the first of them and why.
    """

    path: str
    stamp: str
    format: str | None = None
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
    complete: bool = False
    failure: str | None = None


def read_census(jsonl: str | PathLike[str]) -> tuple[AdapterRow, ...]:
    """Read the rows of a census from its file, finished or not.

    Parameters
    ----------
    jsonl : path-like
        The file; a last line that was cut short is skipped.

    Returns
    -------
    tuple of AdapterRow
        In the file's order, which is that of their completion.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is not a row of a census.

    See Also
    --------
    lowrank_core.models.census : What writes it.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import census, read_census
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     factors = {"a.lora_down.weight": np.eye(2, 4), "a.lora_up.weight": np.eye(3, 2)}
    ...     save_file(factors, pathlib.Path(folder, "one.safetensors"))
    ...     rows = census(folder, jsonl=pathlib.Path(folder, "census.jsonl"))
    ...     read_census(pathlib.Path(folder, "census.jsonl")) == rows
    True
    """
    return _read_rows(Path(jsonl))[0]


def to_table(rows: Sequence[AdapterRow]) -> list[dict[str, Any]]:
    """Convert rows to those of a flat table with a column for each figure and requested rank, as "best_error_8"."""
    return [_flat(row) for row in rows]


def resume(jsonl: Path, ranks: tuple[int, ...], is_current: Callable[[AdapterRow], bool]) -> dict[str, AdapterRow]:
    """Read an earlier run's rows by path, and remove from the file those that are cut short, repeated or outdated."""
    if not jsonl.is_file():
        return {}
    rows, complete = _read_rows(jsonl)
    other = next((row for row in rows if row.ranks != ranks), None)
    if other is not None:
        raise ValueError(
            f"{str(jsonl)!r} is a census with the ranks {_commas(other.ranks)}, and not {_commas(ranks)}: ask for "
            "those, or give another file"
        )
    latest = {row.path: row for row in rows}
    kept = {path: row for path, row in latest.items() if is_current(row)}
    if not complete or len(kept) < len(rows):
        with replacing(jsonl, folder=False) as temporary:
            temporary.write_bytes(b"".join(map(_line, kept.values())))
    return kept


@contextmanager
def appending(jsonl: str | PathLike[str] | None) -> Iterator[Callable[[AdapterRow], None]]:
    """Yield a function that adds a row to a census's file, where there is one, and has written it when it returns."""
    if jsonl is None:
        yield lambda _row: None
        return
    path = Path(jsonl)
    with explaining_full_disk(path, path), path.open("ab") as file:

        def append(row: AdapterRow) -> None:
            file.write(_line(row))
            file.flush()

        yield append


def _flat(row: AdapterRow) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in vars(row).items():
        if name == "rank_for_variance":
            flat |= variance_columns(value or {})
        elif name in {"variance_captured", "best_error"}:
            flat |= rank_columns(name, row.ranks, value)
        elif name == "adapter_ranks":
            flat[name] = " ".join(map(str, value))
        elif name != "ranks":
            flat[name] = value
    return flat


def _read_rows(jsonl: Path) -> tuple[tuple[AdapterRow, ...], bool]:
    """Return the rows of a file, and whether the last one is complete."""
    rows: list[AdapterRow] = []
    with jsonl.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and line.startswith(_ROW_START[: len(line)]):
                return tuple(rows), False
            try:
                rows.append(_row_from_json(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {str(jsonl)!r} is not a row of a census: give the file of one, or a new name"
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
    return json.dumps(to_json(row), allow_nan=False).encode() + b"\n"


def _commas(ranks: tuple[int, ...]) -> str:
    return ",".join(map(str, ranks))
