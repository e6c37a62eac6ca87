"""A run in rows: one for each layer at each step, of its update and of how far that turned since the step before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

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


# What is computed of an update, in the order of the fields.
_FIGURES = tuple(field.name for field in fields(HistoryRow) if field.name not in {"step", "name"})


def history_rows(
    step: int, names: Sequence[str], updates: Update, previous: Update | None, leading: int
) -> list[HistoryRow]:
    """Return the rows of a stack of updates, from the cores of its factors and of those of the step before.

    Of one update by itself they are one row.
    """
    values = spectrum(updates, workers=1)
    norms, largest = np.atleast_1d(values.norm), np.zeros(len(names))
    if values.values.size:
        largest = np.atleast_1d(values.values[..., 0])
    angles = np.full((2, len(names)), np.nan)
    if previous is not None and leading:
        compared = compare(previous, updates, rank=min(leading, *updates.shape[-2:]), workers=1)
        angles = np.stack([_largest_angles(space) for space in (compared.columns, compared.rows)])
    fractions = np.square(largest / np.where(norms > 0, norms, 1.0))
    figures = (norms, largest, fractions, np.atleast_1d(effective_rank(values)), *angles)
    return [
        HistoryRow(step=step, name=name, **dict(zip(_FIGURES, numbers, strict=True)))
        for name, *numbers in zip(names, *(column.tolist() for column in figures), strict=True)
    ]


def _largest_angles(space: SpaceOverlap) -> NDArray[np.float64]:
    """Return the largest principal angle of each pair in degrees; NaN where there is none."""
    largest = np.fmax.reduce(space.angles, axis=-1, initial=np.nan)
    return np.asarray(np.degrees(np.atleast_1d(largest)))
