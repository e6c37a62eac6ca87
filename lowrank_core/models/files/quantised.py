"""Quantised weights of checkpoints: the tensors that a file stores a weight as become one tensor under its name.

Each storage is one function, from the tensors of a checkpoint to the weights that it recognises among them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowrank_core._dtypes import as_dtype
from lowrank_core.models.files.encodings import (
    Bitsandbytes4,
    Bytes,
    Encoding,
    Mxfp4,
    Nvfp4,
    aligned,
)
from lowrank_core.models.files.tensors import Part, Quantisation, StoredTensor, describe_shape, read_tensors

__all__ = ["MAY_HAVE_BLOCKS", "check_dequantised", "join_quantised"]

Tensors = Mapping[str, StoredTensor]

_WEIGHT = ".weight"
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
MAY_HAVE_BLOCKS = (*_FLOAT8, "int8")
"""Dtypes of weights that may have scales of blocks."""
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
_EXPONENTS = ("uint8", "F8_E8M0", "float8_e8m0fnu")
# Where writers put the scale of a weight of 8 bits: behind the weight's own name, or behind its module's.
_SCALES_OF_WEIGHT = ("_scale_inv", "_scale")
_SCALES_OF_MODULE = (".scale_weight", ".qscale_weight", ".scale", ".SCB")
# torchao and quanto store a weight's numbers and its scale under names of their own.
_RENAMED = (("._weight_qdata", "._weight_scale"), (".weight._data", ".weight._scale"))
# How activations are rounded, and how a module is stored: no part of the weight.
_COMPANIONS = (
    *(".input_scale", ".output_scale", ".activation_scale", ".scale_input", ".qscale_act", ".input_scale_ub"),
    *(".input_global_scale", ".weight_format", ".comfy_quant"),
)
_COMPANIONS_OF_WEIGHT = ("_activation_scale", "_input_scale")
_MARKER = "scaled_fp8"
_ONLY_SCALES = (".weight_scale_inv", ".weight_scale", ".scale_weight", ".qscale_weight", ".SCB")
# As DeepSeek, and by it transformers, scales weights.
_USUAL_BLOCK = 128
_MXFP4_BYTES, _MXFP4_BLOCK, _NVFP4_BLOCK = 16, 32, 16
# Dequantisation, by who has quantised.
_ADVICE = {
    "GPTQ": "dequantise it with GPTQModel, which reads and writes this format",
    "AWQ": "dequantise it with AutoAWQ or GPTQModel, which read this format",
    "bitsandbytes": "load it with transformers, call `model.dequantize()` and save it",
    "MXFP4": "load it with transformers and `Mxfp4Config(dequantize=True)`, and save it",
}
_OTHER_ADVICE = "dequantise it with the program that wrote it, or give the checkpoint that it was made from"


class Joined(NamedTuple):
    """A weight, and the names of the tensors that belong to it, its own among them."""

    name: str
    weight: StoredTensor
    members: tuple[str, ...]


def join_quantised(tensors: Tensors, blocks: tuple[int, ...] | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint, in which each quantised weight is one tensor that dequantises as it is read.

    `blocks` are the shape of the blocks of scales that the checkpoint's configuration names.
    """
    joined = dict(tensors)
    for storage in STORAGES:
        for name, weight, members in list(storage(joined, blocks)):
            for member in members:
                joined.pop(member, None)
            joined[name] = weight
    if any(tensor.quantised for tensor in joined.values()):
        for name in [name for name in joined if name.rpartition(".")[2] == _MARKER]:
            del joined[name]
    return dict(sorted(joined.items()))


def check_dequantised(path: Path, tensors: Tensors) -> None:
    """Check that every quantised weight of a checkpoint can be read: what remains is not a report of the model."""
    refused = {name: tensor for name, tensor in tensors.items() if tensor.quantised and tensor.quantised.refusal}
    if not refused:
        return
    name, tensor = next(iter(refused.items()))
    advice = next((advice for storage, advice in _ADVICE.items() if tensor.dtype.startswith(storage)), _OTHER_ADVICE)
    reason = tensor.quantised.refusal if tensor.quantised else ""
    weights = "1 quantised weight" if len(refused) == 1 else f"{len(refused)} quantised weights"
    raise ValueError(
        f"{str(path)!r} has {weights} that cannot be dequantised, as {name!r}, stored as "
        f"{tensor.dtype}: {reason}. Figures of the other weights would look like those of the model: {advice}"
    )


