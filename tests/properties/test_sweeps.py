"""Theorems on variance captured and on errors, for spectra held against exact fractions."""

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


def scaled(of, power):
    """The same spectrum times a power of two."""
    return Spectrum(np.ldexp(of.values, power), np.ldexp(of.norm, power), of.shape, of.complete)


@given(nonzero(spectra()))
def test_variance_is_the_exact_fraction(of):
    p = len(of.values)
    exact = np.array([oracles.variance_captured(of.values, rank) for rank in range(p + 1)])
    assert np.all(np.abs(variance_captured(of) - exact) <= 2 * p * EPS * exact)


@given(nonzero(spectra()))
def test_the_best_error_is_the_exact_tail_down_to_1e_153(of):
    p = len(of.values)
    exact = np.array([oracles.error(of.values, rank) for rank in range(p + 1)])
    found = reconstruction_error(of)
    deep = exact < 1e-150
    assert np.all(np.abs(found - exact)[~deep] <= 2 * p * EPS * exact[~deep])
    assert np.all(found[deep] <= 2e-150)


@given(nonzero(spectra()), gammas)
@example(Spectrum([1.0, 0.5], np.sqrt(1.25), (2, 2), complete=True), 1.0 + 2.0**-30)
def test_the_error_of_a_scaled_truncation_is_the_exact_formula(of, gamma):
    p = len(of.values)
    exact = np.array([oracles.error(of.values, rank, gamma) for rank in range(p + 1)])
    found = reconstruction_error(of, scaling=gamma)
    # 1 − γ is rounded once; its square root of the tail may be below what float64 can square.
    assert np.all(np.abs(found - exact) <= 4 * p * EPS * exact + 2e-150)


@given(nonzero(spectra()))
def test_variance_rises_from_0_to_1_and_its_gains_fall(of):
    captured = variance_captured(of)
    gains = np.diff(captured)
    assert captured[0] == 0
    assert captured[-1] == 1
    assert np.all(gains >= 0)
    assert np.all(np.diff(gains) <= 2 * EPS)


@given(nonzero(spectra()))
def test_the_best_error_falls_from_1_to_0(of):
    error = reconstruction_error(of)
    assert error[0] == 1
    assert error[-1] == 0
    assert np.all(np.diff(error) <= 0)


@given(nonzero(spectra(complete=None)))
def test_variance_and_squared_error_sum_to_one(of):
    assert np.all(np.abs(variance_captured(of) + reconstruction_error(of) ** 2 - 1) <= 2 * len(of.values) * EPS)


@given(spectra(complete=None), gammas)
@example(Spectrum([0.0, 0.0], 5e-324, (2, 2), complete=True), 0.0)
def test_no_scaling_beats_one(of, gamma):
    assert np.all(reconstruction_error(of, scaling=gamma) >= reconstruction_error(of))


@given(spectra(complete=None), st.integers(0, 2**20))
def test_too_much_errs_as_too_little(of, steps):
    off = steps / 2**16
    assert np.array_equal(reconstruction_error(of, scaling=1 + off), reconstruction_error(of, scaling=1 - off))


@given(nonzero(spectra()), st.floats(0, 1))
def test_scaling_by_nothing_leaves_the_whole_update(of, gamma):
    whole = reconstruction_error(of, scaling=0.0)
    assert np.all(np.abs(whole - 1) <= 2 * len(of.values) * EPS)
    # At full rank nothing but the scaling errs.
    assert abs(reconstruction_error(of, len(of.values), gamma) - (1 - gamma)) <= 2 * EPS


@given(spectra(kinds=REGULAR, complete=None), st.integers(-40, 40))
def test_the_size_of_an_update_does_not_matter(of, power):
    assume(of.norm < 1e290)
    moved = scaled(of, power)
    assume(np.array_equal(np.ldexp(moved.values, -power), of.values) and of.values[-1] > 1e-250)
    for question in (variance_captured, reconstruction_error):
        assert np.array_equal(question(moved), question(of))


