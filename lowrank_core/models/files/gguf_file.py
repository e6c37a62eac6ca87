"""GGUF files of llama.cpp: its header read here, quantised tensors converted by the gguf package.

The package's own reader parses a whole header, vocabulary included, at every opening, and counts as far as a header
tells it to: one that claims an array of 2⁶² numbers keeps it counting.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import as_dtype
from lowrank_core.models.files.container import Container, Entry, invalid_file, unknown_steps

__all__ = ["GGUF", "gguf_package"]

_NAME = "GGUF"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT, _ALIGNMENT_KEY = 32, "general.alignment"
_MAX_AXES = 4
_TOO_MANY = 2**63
# Types of metadata, by their number in the file; `struct`'s letters for the numbers.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# The least that an entry takes: an empty name, its type and one byte; or an empty name, no axes, its type and offset.
_LEAST_FIELD, _LEAST_TENSOR, _LEAST_STRING = 13, 24, 8
_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
_TYPES = {name: stored for stored, name in _PLAIN.items()}
# Types whose numbers are multiples of a scale: the bytes of a block that have the lowest bits of its numbers, and a
# byte in which all of these are 1.
_LOWEST_BITS = {
    "Q4_0": (2, 18, 0x11),
    "Q4_1": (4, 20, 0x11),
    "Q5_0": (6, 22, 0x11),
    "Q5_1": (8, 24, 0x11),
    "Q8_0": (2, 34, 0x01),
    "Q2_K": (16, 80, 0x55),
    "Q3_K": (32, 96, 0x55),
    "Q4_K": (16, 144, 0x11),
    "Q5_K": (48, 176, 0x11),
    "Q6_K": (0, 128, 0x11),
}


class _Header:
    """A position in the header of a mapped file, and what is read from there on."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.position = len(_MAGIC)

    def skip(self, count: int) -> int:
        """Return the position, and move beyond `count` bytes that have to be there."""
        start = self.position
        if count > len(self._content) - start:
            raise ValueError(f"{count} bytes from byte {start} on are beyond its end")
        self.position += count
        return start

    def number(self, letter: str) -> Any:
        """Read one little-endian number of this `struct` letter."""
        layout = struct.Struct("<" + letter)
        return layout.unpack_from(self._content, self.skip(layout.size))[0]

    def count(self, least: int) -> int:
        """Read how many things follow that take at least so many bytes each."""
        count = int(self.number("Q"))
        if count * least > len(self._content) - self.position:
            raise ValueError(f"{count} entries from byte {self.position} on are beyond its end")
        return count

    def text(self) -> str:
        """Read a string."""
        length = int(self.number("Q"))
        start = self.skip(length)
        return self._content[start : start + length].decode("utf-8")


def _recognises(first: bytes) -> bool:
    return first.startswith(_MAGIC)


def _open(path: Path) -> tuple[list[Entry], dict[str, str]]:
    gguf = gguf_package()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_header(content, gguf)
    except (OSError, ValueError) as error:
        raise invalid_file(path, _NAME, error) from error


def _read_header(content: mmap.mmap, gguf: ModuleType) -> tuple[list[Entry], dict[str, str]]:
    header = _Header(content)
    version = header.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in _VERSIONS
        raise ValueError("its numbers are big-endian" if swapped else f"it is of version {version}, not 2 or 3")
    tensor_count = header.count(_LEAST_TENSOR)
    metadata: dict[str, str] = {}
    for _ in range(header.count(_LEAST_FIELD)):
        key = header.text()
        if key in metadata:
            raise ValueError(f"its header names {key!r} twice")
        value = _read_value(header, header.number("I"))
        if value is not None:
            metadata[key] = value
    described = [_read_description(header, gguf) for _ in range(tensor_count)]
    begin = header.position + -header.position % _alignment(metadata)
    entries = {entry.key: entry._replace(offset=begin + entry.offset) for entry in described}
    if len(entries) < len(described):
        raise ValueError("its header names a tensor twice")
    for entry in entries.values():
        if entry.offset + _byte_count(entry, gguf) > len(content):
            raise ValueError(f"{entry.key!r} is beyond its end")
    return list(entries.values()), metadata


def _read_value(header: _Header, kind: int) -> str | None:
    """Return a number or a string of the metadata as text, None for an array, which is passed over."""
    if kind == _STRING:
        return header.text()
    if kind in _NUMBERS:
        return str(header.number(_NUMBERS[kind]))
    if kind != _ARRAY:
        raise ValueError(f"its metadata has a value of the unknown type {kind}")
    inner = header.number("I")
    if inner in _NUMBERS:
        size = struct.calcsize("<" + _NUMBERS[inner])
        header.skip(size * header.count(size))
    elif inner == _STRING:
        for _ in range(header.count(_LEAST_STRING)):
            header.skip(header.number("Q"))
    else:
        raise ValueError(f"its metadata has an array of the unknown type {inner}")
    return None


