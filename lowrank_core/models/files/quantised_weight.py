"""A quantised weight of a checkpoint, recognised by the names, dtypes and shapes of the tensors it is stored as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from lowrank_core.models.files.encodings import Encoding
from lowrank_core.models.files.tensors import Part, Quantisation, StoredTensor

__all__ = ["COMPANIONS", "EXPONENTS", "FLOAT8", "WEIGHT", "QuantisedWeight", "Tensors", "readable", "refused"]

Tensors = Mapping[str, StoredTensor]

WEIGHT = ".weight"
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
EXPONENTS = ("uint8", "F8_E8M0", "float8_e8m0fnu")
"""Dtypes that scales which are powers of two are stored in."""
COMPANIONS = (
    *(".input_scale", ".output_scale", ".activation_scale", ".scale_input", ".qscale_act", ".input_scale_ub"),
    *(".input_global_scale", ".weight_format", ".comfy_quant"),
)
"""What a module has beside a quantised weight and is no part of it: how activations are rounded, and the storage."""


class QuantisedWeight(NamedTuple):
    """A weight under its own name, and the names of all tensors that it takes the place of."""

    name: str
    tensor: StoredTensor
    members: tuple[str, ...]


def readable(
    name: str, shape: tuple[int, ...], storage: str, parts: tuple[StoredTensor, ...], encoding: Encoding
) -> StoredTensor:
    """Return the weight that parts stand for; it is dequantised as it is read."""
    quantisation = Quantisation(tuple(map(_as_bytes, parts)), encoding)
    return StoredTensor(parts[0].file, name, shape, storage, read_as="float32", quantised=quantisation)


def refused(name: str, numbers: StoredTensor, storage: str, reason: str) -> StoredTensor:
    """Return a weight that cannot be dequantised, with the reason."""
    return StoredTensor(numbers.file, name, numbers.shape, storage, quantised=Quantisation(refusal=reason))


def _as_bytes(part: StoredTensor) -> StoredTensor:
    """Return a tensor of exponents, whose dtype NumPy does not have, as its bytes."""
    return replace(part, dtype="uint8", part=Part.all(part.shape)) if part.dtype in EXPONENTS[1:] else part
