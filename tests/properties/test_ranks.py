"""Theorems on ranks: least ones, and measures of how many an update has."""

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

# Norms and ratios of subnormal numbers have few digits: measures that divide by them are held to theorems elsewhere.
REGULAR = ("ordinary", "repeated", "clustered", "deficient", "graded", "huge")
fractions = st.floats(0.0, 1.0) | st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0])
regular = spectra(kinds=REGULAR)


def repeated(of, copies):
    """The spectrum of `copies` equal updates on a block diagonal."""
    values = np.repeat(of.values, copies)
    norm = np.float64(oracles.norm(np.ldexp(values, -600))) if of.norm > 1e200 else np.float64(oracles.norm(values))
    return Spectrum(values, np.ldexp(norm, 600 if of.norm > 1e200 else 0), tuple(copies * s for s in of.shape), True)


@given(spectra(complete=None), fractions)
def test_variance_least_rank_agrees_with_variance_captured_to_the_bit(of, fraction):
    captured = variance_captured(of)
    assume(captured[-1] >= fraction)
    rank = rank_for_variance(of, fraction)
    if of.norm == 0:
        assert rank == 0
        return
    assert rank >= 1
    assert captured[rank] >= fraction
    assert rank == 1 or captured[rank - 1] < fraction


@given(spectra(complete=None), fractions)
def test_error_least_rank_agrees_with_reconstruction_error_to_the_bit(of, error):
    errors = reconstruction_error(of)
    assume(errors[-1] <= error)
    rank = rank_for_error(of, error)
    if of.norm == 0:
        assert rank == 0
        return
    assert rank >= 1
    assert errors[rank] <= error
    assert rank == 1 or errors[rank - 1] > error


@given(regular, fractions)
def test_least_ranks_are_those_of_exact_arithmetic_off_ties(of, fraction):
    exact = np.array([oracles.variance_captured(of.values, rank) for rank in range(len(of.values) + 1)])
    assume(np.all(np.abs(exact - fraction) > 1e-14) or fraction == 1)
    # The last values of a graded spectrum add nothing that float64 can hold.
    if fraction < 1:
        assert rank_for_variance(of, fraction) == oracles.rank_for_variance(of.values, fraction)
    errors = np.array([oracles.error(of.values, rank) for rank in range(len(of.values) + 1)])
    assume(np.all(np.abs(errors - fraction) > 1e-14 * errors))
    assume(fraction > 1e-150)
    assert rank_for_error(of, fraction) == oracles.rank_for_error(of.values, fraction)


@given(spectra().filter(lambda of: of.norm > 0), fractions)
@example(Spectrum([1.0, 0.0], 1.0, (2, 2), complete=True), 5e-324)
@example(Spectrum([0.5, 5e-324], 0.5, (2, 2), complete=True), 5e-324)
def test_ratio_counts_values_by_its_definition(of, ratio):
    exact = Fraction(ratio) * Fraction(float(of.values[0]))
    rank = rank_for_ratio(of, ratio)
    if ratio == 0:
        assert rank == min(of.shape)
        return
    # A value within a rounding of the threshold may count either way.
    near = [abs(Fraction(float(value)) - exact) <= Fraction(float(value)) / 2**52 for value in of.values]
    sure = oracles.rank_for_ratio(of.values, ratio)
    assert abs(int(rank) - sure) <= sum(near)


@given(spectra().filter(lambda of: of.norm > 0), fractions, fractions)
def test_asking_more_needs_no_fewer_ranks(of, one, other):
    low, high = sorted([one, other])
    assert rank_for_variance(of, low) <= rank_for_variance(of, high)
    assert rank_for_error(of, high) <= rank_for_error(of, low)
    assert rank_for_ratio(of, high) <= rank_for_ratio(of, low)


@given(spectra(complete=None), fractions)
def test_every_rule_gives_zero_for_zero_and_at_least_one_otherwise(of, fraction):
    for rule in (rank_for_variance, rank_for_error, rank_for_ratio):
        try:
            rank = rule(of, fraction)
        except ValueError:
            assert not of.complete
            continue
        assert (rank == 0) == (of.norm == 0)
        assert rank <= min(of.shape)


@given(regular)
def test_effective_rank_is_the_exponential_of_the_entropy(of):
    assert abs(effective_rank(of) - oracles.effective_rank(of.values)) <= 1e-13 * oracles.effective_rank(of.values)


@given(regular)
def test_stable_rank_is_the_ratio_of_squares(of):
    assert abs(stable_rank(of) - oracles.stable_rank(of.values)) <= 1e-14 * oracles.stable_rank(of.values)


