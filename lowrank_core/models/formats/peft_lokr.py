"""PEFT's LoKr adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.files.tensors import as_matrix
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.formats.format import AdapterFile
from lowrank_core.models.formats.peft_types import read_type, scales_of, structured_layer
from lowrank_core.models.formats.structured import LOKR, Tensors, lokr_parts


def read_lokr(file: AdapterFile, raw: Mapping[str, Any]) -> Adapter:
    """Return the adapter of a file with peft_type LOKR: γ·w1 ⊗ w2, with γ = α/r even where both sides are whole."""
    config = scales_of(file, raw)

    def read(module: str, tensors: Tensors) -> AdapterLayer:
        parts = lokr_parts(module, tensors)
        if len(parts.dims) == 3:
            parts = parts._replace(build=_conv1d_product, rank=min(as_matrix(parts.dims)))
        return structured_layer(module, parts, config)

    return read_type(file, raw, LOKR, read)


def _conv1d_product(*values: Any) -> NDArray[np.float64]:
    """Return the update of a Conv1d whose second side is whole, as PEFT 0.21 makes it.

    torch.kron takes the last axes of w1 (a, c) and w2 (b, d, k) together, so that the first side's columns multiply the
    positions of the kernel, and the result is reshaped to (a·b, c·d, k).
    """
    *first, kernel, scaling = values
    w1 = first[0].astype(np.float64) if len(first) == 1 else first[0].astype(np.float64) @ first[1].astype(np.float64)
    product = np.kron(w1[np.newaxis], kernel.astype(np.float64))
    return np.asarray(scaling * product.reshape(len(w1) * len(kernel), -1))
