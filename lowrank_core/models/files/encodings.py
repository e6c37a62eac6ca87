"""Encodings of quantised weights: a number of 8 or 4 bits stands for a level, which a block's scale multiplies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core.models.norms import check_finite, row_blocks
from lowrank_core.rounding_noise import code_steps, step_exponents

__all__ = ["Bitsandbytes4", "Bytes", "Encoding", "Mxfp4", "Nvfp4", "QuantisedBlocks", "aligned"]

# OCP Microscaling Formats 1.0, section 5.3.3: E2M1, the sign in the highest bit.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Section 6.3: scales are powers of two by which the largest number of a block comes into [4, 8).
_MXFP4_LIMIT, _NVFP4_LIMIT = 8.0, 6.0
_E8M0_BIAS = 127
_INT8_LARGEST = 127

Arrays = Sequence[NDArray[Any]]


class Code(NamedTuple):
    """What each stored number stands for, and the step of rounding to it."""

    levels: NDArray[np.float32]
    steps: NDArray[np.float32]


class QuantisedBlocks(NamedTuple):
    """Stored numbers, their code, the scale of each block of them, and the shape that the weight has.

    `block` is how many numbers along each axis have one scale, and one of `zeros`, the numbers that stand for 0. The
    last two axes of the weight are swapped where it is the transpose of what is stored.
    """

    numbers: NDArray[np.uint8]
    code: Code
    scales: NDArray[np.float32]
    block: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool = False
    zeros: NDArray[np.float32] | None = None

    def values(self) -> NDArray[np.float32]:
        """Compute the weight, (level − zero) · scale: rounded once to float32, because both factors have its bits."""
        return self._scaled(self.code.levels, self.scales, self.zeros)

    def steps(self) -> NDArray[np.float32]:
        """Compute the step of rounding at each entry: that of its level, times the size of its scale."""
        return self._scaled(self.code.steps, np.abs(self.scales))

    def _scaled(
        self, table: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        check_finite("its array of scales", scales)
        values = np.empty(self.numbers.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused where the weights are used
            for rows in row_blocks(values.shape):
                levels = table[self.numbers[rows]]
                if zeros is not None:
                    levels -= self._of_rows(rows, zeros)
                np.multiply(levels, self._of_rows(rows, scales), out=values[rows])
        weight: NDArray[np.float32] = values.reshape(self.shape)
        return weight.swapaxes(-1, -2) if self.transposed else weight

    def _of_rows(self, rows: slice, blocks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what blocks have for each number in some rows; an axis along which there is one keeps length 1."""
        part: NDArray[np.float32] = blocks[np.arange(rows.start, rows.stop) // self.block[0]]
        for axis in range(1, part.ndim):
            if part.shape[axis] > 1:
                part = np.take(part, np.arange(self.numbers.shape[axis]) // self.block[axis], axis=axis)
        return part


class Encoding(Protocol):
    """How the arrays that a weight is stored as become its numbers."""

    def unpack(self, arrays: Arrays, /) -> QuantisedBlocks:
        """Return the numbers, code and scales of a weight, from the arrays that it is stored as."""


@dataclass(frozen=True)
class Bytes:
    """Numbers of a dtype of 8 bits, and scales of blocks: arrays of both, and where there are zeros, of these.

    bitsandbytes stores the largest size in each row of int8 (`is_size`), and the scale is that size over 127. Others
    have the scale itself under the same name. bitsandbytes takes the sizes of weights in float16, so that all of its
    sizes are numbers of float16; of quotients by 127 about one in 8,000 is.
    """

    dtype: str
    block: tuple[int, ...]
    is_size: bool = False

    def unpack(self, arrays: Arrays) -> QuantisedBlocks:
        """Return the numbers, code and scales of a weight, or of one weight of a stack."""
        numbers, scales = np.atleast_1d(arrays[0]), _as_scales(arrays[1])
        if self.is_size and _are_float16(scales):
            scales = scales / np.float32(_INT8_LARGEST)
        scales = scales.reshape(aligned(scales.shape, numbers.ndim))
        zeros = arrays[2].astype(np.float32).reshape(scales.shape) if len(arrays) > 2 else None
        block = self.block[-numbers.ndim :]
        return QuantisedBlocks(numbers.view(np.uint8), _code_of(self.dtype), scales, block, numbers.shape, zeros=zeros)


@dataclass(frozen=True)
class Mxfp4:
    """OCP's MXFP4: two numbers in each byte, bytes (…, m, n/2) or blocks (…, m, n/32, 16), and exponents (…, m, n/32).

    transformers' weight is the transpose of the blocks that it reads under the same name.
    """

    transposed: bool = False

    def unpack(self, arrays: Arrays) -> QuantisedBlocks:
        """Return the numbers, code and scales of a weight, or of one weight of a stack."""
        packed, scales = arrays[0].view(np.uint8), _as_scales(arrays[1])
        numbers = _low_half_first(packed.reshape(*scales.shape, -1))
        code = Code(_E2M1, code_steps(_E2M1, _MXFP4_LIMIT))
        *rows, groups, size = numbers.shape
        block = (*(1 for _ in scales.shape), size)
        shape = (*rows, groups * size)
        return QuantisedBlocks(numbers, code, scales[..., np.newaxis], block, shape, self.transposed)


@dataclass(frozen=True)
class Nvfp4:
    """NVIDIA's NVFP4: bytes (…, m, n/2), scales (…, m, n/16) of float8, and one more; compressed-tensors' divides."""

    divides: bool = False

    def unpack(self, arrays: Arrays) -> QuantisedBlocks:
        """Return the numbers, code and scales of a weight."""
        numbers, scale = _low_half_first(arrays[0]), arrays[2].astype(np.float32).reshape(())
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = arrays[1].astype(np.float32) / scale if self.divides else arrays[1].astype(np.float32) * scale
        code = Code(_E2M1, code_steps(_E2M1, _NVFP4_LIMIT))
        block = (*(1 for _ in numbers.shape[1:]), numbers.shape[-1] // scales.shape[-1])
        return QuantisedBlocks(numbers, code, scales, block, numbers.shape)


@dataclass(frozen=True)
class Bitsandbytes4:
    """bitsandbytes' 4 bits: two numbers in each byte, the first in its high half; blocks of the flattened weight.

    Arrays: bytes, the largest size in each block, and 16 levels, fractions of that size. Where the sizes are quantised
    in turn, also the sizes in each of their blocks of `nested` and 256 levels; `offset` is added to the product.
    """

    shape: tuple[int, ...]
    block: int
    nested: int = 0
    offset: float = 0.0

    def unpack(self, arrays: Arrays) -> QuantisedBlocks:
        """Return the numbers, code and scales of a weight."""
        packed, sizes, levels, *outer = arrays
        check_finite("its quant_map", levels)
        if self.nested:
            largest, fractions = outer
            blocks = np.arange(sizes.size) // self.nested
            sizes = fractions.reshape(-1)[sizes] * largest.reshape(-1)[blocks] + np.float32(self.offset)
        # The bytes may be stored as any dtype (bnb_4bit_quant_storage).
        halves = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
        numbers = np.stack([halves >> 4, halves & 0x0F], axis=-1).reshape(-1)[: math.prod(self.shape)]
        table = levels.reshape(-1).astype(np.float32)
        code = Code(table, code_steps(table, float(np.max(np.abs(table)))))
        return QuantisedBlocks(numbers, code, sizes.reshape(-1).astype(np.float32), (self.block,), self.shape)


def aligned(scales: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Return a shape of scales with so many axes: axes of length 1 are added behind the last, or left out there."""
    if len(scales) <= axes:
        return (*scales, *(1 for _ in range(axes - len(scales))))
    return scales[:axes] if math.prod(scales[axes:]) == 1 else scales


def _code_of(dtype: str) -> Code:
    """Return the code of a dtype of 8 bits."""
    levels = np.arange(256, dtype=np.uint8).view(as_dtype(dtype)).astype(np.float32)
    if dtype not in FLOATS:
        return Code(levels, np.ones_like(levels))
    finite = np.nan_to_num(levels, posinf=0.0, neginf=0.0)
    return Code(levels, np.ldexp(np.float32(1), step_exponents(finite[np.newaxis], dtype)[0]))


def _are_float16(sizes: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(sizes.astype(np.float16).astype(np.float32), sizes)


def _low_half_first(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the two numbers of each byte, along the last axis."""
    return np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _as_scales(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return scales in float32: bytes are E8M0, exponents of two."""
    if stored.dtype != np.uint8:
        return stored.astype(np.float32)
    # The last code is NaN, and infinity here: both are refused.
    with np.errstate(over="ignore"):
        return np.ldexp(np.float32(1), stored.astype(np.int16) - _E8M0_BIAS)
