"""Weights of 4 bits, two or more in each stored number: floats are dequantised, and integers refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lowrank_core._dtypes import as_dtype
from lowrank_core.models.files.encodings import Bitsandbytes4, Mxfp4, Nvfp4
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
from lowrank_core.models.files.tensors import StoredTensor, describe_shape, read_tensors

__all__ = ["find_bitsandbytes", "find_fp4", "find_mxfp4_blocks", "find_stray_scales", "find_unread"]

# transformers' names, and those of OpenAI's own files, in which a weight is not transposed.
_MXFP4_NAMES = (("_blocks", "_scales", True), (".blocks", ".scales", False))
_MXFP4_BYTES, _MXFP4_LENGTH, _NVFP4_LENGTH = 16, 32, 16
_STATE = ".quant_state.bitsandbytes__"
_OF_BITSANDBYTES = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
# bitsandbytes writes about 200 bytes.
_LONGEST_STATE = 1 << 16
_PACKED_INTEGERS = "integers that are packed together are not dequantised here"
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
_SCALES = (".weight_scale_inv", ".weight_scale", ".scale_weight", ".qscale_weight", ".SCB", "_scale_inv")


def find_mxfp4_blocks(tensors: Tensors) -> Iterator[QuantisedWeight]:
    """Yield the weights of gpt-oss: blocks of MXFP4, and their exponents."""
    for key, tensor in tensors.items():
        for blocks, exponents, transposed in _MXFP4_NAMES:
            name, scales = key.removesuffix(blocks), tensors.get(key.removesuffix(blocks) + exponents)
            if name != key and tensor.dtype == "uint8" and scales is not None:
                yield QuantisedWeight(name, _mxfp4(name, tensor, scales, transposed), (key, name + exponents))


def _mxfp4(name: str, blocks: StoredTensor, scales: StoredTensor, transposed: bool) -> StoredTensor:
    if blocks.shape != (*scales.shape, _MXFP4_BYTES) or scales.dtype not in EXPONENTS or not scales.shape:
        reason = (
            f"its blocks have shape {describe_shape(blocks.shape)} and its scales {describe_shape(scales.shape)}; "
            f"blocks of {_MXFP4_BYTES} bytes, each with an exponent, are expected"
        )
        return refused(name, blocks, "MXFP4", reason)
    *rows, groups = scales.shape
    columns = groups * _MXFP4_LENGTH
    if transposed and len(rows) > 1:
        shape = (*rows[:-1], columns, rows[-1])
        return readable(name, shape, "MXFP4", (blocks, scales), Mxfp4(transposed=True))
    return readable(name, (*rows, columns), "MXFP4", (blocks, scales), Mxfp4())


def find_fp4(tensors: Tensors) -> Iterator[QuantisedWeight]:
    """Yield the weights of NVFP4, ModelOpt's and compressed-tensors', and of the latter's MXFP4."""
    for key, tensor in tensors.items():
        name = key.removesuffix("_packed")
        # ModelOpt multiplies by the one scale, and compressed-tensors divides.
        divides, scales = name != key, tensors.get(f"{name}_scale")
        scale = f"{name}_global_scale" if divides else f"{name}_scale_2"
        if tensor.dtype != "uint8" or tensor.quantised or scales is None or not (divides or scale in tensors):
            continue
        if scale in tensors:
            parts = (tensor, scales, tensors[scale])
            weight = _fp4(name, "NVFP4", parts, Nvfp4(divides=divides), _NVFP4_LENGTH)
        else:
            weight = _fp4(name, "MXFP4", (tensor, scales), Mxfp4(), _MXFP4_LENGTH)
        module = name.removesuffix(WEIGHT)
        yield QuantisedWeight(name, weight, (key, scales.key, scale, *(module + ending for ending in COMPANIONS)))


