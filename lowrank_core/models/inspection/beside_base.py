"""The figures of an update beside the base's weight that it is added to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import Spectrum
from lowrank_core.models.files.tensors import Weight, as_matrix
from lowrank_core.models.formats.adapter import AdapterLayer
from lowrank_core.models.inspection.intruders import count_intruders
from lowrank_core.models.inspection.report import BaseFigures
from lowrank_core.models.norms import (
    Update,
    check_finite,
    dense,
    frobenius_norm,
    ratio,
    spectral_norm,
    update_blocks,
)
from lowrank_core.models.pairing.pairs import WeightPair
from lowrank_core.models.rounding import rounded


def base_figures(
    layer: AdapterLayer | WeightPair,
    update: Update | None,
    decomposed: Spectrum,
    intruders: int,
    weight: NDArray[Any] | None = None,
) -> BaseFigures | None:
    """Return the figures of an update and of the weight that it is added to; None where the base has none.

    `update` is None for a layer of two checkpoints that is too large to be in memory: its figures are those of norms.
    `intruders` is how many leading left vectors of W + Δ are examined. A `weight` that is not given is read.
    """
    if update is None and isinstance(layer, WeightPair):
        norm = layer.base_norm()
        return BaseFigures(norm=norm, relative_norm=ratio(float(decomposed.norm), norm))
    weight = read_weight(layer) if weight is None else weight
    if weight is None or update is None:
        return None
    norm, largest = frobenius_norm(weight), spectral_norm(weight)
    error, unchanged = merge_loss(weight, update) if isinstance(layer, AdapterLayer) else (None, None)
    return BaseFigures(
        norm=norm,
        relative_norm=ratio(float(decomposed.norm), norm),
        spectral_norm=largest,
        relative_spectral_norm=ratio(float(decomposed.values[0]), largest),
        merge_error=error,
        merge_unchanged=unchanged,
        intruders=count_intruders(weight, dense(update), intruders) if intruders else None,
    )


def weight_of(layer: AdapterLayer | WeightPair) -> Weight | None:
    """Return the base's weight that a layer's update is added to; None where there is none of its shape."""
    stored = layer.base if isinstance(layer, WeightPair) else layer.weight
    if stored is None or not stored.is_floating:
        return None
    shape = as_matrix(stored.shape)
    return stored if layer.shape in (shape, shape[::-1]) else None


def read_weight(layer: AdapterLayer | WeightPair) -> NDArray[Any] | None:
    """Read the base's weight as a matrix of a layer's shape; None where there is none of that shape."""
    stored = weight_of(layer)
    if stored is None:
        return None
    shape = as_matrix(stored.shape)
    weight = stored.read().reshape(shape)
    check_finite(f"the base's weight of {layer.name!r}", weight)
    return weight if shape == layer.shape else weight.T


def merge_loss(weight: NDArray[Any], update: Update) -> tuple[float, float]:
    """Compute what rounding W + Δ to the dtype of W loses.

    Returns ‖lost‖/‖Δ‖, 0 for an update of zero, and the fraction of the entries of W that stay as they are.
    """
    lost, norms, unchanged = [], [], 0
    for rows, delta in update_blocks(update):
        before = weight[rows].astype(np.float64)
        # The change itself, and not the sum, of which float64 would have rounded the update away too.
        change = rounded(before + delta, weight.dtype.name).astype(np.float64) - before
        lost.append(frobenius_norm(change - delta))
        norms.append(frobenius_norm(delta))
        unchanged += change.size - int(np.count_nonzero(change))
    norm = math.hypot(*norms)
    return math.hypot(*lost) / norm if norm else 0.0, unchanged / weight.size