def _scaled_bytes(tensors: Tensors, blocks: tuple[int, ...] | None) -> Iterator[Joined]:
    """Yield the weights of float8 and int8 with scales, of one number, of rows or of blocks."""
    for key, tensor in tensors.items():
        if tensor.quantised or tensor.dtype not in MAY_HAVE_BLOCKS:
            continue
        name, scales = _scales_of(key, tensors)
        if not scales:
            continue
        module = name.removesuffix(_WEIGHT)
        zeros = [zero for zero in (f"{name}_zero_point", f"{module}._weight_zero_point") if zero in tensors]
        members = (
            *(key, *scales, *zeros),
            *(name + ending for ending in _COMPANIONS_OF_WEIGHT),
            *(module + ending for ending in _COMPANIONS),
        )
        parts = tuple(tensors[member] for member in (key, *scales, *zeros))
        reason = _why_not_scales(parts, len(scales), len(zeros))
        block = _block_shape(tensor.shape, aligned(parts[1].shape, len(tensor.shape)), blocks)
        if reason:
            weight = _refused(name, tensor, f"{tensor.dtype} with scales", reason)
        elif _is_mxfp4(tensor, parts[1]):
            doubled = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            weight = _joined(name, tensor, doubled, "MXFP4", parts[:2], Mxfp4())
        elif block is None:
            reason = (
                f"{parts[1].key!r} has shape {describe_shape(parts[1].shape)}, in which scales of blocks of "
                f"{describe_shape(tensor.shape)} cannot be"
            )
            weight = _refused(name, tensor, f"{tensor.dtype} with scales", reason)
        else:
            label = f"{tensor.dtype} × {_describe_blocks(tensor.shape, block)}"
            encoding = Bytes(tensor.dtype, block, is_size=scales[0].endswith(".SCB"))
            weight = _joined(name, tensor, tensor.shape, label, parts, encoding)
        yield Joined(name, weight, members)


def _why_not_scales(parts: tuple[StoredTensor, ...], scales: int, zeros: int) -> str:
    """Return why numbers, scales and zeros are not those of one weight; "" where they may be."""
    if scales > 1 or zeros > 1:
        return f"it has {parts[2].key!r} beside {parts[1].key!r}, and one of them is expected"
    if not (parts[1].is_floating or parts[1].dtype in _EXPONENTS):
        return f"its scales are {parts[1].dtype}"
    if zeros and (parts[2].size != parts[1].size or not (parts[2].is_floating or parts[2].dtype in _INTEGERS)):
        return f"it has {parts[1].size} scales and {parts[2].size} zero points of {parts[2].dtype}"
    return ""


def _scales_of(key: str, tensors: Tensors) -> tuple[str, list[str]]:
    """Return the name of the weight whose numbers a tensor has, and the names of its scales that there are."""
    for numbers, scale in _RENAMED:
        if key.endswith(numbers):
            stem = key.removesuffix(numbers)
            return stem + _WEIGHT, [name for name in (stem + scale,) if name in tensors]
    module = key.removesuffix(_WEIGHT)
    names = (
        *(key + ending for ending in _SCALES_OF_WEIGHT),
        *(module + ending for ending in (_SCALES_OF_MODULE if key.endswith(_WEIGHT) else ())),
    )
    return key, [name for name in names if name in tensors]