def _fp4(
    name: str, storage: str, parts: tuple[StoredTensor, ...], encoding: Mxfp4 | Nvfp4, length: int
) -> StoredTensor:
    packed, scales = parts[:2]
    shape = (*packed.shape[:-1], 2 * math.prod(packed.shape[-1:]))
    if scales.shape != (*shape[:-1], shape[-1] // length) or scales.dtype not in (*FLOAT8, *EXPONENTS):
        reason = f"its scales have shape {describe_shape(scales.shape)} and dtype {scales.dtype}"
        return refused(name, packed, storage, reason)
    return readable(name, shape, storage, parts, encoding)


def find_bitsandbytes(tensors: Tensors) -> Iterator[QuantisedWeight]:
    """Yield the weights of bitsandbytes' 4 bits, whose shapes and blocks are JSON in a tensor of their own."""
    states = {key: tensor for key, tensor in tensors.items() if _STATE in key and tensor.size <= _LONGEST_STATE}
    for (key, state), content in zip(states.items(), read_tensors(states.values()), strict=True):
        name, _, kind = key.partition(_STATE)
        storage = f"bitsandbytes {kind}"
        try:
            described = json.loads(np.ascontiguousarray(content).tobytes())
            weight = _described(name, storage, tensors, described)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = f"its quant_state is not what bitsandbytes writes for such tensors ({error})"
            weight = refused(name, tensors.get(name, state), storage, reason)
        yield QuantisedWeight(name, weight, (key, *(name + ending for ending in _OF_BITSANDBYTES)))


def _described(name: str, storage: str, tensors: Tensors, state: dict[str, Any]) -> StoredTensor:
    """Return the weight of a state; an error where it does not fit the tensors."""
    packed, sizes, levels = (tensors[name + ending] for ending in _OF_BITSANDBYTES[:3])
    parts: tuple[StoredTensor, ...] = (packed, sizes, levels)
    shape, block = tuple(map(int, state["shape"])), int(state["blocksize"])
    encoding = Bitsandbytes4(shape, block)
    if f"{name}.nested_absmax" in tensors:
        outer, fractions = (tensors[name + ending] for ending in _OF_BITSANDBYTES[3:])
        nested = int(state["nested_blocksize"])
        parts = (*parts, outer, fractions)
        encoding = replace(encoding, nested=nested, offset=float(state["nested_offset"]))
        if nested < 1 or sizes.dtype != "uint8" or fractions.size != 256 or outer.size != -(-sizes.size // nested):
            raise ValueError(f"{outer.size} nested blocks of {nested} for {sizes.size} of {sizes.dtype}")
    if block < 1 or min(shape, default=0) < 1 or not packed.is_readable:
        raise ValueError(f"shape {shape}, blocks of {block}, stored as {packed.dtype}")
    entries, size = math.prod(shape), packed.size * as_dtype(packed.dtype).itemsize
    if size != -(-entries // 2) or sizes.size != -(-entries // block) or levels.size != 16:
        raise ValueError(f"{size} bytes, {sizes.size} blocks and {levels.size} levels for {describe_shape(shape)}")
    return readable(name, shape, storage, parts, encoding)


def find_unread(tensors: Tensors) -> Iterator[QuantisedWeight]:
    """Yield the weights that cannot be dequantised, by the name of their storage."""
    for key, tensor in tensors.items():
        weight = None if tensor.quantised else _unread(key, tensor, tensors)
        if weight:
            yield weight


def _unread(key: str, tensor: StoredTensor, tensors: Tensors) -> QuantisedWeight | None:
    module, _, ending = key.rpartition(".")
    name = module + WEIGHT
    if ending == "qweight":
        # GPTQ packs rows of an input together, and AWQ columns of an output.
        scales = tensors.get(f"{module}.scales")
        is_awq = f"{module}.g_idx" not in tensors and scales is not None and scales.shape[-1:] != tensor.shape[-1:]
        members = tuple(f"{module}.{each}" for each in ("qweight", "qzeros", "scales", "g_idx"))
        return QuantisedWeight(name, refused(name, tensor, "AWQ" if is_awq else "GPTQ", _PACKED_INTEGERS), members)
    if ending == "weight_packed":
        members = tuple(f"{name}_{each}" for each in ("packed", "scale", "shape", "zero_point", "g_idx"))
        storage = f"compressed-tensors packed in {tensor.dtype}"
        return QuantisedWeight(name, refused(name, tensor, storage, _PACKED_INTEGERS), members)
    if tensor.dtype in _INTEGERS and ending in ("weight", "W_q", "codes"):
        reason = "no scales of these integers are known"
        return QuantisedWeight(key, refused(key, tensor, f"quantised {tensor.dtype}", reason), (key,))
    return None


def find_stray_scales(tensors: Tensors) -> Iterator[QuantisedWeight]:
    """Yield the scales of more than one axis that belong to no quantised weight, and would be taken for weights."""
    for key, tensor in tensors.items():
        if tensor.quantised or len(tensor.shape) < 2 or not key.endswith(_SCALES):
            continue
        owner = key.removesuffix("_scale_inv") if key.endswith("_scale_inv") else key.rpartition(".")[0] + WEIGHT
        reason = "these are scales, and the weight that they belong to is missing"
        if owner in tensors:
            reason = (
                f"these are scales, and {owner!r} is {tensors[owner].dtype}: whether it was multiplied is not known"
            )
        storage = f"quantisation scales in {tensor.dtype}"
        yield QuantisedWeight(key, refused(key, tensor, storage, reason), (key,))
