"""Weights of float8 and int8 with scales: one number, one for each row, or one for each block."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lowrank_core.models.files.encodings import Bytes, Mxfp4, aligned
from lowrank_core.models.files.quantised_weight import (
    COMPANIONS,
    EXPONENTS,
    FLOAT8,
    WEIGHT,
    QuantisedWeight,
    Tensors,
    readable,
    refused,
)
from lowrank_core.models.files.tensors import StoredTensor, describe_shape

__all__ = ["SCALED_DTYPES", "find_scaled_bytes"]

SCALED_DTYPES = (*FLOAT8, "int8")
"""Dtypes of 8 bits that weights with scales are stored in."""

# Where writers put a scale: behind the name of the weight, or behind that of its module.
_OF_WEIGHT = ("_scale_inv", "_scale")
_OF_MODULE = (".scale_weight", ".qscale_weight", ".scale", ".SCB")
# torchao and quanto store the numbers of a weight, too, under a name of their own.
_RENAMED = (("._weight_qdata", "._weight_scale"), (".weight._data", ".weight._scale"))
_COMPANIONS_OF_WEIGHT = ("_activation_scale", "_input_scale")
_ZEROS = ("int8", "uint8", "int16", "int32")
_MXFP4_LENGTH = 32

Block = tuple[int, ...]


def find_scaled_bytes(tensors: Tensors, configured: Block | None) -> Iterator[QuantisedWeight]:
    """Yield the weights of 8 bits with scales; `configured` is the shape of blocks that the configuration names."""
    for key, tensor in tensors.items():
        if tensor.quantised or tensor.dtype not in SCALED_DTYPES:
            continue
        name, scales = _scales_of(key, tensors)
        if scales:
            module = name.removesuffix(WEIGHT)
            zeros = [zero for zero in (f"{name}_zero_point", f"{module}._weight_zero_point") if zero in tensors]
            members = (
                *(key, *scales, *zeros),
                *(name + ending for ending in _COMPANIONS_OF_WEIGHT),
                *(module + ending for ending in COMPANIONS),
            )
            parts = tuple(tensors[member] for member in (key, *scales, *zeros))
            reason = _why_not_of_one_weight(parts, len(scales), len(zeros))
            weight = _unreadable(name, tensor, reason) if reason else _weight(name, parts, configured)
            yield QuantisedWeight(name, weight, members)


def _scales_of(key: str, tensors: Tensors) -> tuple[str, list[str]]:
    """Return the name of the weight that a tensor has the numbers of, and the names of those scales that it has."""
    for numbers, scale in _RENAMED:
        if key.endswith(numbers):
            stem = key.removesuffix(numbers)
            return stem + WEIGHT, [name for name in (stem + scale,) if name in tensors]
    names = [key + ending for ending in _OF_WEIGHT]
    if key.endswith(WEIGHT):
        names += [key.removesuffix(WEIGHT) + ending for ending in _OF_MODULE]
    return key, [name for name in names if name in tensors]


def _why_not_of_one_weight(parts: tuple[StoredTensor, ...], scales: int, zeros: int) -> str:
    """Return why numbers, scales and zero points are not those of one weight; "" where they may be."""
    if scales > 1 or zeros > 1:
        return f"it has {parts[2].key!r} beside {parts[1].key!r}, and one of them is expected"
    if not (parts[1].is_floating or parts[1].dtype in EXPONENTS):
        return f"its scales are {parts[1].dtype}"
    if zeros and (parts[2].size != parts[1].size or not (parts[2].is_floating or parts[2].dtype in _ZEROS)):
        return f"it has {parts[1].size} scales and {parts[2].size} zero points of {parts[2].dtype}"
    return ""


def _weight(name: str, parts: tuple[StoredTensor, ...], configured: Block | None) -> StoredTensor:
    numbers, scales = parts[:2]
    if _is_mxfp4(numbers, scales):
        return readable(name, (*numbers.shape[:-1], 2 * numbers.shape[-1]), "MXFP4", parts[:2], Mxfp4())
    block = _block_of(numbers.shape, aligned(scales.shape, len(numbers.shape)), configured)
    if block is None:
        reason = (
            f"{scales.key!r} has shape {describe_shape(scales.shape)}, in which scales of blocks of "
            f"{describe_shape(numbers.shape)} cannot be"
        )
        return _unreadable(name, numbers, reason)
    encoding = Bytes(numbers.dtype, block, is_size=scales.key.endswith(".SCB"))
    return readable(name, numbers.shape, f"{numbers.dtype} × {_describe(block, numbers.shape)}", parts, encoding)


def _unreadable(name: str, numbers: StoredTensor, reason: str) -> StoredTensor:
    return refused(name, numbers, f"{numbers.dtype} with scales", reason)


def _is_mxfp4(packed: StoredTensor, scales: StoredTensor) -> bool:
    """Whether each byte of int8 has two numbers, as DeepSeek stores experts: 32 numbers have one exponent."""
    groups = (*packed.shape[:-1], 2 * math.prod(packed.shape[-1:]) // _MXFP4_LENGTH)
    return packed.dtype == "int8" and scales.dtype in EXPONENTS and scales.shape == groups


def _block_of(weight: tuple[int, ...], scales: tuple[int, ...], configured: Block | None) -> Block | None:
    """Return the shape of the block that each scale is of; None where scales of this shape cannot be the weight's."""
    if len(weight) != len(scales) or not math.prod(weight) or not math.prod(scales):
        return None
    # A configured block is of the last axes.
    lengths = (*(0 for _ in weight), *(configured or ()))[len(configured or ()) :]
    block = tuple(map(_length_of, weight, scales, lengths))
    return block if all(block) else None


def _length_of(length: int, count: int, configured: int) -> int:
    """Return how many entries of an axis have one scale; 0 where so many scales cannot be.

    The last block may be shorter, so that several lengths may fit: the configured one comes first, then the power of
    two, of which one fits at the most. Writers without a configuration have blocks of 128.
    """
    if count == 1:
        return length
    powers = [1 << bits for bits in range(length.bit_length())]
    candidates = (configured, *powers, -(-length // count))
    return next((each for each in candidates if each > 0 and -(-length // each) == count), 0)


def _describe(block: Block, weight: tuple[int, ...]) -> str:
    """Return what scales are of in words, for each matrix of a stack: "one scale", "row scales", "128×128 scales"."""
    first = 1 if len(weight) == 3 else 0
    if block[first:] == weight[first:]:
        return "one scale"
    if block[first:] == (1, *weight[first + 1 :]):
        return "row scales"
    return "×".join(map(str, block[first:])) + " scales"
