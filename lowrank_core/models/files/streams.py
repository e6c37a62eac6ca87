"""Safetensors files, written one tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.files.atomic import naming_full_disk
from lowrank_core.models.files.safetensors_file import STORED_NAMES

_LENGTH_BYTES = 8
# What an entry of the header takes beside its key: dtype, up to eight axes and two offsets of up to 20 digits.
_ENTRY_BYTES = 256
_METADATA_SLACK = 1024


class Stream(Protocol):
    """A file that is being written, of any container."""

    metadata: dict[str, str]

    def add(self, key: str, tensor: NDArray[Any], /) -> None:
        """Append a tensor."""


class TensorStream:
    """A safetensors file that is being written, with no tensor kept in memory.

    The header comes first in the file and names every tensor's offsets, which are known only at the end: space is
    reserved for it, and what it does not need is filled with the blanks that the format allows there. Entries may be
    added to `metadata` until the file is closed.
    """

    def __init__(self, file: FileIO, keys: Iterable[str], metadata: Mapping[str, str]) -> None:
        self.metadata = dict(metadata)
        self._size = 0
        self._file = file
        self._entries: dict[str, dict[str, Any]] = {}
        self._reserved = header_size(keys, metadata) - _LENGTH_BYTES
        self._write(memoryview(b" " * (_LENGTH_BYTES + self._reserved)))

    def add(self, key: str, tensor: NDArray[Any]) -> None:
        """Append a tensor; those of larger item size first, because readers map each at a multiple of its item size."""
        if key in self._entries:
            raise ValueError(named_twice(key))
        if self._size % tensor.dtype.itemsize:
            raise ValueError(f"{key!r} would not be aligned: tensors of larger item size are written first")
        # As bytes: NumPy's own buffers do not know bfloat16. Safetensors is little-endian everywhere.
        flat = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).reshape(-1)
        self._write(flat.view(np.uint8).data)
        self._entries[key] = {
            "dtype": STORED_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [self._size, self._size + flat.nbytes],
        }
        self._size += flat.nbytes

    def close(self) -> None:
        """Write the header and flush the file to the disk."""
        # Sorted, because safetensors returns the metadata of a file in an order that is random in each process.
        header = json.dumps({"__metadata__": dict(sorted(self.metadata.items())), **self._entries}).encode()
        if len(header) > self._reserved:
            raise ValueError(f"the header takes {len(header)} bytes, and {self._reserved} are reserved for it")
        self._file.seek(0)
        self._write(memoryview(self._reserved.to_bytes(_LENGTH_BYTES, "little") + header))
        os.fsync(self._file.fileno())

    def _write(self, content: memoryview) -> None:
        # The system may write a part, as it does of more than 2 GiB and where the disk is almost full.
        with naming_full_disk(Path(os.fsdecode(self._file.name)), self._file.tell() + content.nbytes):
            while content.nbytes:
                content = content[self._file.write(content) :]


def named_twice(key: str) -> str:
    """Return what is wrong where two tensors have one name."""
    return f"{key!r} would be written twice: two layers have one name"


def header_size(keys: Iterable[str], metadata: Mapping[str, str]) -> int:
    """Return the bytes that a file has before its tensors of these names: the header and its length."""
    reserved = sum(len(json.dumps(key)) + _ENTRY_BYTES for key in keys)
    reserved += len(json.dumps(dict(metadata))) + _METADATA_SLACK
    return _LENGTH_BYTES + reserved + -reserved % _LENGTH_BYTES


@contextmanager
def stream_tensors(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> Iterator[TensorStream]:
    """Yield a stream to a new file for tensors of these names, not all of which have to come; at the end, close it."""
    # Without a buffer, which Python would write when the file is closed, where a full disk has no name.
    with path.open("wb", buffering=0) as file:
        stream = TensorStream(file, keys, metadata)
        yield stream
        stream.close()