@given(st.data(), spectra(), st.floats(0.1, 100.0))
def test_zeros_that_are_not_held_are_answered_for(data, of, alpha):
    room = min(of.shape) - len(of.values)
    held = Spectrum(np.pad(of.values, (0, room)), of.norm, of.shape, complete=True)
    ranks = data.draw(st.lists(ranks_for(of), max_size=4))
    assert np.array_equal(variance_captured(of, ranks), variance_captured(held, ranks))
    assert np.array_equal(reconstruction_error(of, ranks, 0.5), reconstruction_error(held, ranks, 0.5))
    first, second = (error_sweep(s, ranks, alpha=alpha) for s in (of, held))
    assert np.array_equal(first.errors, second.errors)


@given(nonzero(spectra(complete=False)))
def test_an_incomplete_spectrum_holds_its_head_over_the_whole_norm(of):
    whole = Fraction(float(of.norm)) ** 2
    exact = np.array([float(oracles.head(of.values, rank) / whole) for rank in range(len(of.values) + 1)])
    # The norm is rounded, so that a head may seem to be more than the whole.
    assert np.all(np.abs(variance_captured(of) - np.minimum(exact, 1)) <= 2 * len(of.values) * EPS)
    assert np.all(variance_captured(of) <= 1)
    assert np.array_equal(reconstruction_error(of), np.sqrt(1 - variance_captured(of)))


@given(spectra(complete=False))
def test_a_rank_that_is_not_held_is_refused(of):
    beyond = len(of.values) + 1
    assume(beyond <= min(of.shape))
    for question in (variance_captured, reconstruction_error, lambda s, r: error_sweep(s, [r])):
        with pytest.raises(ValueError, match=rf"rank={beyond}\)"):
            question(of, beyond)


@given(st.data(), spectra(complete=None), st.lists(st.floats(0.01, 1000), min_size=1, max_size=3))
def test_a_sweep_is_each_question_asked_alone(data, of, alphas):
    ranks = data.draw(st.lists(ranks_for(of), min_size=1, max_size=5))
    rules = ["standard", "rslora", "unscaled", power_rule(-0.25), lambda alpha, rank: 0 * alpha * rank]
    sweep = error_sweep(of, ranks, alpha=alphas, rules=rules)
    assert sweep.errors.shape == sweep.scalings.shape == (len(rules), len(alphas), len(ranks))
    assert np.array_equal(sweep.optimal, reconstruction_error(of, ranks))
    alone = reconstruction_error(of, ranks, sweep.scalings)
    assert np.all(np.abs(sweep.errors - alone) <= 2 * EPS * alone)
    assert np.all(sweep.errors >= sweep.optimal)
    for i, alpha in enumerate(alphas):
        one = error_sweep(of, ranks, alpha=alpha, rules=rules[1:3])
        assert np.array_equal(one.errors, sweep.errors[1:3, i])
        assert np.array_equal(one.scalings, sweep.scalings[1:3, i])


@given(st.data(), updates(dtypes=["float64"]), st.floats(-4, 4))
def test_the_formula_is_the_dense_reconstruction_error(data, update, gamma):
    rank = data.draw(ranks_for(update))
    of = spectrum(update)
    assume(of.norm > 0)
    unit = np.ldexp(update, -int(np.frexp(of.norm)[1]))
    found = reconstruction_error(of, rank, gamma)
    best = truncate(unit, rank)
    dense = np.linalg.norm(unit - gamma * best.to_dense()) / np.linalg.norm(unit)
    # Where numbers are subnormal the norm itself has few digits.
    slack = 20 * max(update.shape) * (EPS + np.ldexp(bounds.SPACING, -int(np.frexp(of.norm)[1]))) * (1 + abs(gamma))
    assert abs(found - dense) <= slack
    assert abs(found - oracles.dense_error(unit, rank, gamma)) <= slack


@given(updates(kinds=["zero"]), gammas)
def test_of_a_zero_update_nothing_is_lost(update, gamma):
    of = spectrum(update)
    assert np.all(variance_captured(of) == 1)
    assert np.all(reconstruction_error(of, scaling=gamma) == 0)
    sweep = error_sweep(of, None)
    assert np.all(sweep.errors == 0)
    assert np.all(sweep.optimal == 0)
