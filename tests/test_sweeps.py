"""Variance captured, reconstruction errors and error sweeps by example."""

from fractions import Fraction

import numpy as np
import pytest

from lowrank_core import (
    Spectrum,
    error_sweep,
    power_rule,
    reconstruction_error,
    rslora,
    spectrum,
    standard,
    style_update,
    variance_captured,
)
from tests import oracles

PLAIN = Spectrum([4.0, 3.0], 5.0, (10, 2), complete=True)
STACK = spectrum(np.random.default_rng(0).standard_normal((3, 2, 8, 6)))


def test_variance_and_error_by_hand():
    assert variance_captured(PLAIN).tolist() == [0.0, 0.64, 1.0]
    assert reconstruction_error(PLAIN).tolist() == [1.0, 0.6, 0.0]
    assert reconstruction_error(PLAIN, 1, 0.5) == pytest.approx(np.hypot(0.5 * 0.8, 0.6), rel=1e-15)
    assert reconstruction_error(PLAIN, 2, 3.0) == 2.0
    assert reconstruction_error(PLAIN, 0, 3.0) == 1.0


@pytest.mark.parametrize("ask", [variance_captured, reconstruction_error])
def test_shapes(ask):
    assert isinstance(ask(PLAIN, 1), np.float64)
    assert ask(PLAIN, [1]).shape == (1,)
    assert ask(PLAIN, []).shape == (0,)
    assert ask(PLAIN).shape == (3,)
    assert ask(STACK).shape == (3, 2, 7)
    assert ask(STACK, 4).shape == (3, 2)
    assert ask(STACK, [[1, 2, 3], [4, 5, 6]]).shape == (3, 2, 2, 3)
    assert np.array_equal(ask(STACK, [[5, 0], [2, 2]]), ask(STACK)[..., [[5, 0], [2, 2]]])


def test_scalings_broadcast_against_batch_and_ranks():
    errors = reconstruction_error(STACK, [1, 2, 3], [0.5, 1.0, 2.0])
    assert errors.shape == (3, 2, 3)
    assert np.array_equal(errors[..., 1], reconstruction_error(STACK, 2))
    assert np.array_equal(errors[..., 2], reconstruction_error(STACK, 3, 2.0))
    wide = reconstruction_error(STACK, [1, 2, 3], np.array([0.5, 2.0])[:, np.newaxis, np.newaxis, np.newaxis])
    assert wide.shape == (2, 3, 2, 3)
    assert np.array_equal(wide[1, ..., 2], reconstruction_error(STACK, 3, 2.0))


@pytest.mark.parametrize("scaling", [np.nan, np.inf, [1.0, -np.inf]])
def test_a_scaling_must_be_finite(scaling):
    with pytest.raises(ValueError, match=r"scaling must be finite; got"):
        reconstruction_error(PLAIN, [1, 2], scaling)


def test_a_sweep_is_a_table_of_rules_alphas_and_ranks():
    rules = ("standard", rslora, "unscaled", power_rule(-0.25))
    sweep = error_sweep(STACK, [0, 2, 5], alpha=[4, 16], rules=rules)
    assert sweep.errors.shape == (3, 2, 4, 2, 3)
    assert sweep.scalings.shape == (4, 2, 3)
    assert sweep.optimal.shape == (3, 2, 3)
    assert sweep.rules == ("standard", "rslora", "unscaled", "power_rule(-0.25)")
    assert sweep.ranks.tolist() == [0, 2, 5]
    assert sweep.alpha.tolist() == [4.0, 16.0]
    assert sweep.scalings[0].tolist() == [[0, 2, 0.8], [0, 8, 3.2]]
    assert np.allclose(
        sweep.errors[1, 0, 1, 0], reconstruction_error(STACK, [0, 2, 5], rslora(4, [0, 2, 5]))[1, 0], rtol=1e-15
    )
    assert np.array_equal(sweep.errors[:, :, 2, 0], sweep.errors[:, :, 2, 1])
    assert np.array_equal(sweep.errors[:, :, 2, 0], sweep.optimal)


def test_one_alpha_has_no_axis():
    sweep = error_sweep(STACK, [2, 5])
    assert sweep.errors.shape == (3, 2, 2, 2)
    assert sweep.scalings.tolist() == [[8.0, 3.2], rslora(16, [2, 5]).tolist()]
    assert isinstance(sweep.alpha, np.float64)
    assert sweep.alpha == 16
    assert error_sweep(STACK, [2, 5], alpha=[16]).errors.shape == (3, 2, 2, 1, 2)
    assert error_sweep(STACK, None).ranks.tolist() == list(range(7))
    assert error_sweep(STACK, []).errors.shape == (3, 2, 2, 0)