def _block_shape(
    weight: tuple[int, ...], scales: tuple[int, ...], configured: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Return the shape of the block that each scale is of; None where scales of this shape cannot be the weight's."""
    if len(weight) != len(scales) or not math.prod(weight) or not math.prod(scales):
        return None
    given = (0,) * (len(weight) - len(configured or ())) + (configured or ())
    blocks = tuple(map(_block_length, weight, scales, given[-len(weight) :])) if weight else ()
    return blocks if all(blocks) else None


def _block_length(length: int, count: int, configured: int) -> int:
    """Return how many entries of an axis have one scale; 0 where so many scales cannot be.

    The last block may be shorter, so several lengths may fit: the configured one is right, else the usual one, else a
    power of two.
    """
    if count == 1:
        return length
    powers = [1 << bits for bits in range(length.bit_length())]
    candidates = (configured, _USUAL_BLOCK, *powers, -(-length // count))
    return next((block for block in candidates if block > 0 and -(-length // block) == count), 0)


def _describe_blocks(weight: tuple[int, ...], blocks: tuple[int, ...]) -> str:
    """Return what scales are of in words: "one scale", "row scales", "128×128 scales"."""
    axes = [(length, block) for length, block in zip(weight[-2:], blocks[-2:], strict=True)]
    if all(length == block for length, block in zip(weight, blocks, strict=True)):
        return "one scale"
    if axes[-1] == (weight[-1], weight[-1]) and blocks[-2:][0] == 1:
        return "row scales"
    return "×".join(str(block) for block in blocks[-2:]) + " scales"


def _mxfp4(tensors: Tensors, _blocks: tuple[int, ...] | None) -> Iterator[Joined]:
    """Yield the weights of MXFP4: of transformers' gpt-oss, transposed, and of OpenAI's own files."""
    for key, tensor in tensors.items():
        for end, scale_end, transposed in (("_blocks", "_scales", True), (".blocks", ".scales", False)):
            name, scale = key.removesuffix(end), tensors.get(key.removesuffix(end) + scale_end)
            if name == key or tensor.dtype != "uint8" or scale is None:
                continue
            *rows, groups, size = tensor.shape or (0,)
            stacked = transposed and len(rows) > 1
            shape = (*rows[:-1], groups * _MXFP4_BLOCK, rows[-1]) if stacked else (*rows, groups * _MXFP4_BLOCK)
            if size != _MXFP4_BYTES or scale.shape != tensor.shape[:-1] or scale.dtype not in _EXPONENTS:
                reason = (
                    f"its blocks have shape {describe_shape(tensor.shape)} and its scales "
                    f"{describe_shape(scale.shape)}; blocks of {_MXFP4_BYTES} bytes with an exponent each are expected"
                )
                weight = _refused(name, tensor, "MXFP4", reason)
            else:
                weight = _joined(name, tensor, shape, "MXFP4", (tensor, scale), Mxfp4(transposed=stacked))
            yield Joined(name, weight, (key, name + scale_end))


def _is_mxfp4(packed: StoredTensor, scales: StoredTensor) -> bool:
    """Whether two numbers are packed in each byte of int8, as DeepSeek stores experts: 32 numbers have one exponent."""
    groups = (*packed.shape[:-1], 2 * math.prod(packed.shape[-1:]) // _MXFP4_BLOCK)
    return packed.dtype == "int8" and scales.dtype in _EXPONENTS and scales.shape == groups


def _packed_fp4(tensors: Tensors, _blocks: tuple[int, ...] | None) -> Iterator[Joined]:
    """Yield the weights of NVFP4, ModelOpt's and compressed-tensors', and of the latter's MXFP4."""
    for key, tensor in tensors.items():
        name = key.removesuffix("_packed")
        is_packed, scale = name != key, tensors.get(f"{name}_scale")
        one = f"{name}_global_scale" if is_packed else f"{name}_scale_2"
        if tensor.dtype != "uint8" or tensor.quantised or scale is None or not (is_packed or one in tensors):
            continue
        module = name.removesuffix(_WEIGHT)
        members = (key, scale.key, one, *(module + ending for ending in _COMPANIONS))
        kind, size = ("NVFP4", _NVFP4_BLOCK) if one in tensors else ("MXFP4", _MXFP4_BLOCK)
        encoding = Nvfp4(divides=is_packed) if kind == "NVFP4" else Mxfp4()
        shape = (*tensor.shape[:-1], 2 * math.prod(tensor.shape[-1:]))
        if scale.shape != (*shape[:-1], shape[-1] // size) or scale.dtype not in (*_FLOAT8, *_EXPONENTS):
            reason = f"its scales have shape {describe_shape(scale.shape)} and dtype {scale.dtype}"
            weight = _refused(name, tensor, kind, reason)
        else:
            parts = (tensor, scale, tensors[one]) if one in tensors else (tensor, scale)
            weight = _joined(name, tensor, shape, kind, parts, encoding)
        yield Joined(name, weight, members)


def _bitsandbytes(tensors: Tensors, _blocks: tuple[int, ...] | None) -> Iterator[Joined]:
    """Yield the weights of bitsandbytes' 4 bits."""
    states = {key: tensor for key, tensor in tensors.items() if ".quant_state.bitsandbytes__" in key}
    for (key, state), content in zip(states.items(), read_tensors(states.values()), strict=True):
        name, _, kind = key.partition(".quant_state.bitsandbytes__")
        members = tuple(other for other in tensors if other == name or other.startswith(f"{name}."))
        label = f"bitsandbytes {kind}"
        try:
            weight = _of_state(name, label, tensors, json.loads(np.ascontiguousarray(content).tobytes()))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"its quant_state is not what bitsandbytes writes for these tensors ({error})"
            weight = _refused(name, tensors.get(name, state), label, reason)
        yield Joined(name, weight, members)


def _of_state(name: str, label: str, tensors: Tensors, state: dict[str, Any]) -> StoredTensor:
    packed, sizes, levels = (tensors[f"{name}{end}"] for end in ("", ".absmax", ".quant_map"))
    shape, blocksize = tuple(map(int, state["shape"])), int(state["blocksize"])
    parts: tuple[StoredTensor, ...] = (packed, sizes, levels)
    encoding = Bitsandbytes4(shape, blocksize)
    if f"{name}.nested_absmax" in tensors:
        nested, outer = int(state["nested_blocksize"]), tensors[f"{name}.nested_absmax"]
        parts = (*parts, outer, tensors[f"{name}.nested_quant_map"])
        encoding = replace(encoding, nested=nested, offset=float(state["nested_offset"]))
        if sizes.dtype != "uint8" or parts[-1].size != 256 or nested < 1 or -(-sizes.size // nested) != outer.size:
            raise ValueError("its nested_absmax does not fit its absmax")
    size = math.prod(shape)
    if not packed.is_readable or blocksize < 1 or min(shape, default=0) < 1:
        raise ValueError(f"shape {shape}, blocksize {blocksize}, dtype {packed.dtype}")
    if (
        packed.size * as_dtype(packed.dtype).itemsize != -(-size // 2)
        or sizes.size != -(-size // blocksize)
        or levels.size != 16
    ):
        raise ValueError(f"{packed.size} of {packed.dtype} and {sizes.size} blocks for {describe_shape(shape)}")
    return _joined(name, packed, shape, label, parts, encoding)


def _others(tensors: Tensors, _blocks: tuple[int, ...] | None) -> Iterator[Joined]:
    """Yield what cannot be dequantised here: named, so that the checkpoint is refused."""
    for key, tensor in tensors.items():
        found = None if tensor.quantised else _other(key, tensor, tensors)
        if found:
            yield found


def _other(key: str, tensor: StoredTensor, tensors: Tensors) -> Joined | None:
    stem = key.rpartition(".")[0]
    name = stem + _WEIGHT
    if key.endswith(".qweight") and f"{stem}.scales" in tensors:
        # AWQ packs eight outputs into a number, GPTQ eight inputs.
        outputs = tensors[f"{stem}.scales"].shape[-1:]
        is_awq = f"{stem}.g_idx" not in tensors and tensor.shape[-1:] != outputs
        members = tuple(f"{stem}.{end}" for end in ("qweight", "qzeros", "scales", "g_idx"))
        label = "AWQ" if is_awq else "GPTQ"
        return Joined(name, _refused(name, tensor, label, f"{label} is not read here"), members)
    if key.endswith(".weight_packed"):
        members = tuple(f"{stem}.weight_{end}" for end in ("packed", "scale", "shape", "zero_point", "g_idx"))
        weight = _refused(name, tensor, "compressed-tensors packed", "packed integers are not read here")
        return Joined(name, weight, members)
    if tensor.dtype in _INTEGERS and key.endswith((_WEIGHT, ".W_q", ".codes")):
        reason = "no scale that belongs to these integers is known"
        return Joined(key, _refused(key, tensor, f"quantised {tensor.dtype}", reason), (key,))
    # Of two axes or more it would be taken for a weight.
    is_alone = not any(owner in tensors for owner in (name, f"{name}_packed"))
    if key.endswith(_ONLY_SCALES) and len(tensor.shape) > 1 and is_alone:
        reason = "these are scales, and the weight that they belong to is missing"
        return Joined(key, _refused(key, tensor, f"quantisation scales in {tensor.dtype}", reason), (key,))
    return None


STORAGES: tuple[Callable[[Tensors, tuple[int, ...] | None], Iterator[Joined]], ...] = (
    _bitsandbytes,
    _mxfp4,
    _packed_fp4,
    _scaled_bytes,
    _others,
)
"""The storages that are recognised, in this order."""


def _joined(
    name: str,
    numbers: StoredTensor,
    shape: tuple[int, ...],
    label: str,
    parts: tuple[StoredTensor, ...],
    encoding: Encoding,
) -> StoredTensor:
    """Return the weight that its parts dequantise to."""
    quantisation = Quantisation(tuple(map(_as_bytes, parts)), encoding)
    return StoredTensor(numbers.file, name, shape, label, read_as="float32", quantised=quantisation)


def _as_bytes(part: StoredTensor) -> StoredTensor:
    """Return a tensor of exponents, whose dtype NumPy does not have, as its bytes."""
    return replace(part, dtype="uint8", part=Part.all(part.shape)) if part.dtype in _EXPONENTS[1:] else part


def _refused(name: str, numbers: StoredTensor, label: str, reason: str) -> StoredTensor:
    """Return a weight that cannot be read, and why."""
    return StoredTensor(numbers.file, name, numbers.shape, label, quantised=Quantisation(refusal=reason))
