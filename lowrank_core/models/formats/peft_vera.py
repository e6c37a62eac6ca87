"""PEFT's VeRA adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, BaseUpdate
from lowrank_core.models.formats.base_updates import ON_ITS_BASE
from lowrank_core.models.formats.format import AdapterFile
from lowrank_core.models.formats.peft_types import layer_of, read_type
from lowrank_core.models.formats.single_file import Scale
from lowrank_core.models.formats.structured import Parts, Tensors

_TENSORS = ("vera_lambda_b", "vera_lambda_d")
_PROJECTIONS = ("base_model.vera_A", "base_model.vera_B")
_SCALE = Scale(1.0, "standard", 1.0, "VeRA has no alpha: scale 1")
_DRAWN = (
    "VERA: its projections are drawn from projection_prng_key and not in the file (save_projection is false): load the "
    "adapter with PEFT and save it with save_projection=True"
)
_WITH_BASE = (
    "VERA: each layer takes as many columns of the shared projection as it has inputs, which only the base model "
    f"tells: {ON_ITS_BASE}"
)


def read_vera(file: AdapterFile, raw: Mapping[str, Any]) -> Adapter:
    """Return the adapter of a file with peft_type VERA: diag(b)·B·diag(d)·A, with slices of the shared B and A.

    Where all layers are of one kind and size, the shared projections have their number of inputs.
    """
    projections = [file.tensors[key] for key in _PROJECTIONS if key in file.tensors]
    tensors = {key: tensor for key, tensor in file.tensors.items() if key not in _PROJECTIONS}
    kinds = {
        (re.sub(r"\d+", "#", key), tensor.shape) for key, tensor in tensors.items() if key.endswith(f".{_TENSORS[0]}")
    }

    def read(module: str, own: Tensors) -> AdapterLayer | BaseUpdate:
        if len(own) < len(_TENSORS):
            raise ValueError(f"{module!r} has {min(own)} alone: the file is incomplete, save the adapter again")
        if len(projections) < len(_PROJECTIONS):
            raise ValueError(_DRAWN)
        b, d = (own[name] for name in _TENSORS)
        A, B = projections
        rows, columns = b.size, A.shape[1]
        transposed = bool(raw.get("fan_in_fan_out"))
        if len(kinds) == 1:
            parts = Parts((b, d, A, B), _product, (rows, columns), d.size, None, "")
            return layer_of(module, parts, _SCALE, transposed=transposed)
        parts = Parts((b, d, A, B), _product_of_base, (), d.size, None, "")
        return BaseUpdate(layer_of(module, parts, _SCALE, transposed=transposed), _WITH_BASE)

    return read_type(file._replace(tensors=tensors), raw, _TENSORS, read)


def _product(b: NDArray[Any], d: NDArray[Any], A: NDArray[Any], B: NDArray[Any], scaling: float) -> LowRankUpdate:
    """Return diag(b)·B·diag(d)·A, with as many rows of B as b has entries."""
    scales, inner = b.astype(np.float64)[:, np.newaxis], d.astype(np.float64)[:, np.newaxis]
    return LowRankUpdate(scales * B[: b.size], inner * A, scaling)


def _product_of_base(
    W: NDArray[Any], b: NDArray[Any], d: NDArray[Any], A: NDArray[Any], B: NDArray[Any], scaling: float
) -> LowRankUpdate:
    """Return the product with as many columns of A as the base's weight has."""
    return _product(b, d, A[:, : W.shape[1]], B, scaling)