@given(regular)
def test_stable_rank_is_at_most_effective_rank_and_that_at_most_the_rank(of):
    # (Σσ)²/Σσ² lies between the two, since entropies fall with their order, and Σσ² ≤ σ₁ Σσ.
    nonzero = np.count_nonzero(of.values)
    assert 1 - 1e-14 <= stable_rank(of) <= effective_rank(of) * (1 + 1e-13)
    assert effective_rank(of) <= nonzero * (1 + 1e-13)


@given(spectra(kinds=["ordinary", "repeated", "clustered", "deficient", "graded"]), st.integers(1, 4))
def test_copies_on_a_block_diagonal_multiply_ranks(of, copies):
    many = repeated(of, copies)
    assert abs(effective_rank(many) - copies * effective_rank(of)) <= 1e-13 * effective_rank(many)
    assert abs(stable_rank(many) - copies * stable_rank(of)) <= 1e-13 * stable_rank(many)
    assert rank_for_ratio(many, 0.5) == copies * rank_for_ratio(of, 0.5)


@given(st.integers(1, 8), st.floats(1e-300, 1e300))
def test_equal_values_have_every_rank_equal_to_their_number(count, size):
    of = Spectrum(np.full(count, size), size * np.sqrt(count), (count, 9), complete=True)
    for measure in (effective_rank, stable_rank, numerical_rank):
        assert measure(of) == pytest.approx(count, rel=1e-14)


@given(regular, st.integers(-30, 30))
def test_ranks_do_not_depend_on_size(of, power):
    assume(1e-200 < of.norm < 1e290 and of.values[-1] > 1e-280)
    moved = Spectrum(np.ldexp(of.values, power), np.ldexp(of.norm, power), of.shape, complete=True)
    for measure in (effective_rank, stable_rank, numerical_rank):
        assert measure(moved) == measure(of)


@st.composite
def halving_spectra(draw):
    """Each value half of the one before, down past every threshold; of matrices as wide as real ones."""
    count = draw(st.integers(1, 60))
    values = np.exp2(draw(st.integers(-200, 200)) - np.arange(count))
    return Spectrum(values, oracles.norm(values), (count, count + draw(st.integers(0, 200_000))), complete=True)


@given(spectra() | halving_spectra(), st.sampled_from(["float64", "float32", "float16", "bfloat16"]))
def test_numerical_rank_counts_values_above_its_threshold(of, dtype):
    stored = Spectrum(of.values, of.norm, of.shape, complete=True, dtype=dtype)
    rank = numerical_rank(stored)
    if of.norm == 0:
        assert rank == 0
        return
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    relative = max(max(of.shape) * bounds.EPS64, 0 if dtype == "float64" else 10 * bounds.EPS32)
    threshold = max(Fraction(relative) * Fraction(float(of.values[0])), Fraction(eps) / 2 * Fraction(float(of.norm)))
    count = sum(Fraction(float(value)) >= threshold for value in of.values)
    near = sum(abs(Fraction(float(value)) - threshold) <= threshold / 2**50 for value in of.values)
    assert abs(int(rank) - max(count, 1)) <= near


@given(spectra())
def test_coarser_storage_has_no_more_numerical_rank(of):
    ranks = [
        numerical_rank(Spectrum(of.values, of.norm, of.shape, complete=True, dtype=dtype))
        for dtype in ("float64", "float32", "float16", "bfloat16")
    ]
    assert ranks == sorted(ranks, reverse=True)


@given(regular, st.floats(0.0, 10.0))
def test_rank_above_noise_counts_values_above_its_threshold(of, relative):
    m, n = of.shape
    beta = min(m, n) / max(m, n)
    with np.errstate(over="ignore"):
        noise = relative * (of.norm / np.sqrt(m * n))
    assume(np.isfinite(noise))
    factor = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    threshold = factor * (relative / np.sqrt(min(m, n)))
    assume(np.all(np.abs(of.values / of.norm - threshold) > 1e-12 * threshold))
    assert rank_above_noise(of, noise) == np.sum(of.values / of.norm > threshold)


@given(spectra(), st.floats(0.0, 1e3), st.floats(1.0, 10.0))
def test_more_noise_leaves_no_more_ranks(of, noise, factor):
    assert rank_above_noise(of, noise * factor) <= rank_above_noise(of, noise)
    assert rank_above_noise(of, 0.0) == np.count_nonzero(of.values)
