"""What reports say of two overlapping spaces."""

from __future__ import annotations

import math

import numpy as np

from lowrank_core import SpaceOverlap


def whole_overlap(space: SpaceOverlap) -> tuple[float, float]:
    """Return the overlap of two whole spaces, as far as they were compared, and its level by chance."""
    if not space.overlap.size:
        return 0.0, 0.0
    return float(space.overlap[-1, -1]), float(space.overlap_by_chance[-1, -1])


def smallest_angle(space: SpaceOverlap) -> float:
    """Return the smallest principal angle in degrees; NaN where there is none."""
    return float(np.degrees(space.angles[0])) if space.angles.size else math.nan
