"""Theorems on how much of the leading energy block Krylov iteration misses, at any tolerance and for any spectrum."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.repeated import rotated, stepped_values
from lowrank_core import spectrum, truncate

COUNT = 96
RANKS = 1 + np.arange(COUNT)
# What of the energy the sums of a float64 SVD are accurate to, and the fraction of it that a tail counts for at least.
ROUNDING = 1e-13
LEAST_TAIL = {"float32": 1e-6, "float64": 1e-12}

# A value in several copies, or apart from the next by less than float32 resolves.
CLUSTERS = np.repeat(0.7 ** np.arange(8.0), 12) * (1 - 1e-8 * np.tile(np.arange(12), 8))

falling_values = st.floats(0, 2).map(lambda power: RANKS**-power) | st.floats(0.3, 1).map(lambda base: base**RANKS)
dtypes, ranks, seeds = st.sampled_from(["float32", "float64"]), st.integers(1, 24), st.integers(0, 2**32)
tolerances = st.none() | st.floats(-12, -1).map(lambda exponent: 10.0**exponent)


@given(stepped_values(COUNT) | falling_values, ranks, dtypes, tolerances, seeds)
@example(RANKS**-0.5, 8, "float32", 1e-6, 0)
@example(RANKS**-1.0, 8, "float64", 1e-12, 0)
@example(np.ones(COUNT), 8, "float32", 1e-3, 0)
@example(CLUSTERS, 16, "float32", 1e-4, 0)
@example(np.r_[np.ones(40), np.full(COUNT - 40, 1e-3)], 20, "float64", 1e-9, 0)
def test_no_more_is_missed_than_is_certified_and_that_is_within_the_tolerance(values, rank, dtype, tolerance, seed):
    matrix = rotated(values, seed, dtype)
    energies = spectrum(matrix.astype(np.float64), method="lapack").values ** 2
    energy, tail = np.sum(energies), np.sum(energies[rank:])
    result = spectrum(matrix, rank=rank, method="krylov", tolerance=tolerance, rng=seed)
    best = truncate(matrix, rank, method="krylov", tolerance=tolerance, rng=seed)
    may_miss = {"float32": 1e-6, "float64": 1e-12}[dtype] if tolerance is None else tolerance
    assert 0 <= result.missed <= may_miss
    bound = float(result.missed) * max(tail, LEAST_TAIL[dtype] * energy) + ROUNDING * energy
    assert np.sum(energies[:rank]) - np.sum(result.values**2) <= bound
    assert np.linalg.norm(matrix - best.to_dense()) ** 2 - tail <= bound
