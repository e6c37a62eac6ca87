"""Theorems on leading singular values with many copies, of matrices larger than a block of vectors."""

import numpy as np
from hypothesis import example, given, settings, target
from hypothesis import strategies as st

from benchmarks.repeated import missed_over_tolerance, rotated, stepped_values
from lowrank_core import spectrum

# Where "auto" can take krylov: from this smaller side on, for at most this fraction of the values.
SMALLEST_SIDE, LARGEST_FRACTION = 1024, 1 / 16


@st.composite
def sides(draw):
    """Draw the side of a matrix: at most 300, and in the long profile one of thirty larger, up to 2,048."""
    ranges = {300: 64, SMALLEST_SIDE: 301, 2048: SMALLEST_SIDE}
    large = [SMALLEST_SIDE, 2048] if settings().max_examples >= 10_000 else []
    largest = draw(st.sampled_from([300] * 60 + large))
    return draw(st.integers(ranges[largest], largest))


@st.composite
def problems(draw):
    """Draw singular values with copies, a rank, a dtype and a method, "auto" where it can take krylov."""
    side = draw(sides())
    rank = draw(st.integers(1, max(60, int(side * LARGEST_FRACTION))))
    large = side >= SMALLEST_SIDE
    dtype, method = draw(
        st.sampled_from([("float32", "auto" if large else "krylov"), ("float32", "krylov"), ("float64", "krylov")])
    )
    return draw(stepped_values(side)), rank, dtype, method


# After two blocks one direction is left, and otherwise rounding alone.
ONE_DIRECTION = np.r_[np.ones(61), 0.975, 0.95, 0.925, 0.9, np.zeros(235)]
# Ten blocks of which one pass leaves little along the others, and more from block to block.
TEN_BLOCKS = np.sort(np.r_[np.linspace(1, 0.999, 144), np.linspace(1, 0.5, 118), np.zeros(38)])[::-1]


@given(problems(), st.integers(0, 2**32))
@example((ONE_DIRECTION, 1, "float32", "krylov"), 0)
@example((TEN_BLOCKS, 1, "float32", "krylov"), 0)
def test_krylov_stays_within_its_tolerance_whatever_the_copies(problem, seed):
    values, rank, dtype, method = problem
    matrix = rotated(values, seed, dtype)
    missed = missed_over_tolerance(matrix, rank, spectrum(matrix, rank=rank, method=method, rng=seed).values)
    target(missed)
    assert missed <= 1
