"""PEFT's AdaLoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from lowrank_core import LowRankUpdate
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.formats.format import AdapterFile
from lowrank_core.models.formats.peft_config import check_peft_config
from lowrank_core.models.formats.peft_types import layer_of, read_type
from lowrank_core.models.formats.single_file import Scale
from lowrank_core.models.formats.structured import Parts, Tensors, check_inner, tensors_of

_TENSORS = ("lora_B", "lora_E", "lora_A")
_DEFAULT_RANK = 12


def read_adalora(file: AdapterFile, raw: Mapping[str, Any]) -> Adapter:
    """Return the adapter of a file with peft_type ADALORA: γ·B·(E ⊙ A), with γ = α/(init_r + 1e-5).

    PEFT divides by the rank that a layer began with, whatever it has kept of it; without a positive alpha, α is the
    rank that it has.
    """
    own = {"peft_type": "LORA", "r": raw.get("init_r", _DEFAULT_RANK), "lora_alpha": raw.get("lora_alpha", 8)}
    config = check_peft_config(file.path, own | {name: raw[name] for name in ("fan_in_fan_out",) if name in raw})

    def read(module: str, tensors: Tensors) -> AdapterLayer:
        B, E, A = tensors_of(module, tensors, _TENSORS)
        check_inner(module, (B.shape[1], A.shape[0]), (E.shape[0], A.shape[0]))
        alpha = config.lora_alpha if config.lora_alpha > 0 else float(A.shape[0])
        source = f"alpha {alpha:g} (lora_alpha) / (initial rank {config.r} (init_r) + 1e-5)"
        parts = Parts((B, E, A), _product, (B.shape[0], *A.shape[1:]), A.shape[0], None, "")
        scale = Scale(alpha, "standard", alpha / (config.r + 1e-5), source)
        return layer_of(module, parts, scale, transposed=config.fan_in_fan_out and len(A.shape) == 2)

    return read_type(file, raw, _TENSORS, read)


def _product(B: NDArray[Any], E: NDArray[Any], A: NDArray[Any], scaling: float) -> LowRankUpdate:
    """Return γ·B·(E ⊙ A), with E one number for each row of A."""
    return LowRankUpdate(B, E.astype(float) * A.astype(float), scaling)