def test_ranks_and_alphas_have_at_most_one_axis():
    with pytest.raises(ValueError, match=r"ranks must be one-dimensional, such as \[2, 4, 8\]; got shape \(1, 1\)"):
        error_sweep(PLAIN, [[1]])
    with pytest.raises(ValueError, match=r"ranks must be one-dimensional"):
        error_sweep(PLAIN, 1)
    with pytest.raises(ValueError, match=r"alpha must be one-dimensional.*got shape \(1, 1\)"):
        error_sweep(PLAIN, [1], alpha=[[16.0]])


def test_values_beyond_those_of_a_product_are_zero():
    s = Spectrum([4.0, 3.0], 5.0, (10, 8), complete=True)
    assert variance_captured(s, [2, 8]).tolist() == [1, 1]
    sweep = error_sweep(s, [2, 5, 8], alpha=10.0, rules=["standard"])
    assert sweep.optimal.tolist() == [0, 0, 0]
    assert sweep.errors[0] == pytest.approx([4.0, 1.0, 0.25], rel=1e-14)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-300, 1e307])
def test_variance_and_error_do_not_depend_on_size(size):
    s = Spectrum([4 * size, 3 * size], 5 * size, (10, 2), complete=True)
    assert variance_captured(s) == pytest.approx([0, 0.64, 1], rel=1e-15)
    assert error_sweep(s, [1], alpha=1.0).errors[0] == pytest.approx([0.6], rel=1e-15)


def test_a_tail_keeps_its_digits_beside_a_head_of_1e300_times_it():
    values = np.array([1.0, 1e-20, 1e-150])
    s = Spectrum(values, 1.0, (3, 3), complete=True)
    assert reconstruction_error(s) == pytest.approx([1.0, 1e-20, 1e-150, 0.0], rel=1e-14)
    assert error_sweep(s, [1, 2], rules=["unscaled"]).errors[0] == pytest.approx([1e-20, 1e-150], rel=1e-14)


def test_scalings_whose_square_overflows_give_finite_errors():
    s = Spectrum([4.0, 3.0], 5.0, (2, 2), complete=True)
    sweep = error_sweep(s, [1, 2], alpha=[1.0, 1e200, 1e300], rules=["standard"])
    assert sweep.errors[0, 1] == pytest.approx([0.8e200, 0.5e200], rel=1e-14)
    assert sweep.errors[0, 2] == pytest.approx([0.8e300, 0.5e300], rel=1e-14)
    assert sweep.errors[0, 0] == pytest.approx([0.6, 0.5], rel=1e-14)


@pytest.mark.parametrize("count", [63, 64, 65, 300, 1025])
@pytest.mark.parametrize("complete", [True, False])
def test_long_spectra_match_exact_fractions(count, complete):
    values = np.sort(np.exp(-np.random.default_rng(count).gamma(2.0, 8.0, count)))[::-1]
    norm = np.linalg.norm(values) * (1 if complete else 1.25)
    s = Spectrum(values, norm, (count, count + 3), complete)
    squares = np.array([Fraction(float(v)) ** 2 for v in values])
    heads = np.concatenate([[Fraction(0)], np.cumsum(squares)])
    whole = heads[-1] if complete else Fraction(float(norm)) ** 2
    exact = np.array([float(h / whole) for h in heads])
    assert np.all(np.abs(variance_captured(s) - exact) <= 4 * count * 2.0**-52 * exact + 1e-300)
    errors = np.array([oracles.root(max(whole - h, Fraction(0)) / whole) for h in heads])
    result = reconstruction_error(s)
    if complete:
        assert np.all(np.abs(result - errors) <= 4 * count * 2.0**-52 * errors)
    else:
        assert np.all(np.abs(result - errors) <= 4 * count * 2.0**-52)
    assert np.all(np.diff(result) <= 0)
    assert np.array_equal(error_sweep(s, None).optimal, result)


def test_a_batch_on_several_threads_equals_its_spectra_alone():
    s = spectrum(np.random.default_rng(1).standard_normal((3000, 12, 10)))
    sweep = error_sweep(s, None, alpha=[1.0, 16.0], rules=["standard", "rslora", "unscaled"])
    for i in (0, 1234, 2999):
        single = Spectrum(s.values[i], s.norm[i], s.shape, complete=True)
        assert np.array_equal(
            sweep.errors[i],
            error_sweep(single, None, alpha=[1.0, 16.0], rules=["standard", "rslora", "unscaled"]).errors,
        )


def test_other_seeds_of_the_article_match_a_dense_computation():
    for seed in range(5):
        update = style_update(64, 64, rng=np.random.RandomState(seed))
        sweep = error_sweep(spectrum(update), [2, 4, 8, 16, 32, 48])
        for k, rule in enumerate((standard, rslora)):
            for j, rank in enumerate(sweep.ranks):
                assert abs(sweep.errors[k, j] - oracles.dense_error(update, rank, rule(16, rank))) <= 1e-10
