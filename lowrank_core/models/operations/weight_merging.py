"""Updates added to weights in float64 and rounded once, a block of rows at a time, and what the rounding loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import as_dtype
from lowrank_core.models.norms import check_finite, frobenius_norm, ratio, row_blocks, update_blocks
from lowrank_core.models.operations.changes import Change, WeightUpdate
from lowrank_core.models.rounding import includes, rounded, ulps_in


@dataclass(frozen=True)
class RoundingLoss:
    r"""What rounding W + Δ to a stored dtype loses of the update Δ.

    Attributes
    ----------
    entries : int
        Number of entries of the update.
    norm, base_norm, relative_norm : float
        ‖Δ‖, ‖W‖, and ‖Δ‖/‖W‖.
    lost : float
        ‖round(W + Δ) − (W + Δ)‖.
    error : float
        lost / norm; 0 where nothing is lost, infinite where that is more than an update of zero.
    below_half_ulp : float
        The fraction of the entries with :math:`|\Delta_{ij}| < \mathrm{ulp}(W_{ij}) / 2`: rounding to nearest returns
        the weight itself, unless it is a power of two and the update shrinks it.
    unchanged : float
        The fraction of the entries of which round(W + Δ) is round(W).
    """

    entries: int
    norm: float
    base_norm: float
    relative_norm: float
    lost: float
    error: float
    below_half_ulp: float
    unchanged: float


class Merged(NamedTuple):
    """A tensor with its updates: the losses by name, and the updates that could not be added, with the reason."""

    tensor: NDArray[Any]
    losses: dict[str, RoundingLoss]
    failures: dict[str, str]


def merge_change(change: Change, dtype: str) -> Merged:
    """Read a tensor and add its updates, one after the other; where one fails, its matrix is as it was."""
    tensor = converted(change.read(), dtype)
    losses, failures = {}, {}
    for update in change.updates:
        try:
            losses[update.name] = _add(update, change, tensor, dtype)
        except ValueError as error:
            failures[update.name] = str(error)
            restored = converted(change.read(), dtype)
            update.matrix_of(tensor)[...] = update.matrix_of(restored)
    return Merged(tensor, losses, failures)


def converted(tensor: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return a tensor in a dtype, rounded once; the tensor itself where that is its own."""
    if tensor.dtype.name == dtype:
        return tensor
    result = np.empty(tensor.shape, as_dtype(dtype))
    source, target = np.atleast_1d(tensor), np.atleast_1d(result)
    with np.errstate(invalid="ignore"):  # the conversion of a signalling NaN warns
        for rows in row_blocks(source.shape):
            target[rows] = rounded(source[rows].astype(np.float64), dtype)
    return result


def block_loss(
    weight: NDArray[np.float64], delta: NDArray[Any], exact: NDArray[np.float64], stored: NDArray[Any], dtype: str
) -> RoundingLoss:
    """Return what rounding `exact`, the sum of weight and delta, to `stored` loses in a block of rows."""
    lost = frobenius_norm(stored.astype(np.float64) - exact)
    norm, base_norm = frobenius_norm(delta), frobenius_norm(weight)
    below = np.count_nonzero(np.abs(delta) < ulps_in(weight, dtype) / 2) if delta.size else 0
    unchanged = np.count_nonzero(stored == rounded(weight, dtype))
    size = max(delta.size, 1)
    return RoundingLoss(
        entries=delta.size,
        norm=norm,
        base_norm=base_norm,
        relative_norm=ratio(norm, base_norm),
        lost=lost,
        error=ratio(lost, norm),
        below_half_ulp=below / size,
        unchanged=unchanged / size,
    )


def combined(losses: Sequence[RoundingLoss]) -> RoundingLoss:
    """Return the loss of several updates together, as if they were the diagonal blocks of one."""
    entries = sum(loss.entries for loss in losses)
    norm, base_norm, lost = (
        math.hypot(*(getattr(loss, name) for loss in losses)) for name in ("norm", "base_norm", "lost")
    )

    def together(fractions: Sequence[float]) -> float:
        counts = (loss.entries * fraction for loss, fraction in zip(losses, fractions, strict=True))
        return math.fsum(counts) / max(entries, 1)

    return RoundingLoss(
        entries=entries,
        norm=norm,
        base_norm=base_norm,
        relative_norm=ratio(norm, base_norm),
        lost=lost,
        error=ratio(lost, norm),
        below_half_ulp=together([loss.below_half_ulp for loss in losses]),
        unchanged=together([loss.unchanged for loss in losses]),
    )


def _add(update: WeightUpdate, change: Change, tensor: NDArray[Any], dtype: str) -> RoundingLoss:
    """Add an update to its matrix, in place, and return what rounding lost of it."""
    target = update.matrix_of(tensor)
    # The tensor itself is the weight, unless that may have been rounded on the way.
    is_exact = includes(dtype, change.weight.array_dtype)
    weight = target if is_exact else update.matrix_of(change.read())
    check_finite(f"the base's {change.key!r}", weight)
    losses = []
    for rows, delta in update_blocks(update.read()):
        before = weight[rows].astype(np.float64)
        exact = before + delta
        stored = rounded(exact, dtype)
        bad = stored.size - int(np.count_nonzero(np.isfinite(stored)))
        if bad:
            raise ValueError(f"{bad} of the {stored.size} entries from row {rows.start} on do not fit {dtype}")
        target[rows] = stored
        losses.append(block_loss(before, delta, exact, stored, dtype))
    return combined(losses)
