"""A run in rows: one for each layer at each step, of its update and of how far that turned since the step before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lowrank_core import SpaceOverlap, compare, effective_rank, spectrum
from lowrank_core.models.norms import Update

DEFAULT_LEADING = 4


@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """One layer's update at one step of a run.

    Attributes
    ----------
    step : int
        Number of training steps taken.
    name : str
        The module's name.
    norm, largest_value : float
        Frobenius norm, and the largest singular value σ₁.
    leading_variance : float
        σ₁²/N², the fraction of the variance in one direction; 0 for a zero update.
    effective_rank : float
        As :func:`lowrank_core.effective_rank`.
    column_angle, row_angle : float
        Largest principal angle, in degrees, between the leading column spaces, and row spaces, of this update and of
        the one at the step before; NaN at the first step and for a zero update.
    """

    step: int
    name: str
    norm: float
    largest_value: float
    leading_variance: float
    effective_rank: float
    column_angle: float
    row_angle: float


def history_row(step: int, name: str, update: Update, previous: Update | None, leading: int) -> HistoryRow:
    """Return the row of an update, from the cores of its factors and of those of the step before."""
    values = spectrum(update, workers=1)
    norm, largest = float(values.norm), float(values.values[0]) if values.values.size else 0.0
    angles = (math.nan, math.nan)
    if previous is not None and leading:
        compared = compare(previous, update, rank=min(leading, *update.shape[-2:]), workers=1)
        angles = _largest_angle(compared.columns), _largest_angle(compared.rows)
    return HistoryRow(
        step=step,
        name=name,
        norm=norm,
        largest_value=largest,
        leading_variance=(largest / norm) ** 2 if norm else 0.0,
        effective_rank=float(effective_rank(values)),
        column_angle=angles[0],
        row_angle=angles[1],
    )


def _largest_angle(space: SpaceOverlap) -> float:
    """Return the largest principal angle in degrees; NaN where there is none."""
    angles = space.angles[np.isfinite(space.angles)]
    return float(np.degrees(angles[-1])) if angles.size else math.nan
