"""A container: a kind of file that holds named arrays, as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

__all__ = ["Container", "Entry", "invalid_file", "unknown_steps"]


class Entry(NamedTuple):
    """One tensor of a file, not yet read.

    `dtype` is NumPy's or ml_dtypes' name where there is one, else the container's own. `read_as` is the dtype of the
    array that is read, where it is another: that of a quantised tensor is "float32". `offset` is where its bytes begin
    in the file, for containers that are read by it.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read_as: str = ""
    offset: int = 0


def unknown_steps(_path: Path, entry: Entry) -> NDArray[Any]:
    """Refuse a tensor whose steps of rounding are asked for: those of its type are not known."""
    raise ValueError(f"{entry.key!r} is stored as {entry.dtype}, of which the rounding is not known")


class Container(NamedTuple):
    """How files of one kind are recognised by their first bytes, opened and read.

    `stepped` are the quantised types that it knows each entry's step of rounding of, and `read_steps` reads these.
    """

    name: str
    recognises: Callable[[bytes], bool]
    open: Callable[[Path], tuple[list[Entry], dict[str, str]]]
    read: Callable[[Path, Sequence[Entry]], list[NDArray[Any]]]
    stepped: frozenset[str] = frozenset()
    read_steps: Callable[[Path, Entry], NDArray[Any]] = unknown_steps


def invalid_file(path: Path, container: str, reason: object) -> ValueError:
    """Return the error of a file that its own container cannot read."""
    return ValueError(
        f"{str(path)!r} is not a valid {container} file ({reason}): it may be cut short, damaged or of another format; "
        "fetch or save it again"
    )
