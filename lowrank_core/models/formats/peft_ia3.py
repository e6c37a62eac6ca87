"""PEFT's IA3 adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.formats.adapter import Adapter, BaseUpdate
from lowrank_core.models.formats.base_updates import ON_ITS_BASE
from lowrank_core.models.formats.format import AdapterFile
from lowrank_core.models.formats.peft_types import layer_of, read_type
from lowrank_core.models.formats.single_file import Scale
from lowrank_core.models.formats.structured import Parts, Tensors

_SCALE = Scale(1.0, "standard", 1.0, "multiplied channels (IA3): scale 1")
_REASON = (
    f"IA3: the update is l·W − W, with W the base's weight: {ON_ITS_BASE}. Where l multiplies the outputs, a bias is "
    "multiplied too"
)


def read_ia3(file: AdapterFile, raw: Mapping[str, Any]) -> Adapter:
    """Return the adapter of a file with peft_type IA3: l·W − W, with one number l for each output, or each input."""

    def read(module: str, tensors: Tensors) -> BaseUpdate:
        build = partial(_scaled_channels, 1 if _is_feedforward(module, raw) else 0)
        parts = Parts(tuple(tensors.values()), build, (), 0, None, "")
        return BaseUpdate(layer_of(module, parts, _SCALE, transposed=bool(raw.get("fan_in_fan_out"))), _REASON)

    return read_type(file, raw, ("ia3_l",), read)


def _is_feedforward(module: str, raw: Mapping[str, Any]) -> bool:
    """Whether the inputs of a module are multiplied, and not its outputs, as PEFT matches its name."""
    patterns = raw.get("feedforward_modules") or ()
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module.endswith(str(name)) for name in patterns)


def _scaled_channels(axis: int, W: NDArray[Any], scales: NDArray[Any], _scaling: float) -> NDArray[np.float64]:
    """Return l·W − W, with one number l for each output (axis 0) or input (axis 1) of the map W."""
    shape = tuple(-1 if each == axis else 1 for each in range(W.ndim))
    return np.asarray((W.astype(np.float64) * (scales.astype(np.float64) - 1.0).reshape(shape)).reshape(len(W), -1))
