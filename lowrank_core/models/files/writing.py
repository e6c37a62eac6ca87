"""Safetensors files and adapter folders that appear whole or not at all, written one tensor at a time."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_core.models.files.tensors import FLOATING, INTEGER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray

STORED_NAMES = {name: stored for stored, name in (FLOATING | INTEGER).items()}
"""What safetensors calls a NumPy dtype."""

_LENGTH_BYTES = 8
# What an entry of the header takes beside its key: dtype, up to eight axes and two offsets of up to 20 digits.
_ENTRY_BYTES = 256
_METADATA_SLACK = 1024
_README = "README.md"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class TensorStream:
    """
    A safetensors file that is being written, one tensor after the other, with none of them held.

    A safetensors file begins with a header that names every tensor and its place, which is known only at the end:
    room is left for it, and what of it is not needed stays as the blanks that the format allows there.

    Attributes
    ----------
    metadata : dict of str to str
        The file's remarks about itself; may grow by a few entries until the file is closed.
    size : int
        Bytes of tensors written so far.
    """

    def __init__(self, file: BinaryIO, keys: Iterable[str], metadata: Mapping[str, str]) -> None:
        self.metadata = dict(metadata)
        self.size = 0
        self._file = file
        self._entries: dict[str, dict[str, Any]] = {}
        room = sum(len(json.dumps(key)) + _ENTRY_BYTES for key in keys)
        room += len(json.dumps(self.metadata)) + _METADATA_SLACK
        self._room = room + -room % _LENGTH_BYTES
        file.write(b" " * (_LENGTH_BYTES + self._room))

    def add(self, key: str, tensor: NDArray[Any]) -> None:
        """
        Append a tensor.

        Parameters
        ----------
        key : str
            Its name, one of those that the stream was opened for.
        tensor : ndarray
            Any shape, in a dtype that safetensors has. Tensors of one file are given with the largest item size
            first, or all of one: a reader that maps the file needs each at a multiple of its item size.

        Raises
        ------
        ValueError
            If the name was given before, or the tensor would not lie at a multiple of its item size.
        """
        if key in self._entries:
            raise ValueError(f"{key!r} would be written twice: two layers have one name")
        if self.size % tensor.dtype.itemsize:
            raise ValueError(f"{key!r} would not be aligned: tensors of larger item size are written first")
        # As bytes: NumPy's own buffers know no bfloat16. Safetensors is little-endian everywhere.
        flat = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).reshape(-1)
        self._file.write(flat.view(np.uint8).data)
        self._entries[key] = {
            "dtype": STORED_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [self.size, self.size + flat.nbytes],
        }
        self.size += flat.nbytes

    def close(self) -> None:
        """
        Write the header and bring the file to the disk.

        Raises
        ------
        ValueError
            If the header does not fit the room left for it.
        """
        header = json.dumps({"__metadata__": self.metadata, **self._entries}).encode()
        if len(header) > self._room:
            raise ValueError(f"the header takes {len(header)} bytes, and {self._room} were left for it")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(_LENGTH_BYTES, "little") + header)
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def stream_tensors(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> Iterator[TensorStream]:
    """
    Write a safetensors file one tensor at a time.

    Parameters
    ----------
    path : Path
        The file; what was there is lost. :func:`replacing` gives a path that can be lost.
    keys : iterable of str
        The names of all tensors that may come; not all have to.
    metadata : mapping of str to str
        The file's remarks about itself, as ``{"format": "pt"}``.

    Yields
    ------
    TensorStream
        Its :meth:`~TensorStream.add` takes a tensor; leaving the context writes the header.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import load_file
    >>> from lowrank_core.models.files.writing import stream_tensors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "two.safetensors")
    ...     with stream_tensors(path, ["a", "b"], {}) as stream:
    ...         stream.add("a", np.ones((2, 3), np.float32))
    ...         stream.add("b", np.zeros(1, np.float32))
    ...     sorted((key, tensor.shape) for key, tensor in load_file(path).items())
    [('a', (2, 3)), ('b', (1,))]
    """
    with path.open("wb") as file:
        stream = TensorStream(file, keys, metadata)
        yield stream
        stream.close()


def check_replaceable(path: Path, own: Iterable[str] | None, *, force: bool) -> None:
    """
    Refuse, before any work is done, an output that could not or should not be written.

    Parameters
    ----------
    path : Path
        What will be written.
    own : iterable of str or None
        The names of the files that a folder will hold; None for a single file.
    force : bool
        Whether what is there may be replaced.

    Raises
    ------
    FileNotFoundError
        If there is no folder to write into.
    FileExistsError
        If something is there and `force` is not given, or it is something that is never replaced: a folder where a
        file would come or the reverse, or a folder that holds other files than an adapter's.
    PermissionError
        If the folder may not be written to.
    """
    final = path.resolve()
    if not final.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into: make it first")
    if not os.access(final.parent, os.W_OK):
        raise PermissionError(f"the folder {str(path.parent)!r} may not be written to: choose another")
    if not final.exists():
        return
    if final.is_dir() != (own is not None):
        what, wanted = ("folder", "file") if final.is_dir() else ("file", "folder")
        raise FileExistsError(f"{str(path)!r} is a {what}, where a {wanted} is to be written: choose another name")
    others = sorted(file.name for file in final.iterdir() if file.name not in {*own, _README}) if own else []
    if others:
        raise FileExistsError(
            f"{str(path)!r} holds other files than an adapter's ({', '.join(others[:3])}), which would be lost: give "
            "the name of a new folder"
        )
    if not force:
        raise FileExistsError(f"{str(path)!r} exists already: --force (force=True) replaces it, or choose another name")


@contextmanager
def replacing(path: Path, *, folder: bool) -> Iterator[Path]:
    """
    Give a path to write to, which becomes `path` by renaming if all went well and disappears if it did not.

    Parameters
    ----------
    path : Path
        A file or folder; :func:`check_replaceable` says whether it may be replaced.
    folder : bool
        Whether it is a folder, which is made here. A README.md in the one that it replaces is kept.

    Yields
    ------
    Path
        A new file's name or a new, empty folder, beside `path` and hidden.

    Notes
    -----
    A killed process leaves the old file or folder whole. Files are replaced in one step, and so are folders on Linux;
    elsewhere the old folder moves aside before the new one comes, and is found under a hidden name beside it if the
    process dies in between.
    """
    final = path.resolve()
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    _remove(temporary)
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and final.exists():
            if (final / _README).is_file():
                shutil.copy2(final / _README, temporary / _README)
            _swap(temporary, final)
        else:
            temporary.replace(final)
    finally:
        _remove(temporary)


def _swap(new: Path, old: Path) -> None:
    """Exchange two folders; `new` is then the one that was replaced."""
    if _exchange(new, old):
        return
    aside = new.with_name(new.name.removesuffix(".part") + ".old")
    old.replace(aside)
    try:
        new.replace(old)
    except OSError:
        aside.replace(old)
        raise
    shutil.rmtree(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, where the system can: Linux, on most of its file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    status = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return int(status) == 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