def _read_description(header: _Header, gguf: ModuleType) -> Entry:
    """Return a tensor's name, shape, type, and its offset from the first one's."""
    key = header.text()
    axes = header.number("I")
    if axes > _MAX_AXES:
        raise ValueError(f"{key!r} has {axes} axes, and at most {_MAX_AXES} are possible")
    # The axis along which entries are contiguous comes first in the file.
    shape = tuple(header.number("Q") for _ in range(axes))[::-1]
    stored = gguf.GGMLQuantizationType(header.number("I"))
    offset = header.number("Q")
    if math.prod(max(side, 1) for side in shape) >= _TOO_MANY:
        raise ValueError(f"{key!r} has a shape of {shape}, which no memory can address")
    if math.prod(shape[-1:]) % gguf.GGML_QUANT_SIZES[stored][0]:
        raise ValueError(f"{key!r} has a shape of {shape}, whose rows are not whole blocks of {stored.name}")
    name = _PLAIN.get(stored.name)
    return Entry(key, shape, name or stored.name, "" if name else "float32", offset)


def _alignment(metadata: dict[str, str]) -> int:
    text = metadata.get(_ALIGNMENT_KEY, str(_ALIGNMENT))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"its {_ALIGNMENT_KEY} is {text!r}")
    return int(text)


def _read(path: Path, entries: Sequence[Entry]) -> list[NDArray[Any]]:
    gguf = gguf_package()
    return [_read_tensor(path, entry, gguf) for entry in entries]


def _read_tensor(path: Path, entry: Entry, gguf: ModuleType) -> NDArray[Any]:
    content = _read_bytes(path, entry, gguf)
    if not entry.read_as:
        return content.view(as_dtype(entry.dtype).newbyteorder("<")).reshape(entry.shape)
    return _dequantised(content, entry, gguf)


def _read_bytes(path: Path, entry: Entry, gguf: ModuleType) -> NDArray[np.uint8]:
    count = _byte_count(entry, gguf)
    content = np.fromfile(path, np.uint8, count, offset=entry.offset)
    if len(content) < count:
        raise invalid_file(path, _NAME, f"{entry.key!r} is beyond its end")
    return content


def _dequantised(content: NDArray[np.uint8], entry: Entry, gguf: ModuleType) -> NDArray[np.float32]:
    """Return the weights that the bytes of a quantised tensor stand for."""
    if not content.size:
        return np.empty(entry.shape, np.float32)
    stored = _stored_type(entry, gguf)
    rows = content.reshape(gguf.quant_shape_to_byte_shape(entry.shape, stored))
    try:
        # A scale may be any half-precision number, infinity too, which is refused where the weights are used.
        with np.errstate(all="ignore"):
            weights: NDArray[np.float32] = gguf.dequantize(rows, stored)
    except NotImplementedError as error:
        raise ValueError(
            f"{entry.key!r} is stored as {entry.dtype}, which the installed gguf package does not dequantise"
        ) from error
    return weights.reshape(entry.shape)


def _read_steps(path: Path, entry: Entry) -> NDArray[np.float32]:
    """Read the step of each entry: what one more in its stored number adds, as the gguf package dequantises it."""
    if entry.dtype not in _LOWEST_BITS:
        return unknown_steps(path, entry)
    gguf = gguf_package()
    start, stop, ones = _LOWEST_BITS[entry.dtype]
    blocks = _read_bytes(path, entry, gguf).reshape(-1, gguf.GGML_QUANT_SIZES[_stored_type(entry, gguf)][1])
    blocks[:, start:stop] = 0
    weights = _dequantised(blocks.reshape(-1), entry, gguf)
    blocks[:, start:stop] = ones
    with np.errstate(invalid="ignore"):
        steps: NDArray[np.float32] = np.abs(_dequantised(blocks.reshape(-1), entry, gguf) - weights)
    return steps


def _byte_count(entry: Entry, gguf: ModuleType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[_stored_type(entry, gguf)]
    return math.prod(entry.shape) // int(block) * int(size)


def _stored_type(entry: Entry, gguf: ModuleType) -> Any:
    return gguf.GGMLQuantizationType[_TYPES.get(entry.dtype, entry.dtype)]


def gguf_package() -> ModuleType:
    """Return the gguf package; an error that says how to install it where it is missing."""
    try:
        import gguf
        import ml_dtypes  # noqa: F401 - of bfloat16 and 8-bit floats
    except ImportError as error:
        raise ImportError(
            f'a GGUF file needs {error.name}, which is not installed: pip install "lowrank_core[gguf]"'
        ) from error
    return gguf


GGUF = Container(_NAME, _recognises, _open, _read, frozenset(_LOWEST_BITS), _read_steps)
