"""Theorems on least ranks and on measures of rank."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowrank_core import (
    Spectrum,
    effective_rank,
    numerical_rank,
    rank_above_noise,
    rank_for_error,
    rank_for_ratio,
    rank_for_variance,
    reconstruction_error,
    stable_rank,
    variance_captured,
)
from lowrank_core.testing import spectra
from tests import bounds, oracles

# Norms and ratios of subnormal numbers have few digits: measures that divide by them have their theorems elsewhere.
REGULAR = ("ordinary", "repeated", "clustered", "deficient", "graded", "huge")
fractions = st.floats(0.0, 1.0) | st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0])
regular = spectra(kinds=REGULAR)


def repeated(s, copies):
    """The spectrum of `copies` equal updates on a block diagonal."""
    values = np.repeat(s.values, copies)
    norm = np.float64(oracles.norm(np.ldexp(values, -600))) if s.norm > 1e200 else np.float64(oracles.norm(values))
    return Spectrum(
        values, np.ldexp(norm, 600 if s.norm > 1e200 else 0), tuple(copies * side for side in s.shape), True
    )


@given(spectra(complete=None), fractions)
def test_variance_least_rank_agrees_with_variance_captured_to_the_bit(s, fraction):
    captured = variance_captured(s)
    assume(captured[-1] >= fraction)
    rank = rank_for_variance(s, fraction)
    if s.norm == 0:
        assert rank == 0
        return
    assert rank >= 1
    assert captured[rank] >= fraction
    assert rank == 1 or captured[rank - 1] < fraction


@given(spectra(complete=None), fractions)
def test_error_least_rank_agrees_with_reconstruction_error_to_the_bit(s, error):
    errors = reconstruction_error(s)
    assume(errors[-1] <= error)
    rank = rank_for_error(s, error)
    if s.norm == 0:
        assert rank == 0
        return
    assert rank >= 1
    assert errors[rank] <= error
    assert rank == 1 or errors[rank - 1] > error


@given(regular, fractions)
def test_least_ranks_are_those_of_exact_arithmetic_off_ties(s, fraction):
    exact = np.array([oracles.variance_captured(s.values, rank) for rank in range(len(s.values) + 1)])
    assume(np.all(np.abs(exact - fraction) > 1e-14) or fraction == 1)
    # The last values of a graded spectrum add less than float64 resolves.
    if fraction < 1:
        assert rank_for_variance(s, fraction) == oracles.rank_for_variance(s.values, fraction)
    errors = np.array([oracles.error(s.values, rank) for rank in range(len(s.values) + 1)])
    assume(np.all(np.abs(errors - fraction) > 1e-14 * errors))
    assume(fraction > 1e-150)
    assert rank_for_error(s, fraction) == oracles.rank_for_error(s.values, fraction)


@given(spectra().filter(lambda s: s.norm > 0), fractions)
@example(Spectrum([1.0, 0.0], 1.0, (2, 2), complete=True), 5e-324)
@example(Spectrum([0.5, 5e-324], 0.5, (2, 2), complete=True), 5e-324)
def test_ratio_counts_values_by_its_definition(s, ratio):
    exact = Fraction(ratio) * Fraction(float(s.values[0]))
    rank = rank_for_ratio(s, ratio)
    if ratio == 0:
        assert rank == min(s.shape)
        return
    # A value within a rounding of the threshold may count either way.
    near = [abs(Fraction(float(value)) - exact) <= Fraction(float(value)) / 2**52 for value in s.values]
    sure = oracles.rank_for_ratio(s.values, ratio)
    assert abs(int(rank) - sure) <= sum(near)


@given(spectra().filter(lambda s: s.norm > 0), fractions, fractions)
def test_a_stricter_target_needs_no_fewer_ranks(s, one, other):
    low, high = sorted([one, other])
    assert rank_for_variance(s, low) <= rank_for_variance(s, high)
    assert rank_for_error(s, high) <= rank_for_error(s, low)
    assert rank_for_ratio(s, high) <= rank_for_ratio(s, low)


@given(spectra(complete=None), fractions)
def test_every_rule_gives_zero_for_zero_and_at_least_one_otherwise(s, fraction):
    for rule in (rank_for_variance, rank_for_error, rank_for_ratio):
        try:
            rank = rule(s, fraction)
        except ValueError:
            assert not s.complete
            continue
        assert (rank == 0) == (s.norm == 0)
        assert rank <= min(s.shape)


@given(regular)
def test_effective_rank_is_the_exponential_of_the_entropy(s):
    assert abs(effective_rank(s) - oracles.effective_rank(s.values)) <= 1e-13 * oracles.effective_rank(s.values)


@given(regular)
def test_stable_rank_is_the_ratio_of_squares(s):
    assert abs(stable_rank(s) - oracles.stable_rank(s.values)) <= 1e-14 * oracles.stable_rank(s.values)


@given(regular)
def test_stable_rank_is_at_most_effective_rank_and_that_at_most_the_rank(s):
    # (Σσ)²/Σσ² lies between the two, since entropies fall with their order, and Σσ² ≤ σ₁ Σσ.
    nonzero = np.count_nonzero(s.values)
    assert 1 - 1e-14 <= stable_rank(s) <= effective_rank(s) * (1 + 1e-13)
    assert effective_rank(s) <= nonzero * (1 + 1e-13)


@given(spectra(kinds=["ordinary", "repeated", "clustered", "deficient", "graded"]), st.integers(1, 4))
def test_copies_on_a_block_diagonal_multiply_ranks(s, copies):
    many = repeated(s, copies)
    assert abs(effective_rank(many) - copies * effective_rank(s)) <= 1e-13 * effective_rank(many)
    assert abs(stable_rank(many) - copies * stable_rank(s)) <= 1e-13 * stable_rank(many)
    assert rank_for_ratio(many, 0.5) == copies * rank_for_ratio(s, 0.5)


@given(st.integers(1, 8), st.floats(1e-300, 1e300))
def test_equal_values_have_every_rank_equal_to_their_number(count, size):
    s = Spectrum(np.full(count, size), size * np.sqrt(count), (count, 9), complete=True)
    for measure in (effective_rank, stable_rank, numerical_rank):
        assert measure(s) == pytest.approx(count, rel=1e-14)


@given(regular, st.integers(-30, 30))
def test_ranks_do_not_depend_on_size(s, power):
    assume(1e-200 < s.norm < 1e290 and s.values[-1] > 1e-280)
    moved = Spectrum(np.ldexp(s.values, power), np.ldexp(s.norm, power), s.shape, complete=True)
    for measure in (effective_rank, stable_rank, numerical_rank):
        assert measure(moved) == measure(s)


@st.composite
def halving_spectra(draw):
    """Each value half of the one before, down past every threshold; of matrices as wide as real ones."""
    count = draw(st.integers(1, 60))
    values = np.exp2(draw(st.integers(-200, 200)) - np.arange(count))
    return Spectrum(values, oracles.norm(values), (count, count + draw(st.integers(0, 200_000))), complete=True)


@given(spectra() | halving_spectra(), st.sampled_from(["float64", "float32", "float16", "bfloat16"]))
def test_numerical_rank_counts_values_above_its_threshold(s, dtype):
    stored = Spectrum(s.values, s.norm, s.shape, complete=True, dtype=dtype)
    rank = numerical_rank(stored)
    if s.norm == 0:
        assert rank == 0
        return
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    relative = max(max(s.shape) * bounds.EPS64, 0 if dtype == "float64" else 10 * bounds.EPS32)
    threshold = max(Fraction(relative) * Fraction(float(s.values[0])), Fraction(eps) / 2 * Fraction(float(s.norm)))
    count = sum(Fraction(float(value)) >= threshold for value in s.values)
    near = sum(abs(Fraction(float(value)) - threshold) <= threshold / 2**50 for value in s.values)
    assert abs(int(rank) - max(count, 1)) <= near


@given(spectra())
def test_a_coarser_dtype_has_no_larger_numerical_rank(s):
    ranks = [
        numerical_rank(Spectrum(s.values, s.norm, s.shape, complete=True, dtype=dtype))
        for dtype in ("float64", "float32", "float16", "bfloat16")
    ]
    assert ranks == sorted(ranks, reverse=True)


@given(regular, st.floats(0.0, 10.0))
def test_rank_above_noise_counts_values_above_its_threshold(s, relative):
    m, n = s.shape
    beta = min(m, n) / max(m, n)
    with np.errstate(over="ignore"):
        noise = relative * (s.norm / np.sqrt(m * n))
    assume(np.isfinite(noise))
    factor = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    threshold = factor * (relative / np.sqrt(min(m, n)))
    assume(np.all(np.abs(s.values / s.norm - threshold) > 1e-12 * threshold))
    assert rank_above_noise(s, noise) == np.sum(s.values / s.norm > threshold)


@given(spectra(), st.floats(0.0, 1e3), st.floats(1.0, 10.0))
def test_more_noise_leaves_no_larger_rank(s, noise, factor):
    assert rank_above_noise(s, noise * factor) <= rank_above_noise(s, noise)
    assert rank_above_noise(s, 0.0) == np.count_nonzero(s.values)
