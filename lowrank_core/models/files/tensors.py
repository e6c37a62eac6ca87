"""Tensors of files of any container, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS, INTEGERS, as_dtype
from lowrank_core.models.files.container import Container, Entry
from lowrank_core.models.files.encodings import Encoding, QuantisedBlocks
from lowrank_core.models.files.gguf_file import GGUF
from lowrank_core.models.files.recognition import read_beginning
from lowrank_core.models.files.safetensors_file import SAFETENSORS
from lowrank_core.models.files.torch_file import TORCH
from lowrank_core.models.norms import frobenius_norm, row_blocks
from lowrank_core.rounding_noise import ulps

CONTAINERS: tuple[Container, ...] = (GGUF, SAFETENSORS, TORCH)
"""Kinds of files; what none of them recognises is read as a safetensors file, whose error then says what is wrong."""

_STEPPED = frozenset[str]().union(*(container.stepped for container in CONTAINERS))

PLAIN_WEIGHTS = f"plain weights are {', '.join(FLOATS)}; a quantised model has to be dequantised first"
"""What to tell the owner of any other type."""

# Entries of a weight in memory at a time for its norm: in a core's own cache.
_NORM_ENTRIES = 1 << 17
COARSE_DTYPES = tuple(name for name, dtype in FLOATS.items() if dtype.eps > FLOATS["float32"].eps)
"""The stored dtypes whose steps are of the size of fine-tuning updates."""


class Part(NamedTuple):
    """Which entries of a tensor of this shape are meant: those of each axis, an axis with a number being dropped."""

    shape: tuple[int, ...]
    entries: tuple[range | int, ...]

    @classmethod
    def all(cls, shape: tuple[int, ...]) -> Part:
        """Return the part that is the whole tensor."""
        return cls(shape, tuple(map(range, shape)))

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return this part of an array as a copy."""
        return np.array(self.view_of(array))

    def view_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return this part of an array as a view."""
        index = (each if isinstance(each, int) else slice(each.start, each.stop, each.step) for each in self.entries)
        return array[tuple(index)]


@dataclass(frozen=True, eq=False)
class ArrayInMemory:
    """The array of a tensor that is in no file; equal to itself alone, as a place in a file is."""

    values: NDArray[Any]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, or a part of one, not yet read.

    A plain value that can be sent to another process: it has a path and a key, never an open file. One in memory has
    its array with it, and `file` is what its source is called. `dtype` is NumPy's
    or ml_dtypes' name ("float32", "bfloat16", "int64") where there is one, else the file's own ("Q8_0"). `read_as` is
    the dtype of the array that is read, where it is another, and `offset` where the tensor's bytes begin, in files that
    are read by it. `part` says which entries of a larger tensor it is. `quantised` says what a quantised weight is
    stored as; `dtype` is then the storage in words ("int8 × row scales").
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    read_as: str = ""
    offset: int = 0
    part: Part | None = None
    quantised: Quantisation | None = None
    memory: ArrayInMemory | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields for another process, with an absolute path: its working folder may differ."""
        return vars(self) if self.memory is not None else vars(self) | {"file": self.file.absolute()}

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def array_dtype(self) -> str:
        """Dtype of the array that is read: the stored one, or "float32" for a type that is dequantised."""
        return self.read_as or self.dtype

    @property
    def is_floating(self) -> bool:
        """Whether the array that is read is one of weights: of 64 to 8 bits, in floating point."""
        return self.array_dtype in FLOATS

    @property
    def is_integer(self) -> bool:
        """Whether it is a counter, an index or a mask."""
        return self.array_dtype in INTEGERS

    @property
    def is_readable(self) -> bool:
        """Whether the tensor can be read: floating point, integers, bool, and what its container dequantises."""
        return self.is_floating or self.is_integer

    @property
    def is_mappable(self) -> bool:
        """Whether the stored bytes are those of the array, so that a part can be read alone."""
        return (bool(self.offset) or self.memory is not None) and not self.is_dequantised

    @property
    def refusal(self) -> str:
        """Why a quantised weight cannot be dequantised; "" where it can, and of any other tensor."""
        return self.quantised.refusal if self.quantised else ""

    @property
    def is_dequantised(self) -> bool:
        """Whether the array that is read is computed from stored numbers of another dtype."""
        return bool(self.read_as)

    @property
    def is_coarse(self) -> bool:
        """Whether the steps of the stored numbers are known, and of the size of fine-tuning updates."""
        return self.quantised is not None or self.dtype in (*COARSE_DTYPES, *_STEPPED)

    def entry(self, shape: tuple[int, ...]) -> Entry:
        """Return the tensor as its container knows it, with this shape."""
        return Entry(self.key, shape, self.dtype, self.read_as, self.offset)

    def along(self, axis: int, start: int, stop: int, step: int = 1) -> StoredTensor:
        """Return the part of this tensor that consists of such entries of one axis."""
        return self._with_entries(axis, lambda entries: entries[start:stop:step])

    def at(self, index: int) -> StoredTensor:
        """Return the part at an index of the first axis, without that axis."""
        return self._with_entries(0, lambda entries: entries[index])

    def _with_entries(self, axis: int, choose: Callable[[range], range | int]) -> StoredTensor:
        part = self.part or Part.all(self.shape)
        places = [place for place, each in enumerate(part.entries) if isinstance(each, range)]
        entries = list(part.entries)
        entries[places[axis]] = choose(cast("range", entries[places[axis]]))
        shape = tuple(len(each) for each in entries if isinstance(each, range))
        return replace(self, shape=shape, part=Part(part.shape, tuple(entries)))

    def read(self) -> NDArray[Any]:
        """Read the tensor as a copy, in its stored dtype or dequantised to float32."""
        return read_tensors([self])[0]

    def read_with_steps(self, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Read the tensor once, as a matrix, and each entry's step of rounding, None where the dtype says it."""
        if self.quantised is None:
            return self.read().reshape(shape), _read_steps(self, shape) if self.read_as else None
        quantised, part = _quantised_part(self.quantised, self.part)
        blocks = quantised.read()
        both = blocks.values(), blocks.steps()
        values, steps = both if part is None else map(part.of, both)
        return values.reshape(shape), steps.reshape(shape)


@dataclass(frozen=True)
class Quantisation:
    """The tensors that a quantised weight is stored as, and their encoding; or why they cannot be dequantised."""

    parts: tuple[StoredTensor, ...] = ()
    encoding: Encoding | None = None
    refusal: str = ""

    def read(self) -> QuantisedBlocks:
        """Read the parts, not yet dequantised."""
        if self.encoding is None:
            raise ValueError(self.refusal)
        return self.encoding.unpack(read_tensors(self.parts))


@dataclass(frozen=True)
class JoinedTensor:
    """Several tensors as one, the rows of the first before those of the next; not yet read."""

    parts: tuple[StoredTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """What the parts are stored in; all, where they differ."""
        return " and ".join(dict.fromkeys(part.dtype for part in self.parts))

    @property
    def array_dtype(self) -> str:
        """Dtype of the array that is read: that of the parts, or one that has the numbers of all."""
        names = {part.array_dtype for part in self.parts}
        return names.pop() if len(names) == 1 else "float64" if "float64" in names else "float32"

    @property
    def is_floating(self) -> bool:
        """Whether all parts are weights."""
        return all(part.is_floating for part in self.parts)

    @property
    def is_readable(self) -> bool:
        """Whether all parts can be read."""
        return all(part.is_readable for part in self.parts)

    @property
    def is_dequantised(self) -> bool:
        """Whether a part is dequantised as it is read."""
        return any(part.is_dequantised for part in self.parts)

    @property
    def is_coarse(self) -> bool:
        """Whether the steps of a part are of the size of fine-tuning updates."""
        return any(part.is_coarse for part in self.parts)

    def read(self) -> NDArray[Any]:
        """Read the parts, and return them as one array."""
        return self._joined(read_tensors(self.parts))

    def read_with_steps(self, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Read the parts once, as one matrix, and each entry's step of rounding, None where one dtype says it."""
        both = [part.read_with_steps(as_matrix(part.shape)) for part in self.parts]
        whole = self._joined([array for array, _ in both]).reshape(shape)
        if all(steps is None and array.dtype == whole.dtype for array, steps in both):
            return whole, None
        return whole, np.concatenate([ulps(array) if steps is None else steps for array, steps in both])

    def _joined(self, arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
        # NumPy finds no dtype for bfloat16 beside float16.
        return np.concatenate([array.astype(as_dtype(self.array_dtype), copy=False) for array in arrays])


Weight = StoredTensor | JoinedTensor
"""A weight of a checkpoint: a tensor, a part of one, or several of them."""


def open_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return what a file of any container has: its tensors by name, in alphabetical order, and its metadata."""
    entries, metadata = _container(path).open(path)
    return {entry.key: StoredTensor(path, *entry) for entry in sorted(entries)}, metadata


def read_tensors(tensors: Iterable[StoredTensor]) -> list[NDArray[Any]]:
    """Read tensors in the order given, opening each file once.

    No file is kept open: pages of a mapped file count into the process's memory for as long as it is mapped.
    """
    wanted = list(tensors)
    for tensor in wanted:
        if not tensor.is_readable:
            raise ValueError(f"{tensor.key!r} is stored as {tensor.dtype}: {tensor.refusal or PLAIN_WEIGHTS}")
    apart = (tensor for tensor in wanted if tensor.part or tensor.quantised or tensor.memory or _is_plain(tensor))
    arrays = {tensor: _read_one(tensor) for tensor in apart}
    whole = [tensor for tensor in wanted if tensor not in arrays]
    for path in dict.fromkeys(tensor.file for tensor in whole):
        own = [tensor for tensor in whole if tensor.file == path]
        entries = [tensor.entry(tensor.shape) for tensor in own]
        arrays.update(zip(own, _container(path).read(path, entries), strict=True))
    return [arrays[tensor] for tensor in wanted]


def _read_one(tensor: StoredTensor) -> NDArray[Any]:
    """Read a part of a tensor, or a quantised one; no more than its entries, where these are the file's bytes."""
    if tensor.quantised:
        quantised, rest = _quantised_part(tensor.quantised, tensor.part)
        try:
            values = quantised.read().values()
        except ValueError as error:
            raise ValueError(f"{tensor.key!r}, stored as {tensor.dtype}, cannot be read: {error}") from error
        return values if rest is None else rest.of(values)
    if _is_plain(tensor):
        return next(_stored_blocks(tensor, [slice(0, tensor.shape[0])]))
    part = tensor.part or Part.all(tensor.shape)
    if tensor.memory is not None:
        return part.of(tensor.memory.values)
    return part.of(replace(tensor, shape=part.shape, part=None).read())


def _is_plain(tensor: StoredTensor) -> bool:
    """Whether a tensor is an array of bytes in its file or in memory."""
    return tensor.is_mappable and bool(tensor.shape) and bool(tensor.size)


def _stored_blocks(tensor: StoredTensor, blocks: Iterable[slice]) -> Iterator[NDArray[Any]]:
    """Yield consecutive rows of a plain tensor, of these lengths, as arrays of their own."""
    if tensor.memory is not None:
        values = tensor.memory.values if tensor.part is None else tensor.part.view_of(tensor.memory.values)
        # Copies, as from a file: what is given is never modified.
        yield from (np.array(values[rows]) for rows in blocks)
        return
    stored, begin = as_dtype(tensor.dtype).newbyteorder("<"), tensor.offset
    try:
        if tensor.part is not None:
            mapped = np.memmap(tensor.file, stored, "r", tensor.offset, tensor.part.shape)
            view = tensor.part.view_of(mapped)
            if not view.flags.c_contiguous:
                yield from (np.array(view[rows]) for rows in blocks)
                return
            begin += view.ctypes.data - mapped.ctypes.data
            del mapped, view
        # Read, not mapped: to map a page takes several times as long as to copy it, and mapped pages count as memory.
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(begin)
            for rows in blocks:
                block = np.empty((rows.stop - rows.start, *tensor.shape[1:]), stored)
                _fill(block.reshape(-1).view(np.uint8).data, file)
                yield block
    except (OSError, ValueError) as error:
        raise ValueError(f"{tensor.key!r} cannot be read from {str(tensor.file)!r}: {error}") from error


def _fill(buffer: memoryview, file: RawIOBase) -> None:
    """Read a whole buffer, for which the system may need several calls."""
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise ValueError(f"it ends {len(buffer)} bytes too early")
        buffer = buffer[count:]


def read_blocks(weight: Weight, entries: int = 1 << 22) -> Iterator[NDArray[Any]]:
    """Yield consecutive rows of a weight, of about so many entries; only these in memory, where its file allows it."""
    if isinstance(weight, StoredTensor) and _is_plain(weight):
        yield from _stored_blocks(weight, row_blocks(weight.shape, entries))
    else:
        whole = np.atleast_1d(weight.read())
        yield from (whole[rows] for rows in row_blocks(whole.shape, entries))


def weight_norm(weight: Weight) -> float:
    """Read a weight, a block of rows at a time, and return its Frobenius norm."""
    return math.hypot(*map(frobenius_norm, read_blocks(weight, _NORM_ENTRIES)))


def _read_steps(tensor: StoredTensor, shape: tuple[int, int]) -> NDArray[Any]:
    """Read the steps of a tensor that its container dequantises, as a matrix."""
    read_steps, part = _container(tensor.file).read_steps, tensor.part
    if part is None:
        return read_steps(tensor.file, tensor.entry(tensor.shape)).reshape(shape)
    return part.of(read_steps(tensor.file, tensor.entry(part.shape))).reshape(shape)


def _quantised_part(quantised: Quantisation, part: Part | None) -> tuple[Quantisation, Part | None]:
    """Return the least of a quantised weight that has a part, and which part of it: one weight of a stack, or all."""
    if part is None or quantised.encoding is None or not isinstance(part.entries[0], int) or len(part.shape) < 3:
        return quantised, part
    if any(tensor.shape[:1] != part.shape[:1] for tensor in quantised.parts):
        return quantised, part
    parts = tuple(tensor.at(part.entries[0]) for tensor in quantised.parts)
    return replace(quantised, parts=parts), Part(part.shape[1:], part.entries[1:])


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a weight as a matrix: (out, in), or (out, in·kh·kw) for a convolution."""
    return shape[0], math.prod(shape[1:])


def describe_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, "64 × 32"; that of a number is "scalar"."""
    return " × ".join(map(str, shape)) if shape else "scalar"


def describe(tensor: Weight, scaling: float = 1.0) -> str:
    """Read a tensor and return a description of its multiple, "64 × 32, bfloat16, norm 1.234"."""
    norm = f", norm {abs(scaling) * weight_norm(tensor):.4g}" if tensor.is_floating else ""
    return f"{describe_shape(tensor.shape)}, {tensor.dtype}{norm}"


def _container(path: Path) -> Container:
    """Return the container of a file, by its first bytes and never by its name."""
    beginning = read_beginning(path)
    return next((each for each in CONTAINERS if each.recognises(beginning)), SAFETENSORS)
