"""Theorems on variance captured and on errors, for spectra against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowrank_core import Spectrum, error_sweep, power_rule, reconstruction_error, spectrum, truncate, variance_captured
from lowrank_core.testing import ranks_for, spectra, updates
from tests import bounds, oracles

EPS = bounds.EPS64
# The norms of two spectra that differ in scale alone round alike, unless numbers are subnormal.
REGULAR = ("ordinary", "repeated", "clustered", "deficient", "graded")
gammas = st.floats(-30.0, 30.0) | st.sampled_from([0.0, 1.0, 2.0, 1e-200, 1e200])


def nonzero(drawn):
    return drawn.filter(lambda spectrum: spectrum.norm > 0)


def scaled(s, power):
    """The same spectrum times a power of two."""
    return Spectrum(np.ldexp(s.values, power), np.ldexp(s.norm, power), s.shape, s.complete)


@given(nonzero(spectra()))
def test_variance_is_the_exact_fraction(s):
    p = len(s.values)
    exact = np.array([oracles.variance_captured(s.values, rank) for rank in range(p + 1)])
    assert np.all(np.abs(variance_captured(s) - exact) <= 2 * p * EPS * exact)


@given(nonzero(spectra()))
def test_the_best_error_is_the_exact_tail_down_to_1e_153(s):
    p = len(s.values)
    exact = np.array([oracles.error(s.values, rank) for rank in range(p + 1)])
    result = reconstruction_error(s)
    deep = exact < 1e-150
    assert np.all(np.abs(result - exact)[~deep] <= 2 * p * EPS * exact[~deep])
    assert np.all(result[deep] <= 2e-150)


@given(nonzero(spectra()), gammas)
@example(Spectrum([1.0, 0.5], np.sqrt(1.25), (2, 2), complete=True), 1.0 + 2.0**-30)
def test_the_error_of_a_scaled_truncation_is_the_exact_formula(s, gamma):
    p = len(s.values)
    exact = np.array([oracles.error(s.values, rank, gamma) for rank in range(p + 1)])
    result = reconstruction_error(s, scaling=gamma)
    # 1 − γ is rounded once; its square root of the tail may be below what float64 can square.
    assert np.all(np.abs(result - exact) <= 4 * p * EPS * exact + 2e-150)


@given(nonzero(spectra()))
def test_variance_rises_from_0_to_1_and_its_gains_fall(s):
    captured = variance_captured(s)
    gains = np.diff(captured)
    assert captured[0] == 0
    assert captured[-1] == 1
    assert np.all(gains >= 0)
    assert np.all(np.diff(gains) <= 2 * EPS)


@given(nonzero(spectra()))
def test_the_best_error_falls_from_1_to_0(s):
    error = reconstruction_error(s)
    assert error[0] == 1
    assert error[-1] == 0
    assert np.all(np.diff(error) <= 0)


@given(nonzero(spectra(complete=None)))
def test_variance_and_squared_error_sum_to_one(s):
    assert np.all(np.abs(variance_captured(s) + reconstruction_error(s) ** 2 - 1) <= 2 * len(s.values) * EPS)


@given(spectra(complete=None), gammas)
@example(Spectrum([0.0, 0.0], 5e-324, (2, 2), complete=True), 0.0)
def test_no_scaling_beats_one(s, gamma):
    assert np.all(reconstruction_error(s, scaling=gamma) >= reconstruction_error(s))


@given(spectra(complete=None), st.integers(0, 2**20))
def test_scalings_above_and_below_1_err_alike(s, steps):
    off = steps / 2**16
    assert np.array_equal(reconstruction_error(s, scaling=1 + off), reconstruction_error(s, scaling=1 - off))


@given(nonzero(spectra()), st.floats(0, 1))
def test_a_scaling_of_0_has_the_error_of_the_whole_update(s, gamma):
    whole = reconstruction_error(s, scaling=0.0)
    assert np.all(np.abs(whole - 1) <= 2 * len(s.values) * EPS)
    # At full rank nothing but the scaling errs.
    assert abs(reconstruction_error(s, len(s.values), gamma) - (1 - gamma)) <= 2 * EPS


@given(spectra(kinds=REGULAR, complete=None), st.integers(-40, 40))
def test_the_size_of_an_update_does_not_matter(s, power):
    assume(s.norm < 1e290)
    moved = scaled(s, power)
    assume(np.array_equal(np.ldexp(moved.values, -power), s.values) and s.values[-1] > 1e-250)
    for question in (variance_captured, reconstruction_error):
        assert np.array_equal(question(moved), question(s))


@given(st.data(), spectra(), st.floats(0.1, 100.0))
def test_zeros_that_are_left_out_change_nothing(data, s, alpha):
    missing = min(s.shape) - len(s.values)
    padded = Spectrum(np.pad(s.values, (0, missing)), s.norm, s.shape, complete=True)
    ranks = data.draw(st.lists(ranks_for(s), max_size=4))
    assert np.array_equal(variance_captured(s, ranks), variance_captured(padded, ranks))
    assert np.array_equal(reconstruction_error(s, ranks, 0.5), reconstruction_error(padded, ranks, 0.5))
    first, second = (error_sweep(either, ranks, alpha=alpha) for either in (s, padded))
    assert np.array_equal(first.errors, second.errors)


@given(nonzero(spectra(complete=False)))
def test_an_incomplete_spectrum_captures_its_head_over_the_whole_norm(s):
    whole = Fraction(float(s.norm)) ** 2
    exact = np.array([float(oracles.head(s.values, rank) / whole) for rank in range(len(s.values) + 1)])
    # The norm is rounded, so that a head may seem to be more than the whole.
    assert np.all(np.abs(variance_captured(s) - np.minimum(exact, 1)) <= 2 * len(s.values) * EPS)
    assert np.all(variance_captured(s) <= 1)
    assert np.array_equal(reconstruction_error(s), np.sqrt(1 - variance_captured(s)))


@given(spectra(complete=False))
def test_a_rank_beyond_the_values_of_an_incomplete_spectrum_is_refused(s):
    beyond = len(s.values) + 1
    assume(beyond <= min(s.shape))
    for question in (variance_captured, reconstruction_error, lambda s, r: error_sweep(s, [r])):
        with pytest.raises(ValueError, match=rf"rank={beyond}\)"):
            question(s, beyond)


@given(st.data(), spectra(complete=None), st.lists(st.floats(0.01, 1000), min_size=1, max_size=3))
def test_a_sweep_is_the_table_of_single_errors(data, s, alphas):
    ranks = data.draw(st.lists(ranks_for(s), min_size=1, max_size=5))
    rules = ["standard", "rslora", "unscaled", power_rule(-0.25), lambda alpha, rank: 0 * alpha * rank]
    sweep = error_sweep(s, ranks, alpha=alphas, rules=rules)
    assert sweep.errors.shape == sweep.scalings.shape == (len(rules), len(alphas), len(ranks))
    assert np.array_equal(sweep.optimal, reconstruction_error(s, ranks))
    single = reconstruction_error(s, ranks, sweep.scalings)
    assert np.all(np.abs(sweep.errors - single) <= 2 * EPS * single)
    assert np.all(sweep.errors >= sweep.optimal)
    for i, alpha in enumerate(alphas):
        one = error_sweep(s, ranks, alpha=alpha, rules=rules[1:3])
        assert np.array_equal(one.errors, sweep.errors[1:3, i])
        assert np.array_equal(one.scalings, sweep.scalings[1:3, i])


@given(st.data(), updates(dtypes=["float64"]), st.floats(-4, 4))
def test_the_formula_is_the_dense_reconstruction_error(data, update, gamma):
    rank = data.draw(ranks_for(update))
    s = spectrum(update)
    assume(s.norm > 0)
    unit = np.ldexp(update, -int(np.frexp(s.norm)[1]))
    result = reconstruction_error(s, rank, gamma)
    best = truncate(unit, rank)
    dense = np.linalg.norm(unit - gamma * best.to_dense()) / np.linalg.norm(unit)
    # Where numbers are subnormal the norm itself has few digits.
    slack = 20 * max(update.shape) * (EPS + np.ldexp(bounds.SPACING, -int(np.frexp(s.norm)[1]))) * (1 + abs(gamma))
    assert abs(result - dense) <= slack
    assert abs(result - oracles.dense_error(unit, rank, gamma)) <= slack


@given(updates(kinds=["zero"]), gammas)
def test_a_zero_update_has_variance_1_and_error_0(update, gamma):
    s = spectrum(update)
    assert np.all(variance_captured(s) == 1)
    assert np.all(reconstruction_error(s, scaling=gamma) == 0)
    sweep = error_sweep(s, None)
    assert np.all(sweep.errors == 0)
    assert np.all(sweep.optimal == 0)
