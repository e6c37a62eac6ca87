"""PEFT's LoHa adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.formats.format import AdapterFile
from lowrank_core.models.formats.peft_types import read_type, scales_of, structured_layer
from lowrank_core.models.formats.structured import LOHA, Tensors, loha_parts


def read_loha(file: AdapterFile, raw: Mapping[str, Any]) -> Adapter:
    """Return the adapter of a file with peft_type LOHA: γ·(w1_a·w1_b) ⊙ (w2_a·w2_b), with γ = α/r."""
    config = scales_of(file, raw)

    def read(module: str, tensors: Tensors) -> AdapterLayer:
        return structured_layer(module, loha_parts(module, tensors), config)

    return read_type(file, raw, LOHA, read)
