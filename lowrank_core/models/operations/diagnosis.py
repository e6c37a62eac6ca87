"""What a wrongly merged weight looks like: its difference from the base, compared with the update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core.models.formats import AdapterLayer
from lowrank_core.models.formats.adapter import transposed
from lowrank_core.models.norms import Update, one_blas_thread, row_blocks, update_blocks
from lowrank_core.models.rounding import ulps_in

# Dtypes that a merge is made in by mistake, the coarsest first: most numbers of bfloat16 are some of float16.
_COARSER = ("bfloat16", "float16")


class _Sums(NamedTuple):
    """Sums over the entries of a weight: of C², CΔ and Δ² with C its difference from the base, and of its ulp²."""

    change: float
    inner: float
    update: float
    ulp: float

    def residual(self, factor: float) -> float:
        """Return ‖C − cΔ‖² of a factor c."""
        return self.change - 2 * factor * self.inner + factor**2 * self.update

    def explains(self, factor: float, eps: float) -> bool:
        """Whether what is left of C − cΔ is as small as rounding: on average an ulp of the weight or of the update."""
        # In float64, the residual is known to so many digits of its terms.
        known = 1e-14 * (self.change + factor**2 * self.update)
        return self.residual(factor) <= self.ulp + (2 * eps * factor) ** 2 * self.update + known


def diagnose(weight: NDArray[Any], merged: NDArray[Any], update: Update, layer: AdapterLayer | None) -> str:
    """Return in words what the merged weight looks like; empty where that cannot be told."""
    stored = merged.dtype.name
    eps = FLOATS[stored].eps
    sums = _sums(weight, merged, update)
    factors = [(factor, meaning) for factor, meaning in _factors(layer) if sums.explains(factor, eps)]
    if factors:
        least = min(sums.residual(factor) for factor, _ in factors)
        # Rules agree at some ranks: √r is 2 at rank 4.
        return " or ".join(meaning for factor, meaning in factors if math.isclose(sums.residual(factor), least))
    if weight.shape[0] == weight.shape[1] and _sums(weight, merged, transposed(update)).explains(1.0, eps):
        return "the update is transposed"
    coarser = next((name for name in _COARSER if FLOATS[name].eps > eps and _is_within(merged, name)), "")
    if coarser:
        return f"all its values are numbers of {coarser}: merged in {coarser}, and stored in {stored}"
    return _projection(sums)


def _factors(layer: AdapterLayer | None) -> Iterator[tuple[float, str]]:
    """Yield multiples of the update that mistakes make, and what each of them is."""
    yield 0.0, "not merged: the base's weight"
    yield 2.0, "applied twice"
    yield -1.0, "subtracted instead of added"
    if layer is not None and layer.rank > 1:
        root = math.sqrt(layer.rank)
        if layer.rule == "rslora":
            yield 1 / root, "rsLoRA read as α/r: the update divided by √r"
        else:
            yield root, "α/r read as rsLoRA: the update multiplied by √r"
    if layer is not None and layer.scaling not in (0.0, 1.0):
        yield 1 / layer.scaling, "without the scale: BA in place of γBA"
        yield layer.scaling, "the scale applied twice: γ²BA in place of γBA"


def _sums(weight: NDArray[Any], merged: NDArray[Any], update: Update) -> _Sums:
    parts = []
    for rows, block in update_blocks(update):
        before, after, delta = (array.astype(np.float64) for array in (weight[rows], merged[rows], block))
        change = after - before
        steps = ulps_in(np.maximum(np.abs(before), np.abs(after)), merged.dtype.name)
        with one_blas_thread():
            pairs = ((change, change), (change, delta), (delta, delta), (steps, steps))
            parts.append([float(np.vdot(one, other)) for one, other in pairs])
    return _Sums(*(math.fsum(column) for column in zip(*parts, strict=True)))


def _is_within(merged: NDArray[Any], dtype: str) -> bool:
    """Whether every entry is a number of a coarser dtype."""
    with np.errstate(over="ignore"):
        return all(
            bool((merged[rows] == merged[rows].astype(as_dtype(dtype)).astype(merged.dtype)).all())
            for rows in row_blocks(merged.shape)
        )


def _projection(sums: _Sums) -> str:
    """Return how much of the update is in the change, and how much else."""
    if not sums.update:
        return ""
    factor = sums.inner / sums.update
    rest = math.sqrt(max(sums.residual(factor), 0.0) / sums.update)
    return f"{factor:.4g} times the update, and {rest:.3g} of its norm besides"
