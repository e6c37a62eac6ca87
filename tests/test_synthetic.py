"""Synthetic updates: their spectra, their noise, and their random streams."""

import numpy as np
import pytest

from lowrank_core import facts_update, style_update, update_with_spectrum
from tests import bounds, oracles

FUNCTIONS = [style_update, facts_update]
each_function = pytest.mark.parametrize("function", FUNCTIONS)


def test_style_updates_have_the_articles_values():
    values = np.linalg.svd(style_update(20, 12, noise=0.0, rng=0), compute_uv=False)
    assert np.allclose(values[:4], [5.0, 3.5, 2.0, 0.5], rtol=1e-14)
    assert np.all(values[4:] <= 1e-14)
    values = np.linalg.svd(style_update(6, 9, true_rank=2, noise=0.0, rng=0), compute_uv=False)
    assert np.allclose(values, [5.0, 0.5, 0, 0, 0, 0], atol=1e-14)
    assert not style_update(3, 3, true_rank=0, noise=0.0, rng=0).any()


def test_facts_updates_have_the_articles_values():
    for shape in ((12, 20), (20, 12), (7, 7)):
        values = np.linalg.svd(facts_update(*shape, noise=0.0, rng=0), compute_uv=False)
        assert np.allclose(values, np.linspace(3.0, 0.5, min(shape)), rtol=1e-14)


@each_function
def test_noise_is_added_to_each_entry(function):
    clean, noisy = (function(300, 200, noise=noise, rng=0) for noise in (0.0, 0.1))
    drawn = noisy - clean
    # 60,000 draws: the deviation's own is 0.0003, and the mean's 0.0004.
    assert abs(drawn.std() - 0.1) < 0.0015
    assert abs(drawn.mean()) < 0.002
    twice = function(300, 200, noise=0.2, rng=0) - clean
    assert np.allclose(twice, 2 * drawn, rtol=0, atol=1e-14)


@each_function
def test_a_seed_a_generator_and_a_seed_sequence_agree(function):
    first = function(8, 6, rng=7)
    assert np.array_equal(first, function(8, 6, rng=np.random.default_rng(7)))
    assert np.array_equal(first, function(8, 6, rng=np.random.SeedSequence(7)))
    assert not np.array_equal(first, function(8, 6, rng=8))
    generator = np.random.default_rng(7)
    assert not np.array_equal(function(8, 6, rng=generator), function(8, 6, rng=generator))


def test_a_random_state_draws_in_the_articles_order():
    generator, again = np.random.RandomState(42), np.random.RandomState(42)
    updates = [style_update(10, 8, rng=generator), facts_update(10, 8, rng=generator)]
    for update, values in zip(updates, (np.linspace(5, 0.5, 4), np.linspace(3, 0.5, 8)), strict=True):
        U, V = again.standard_normal((10, len(values))), again.standard_normal((8, len(values)))
        plain = (np.linalg.qr(U)[0] * values) @ np.linalg.qr(V)[0].T + 0.01 * again.standard_normal((10, 8))
        assert np.array_equal(update, plain)


@pytest.mark.parametrize(
    ("values", "shape"),
    [([3.0, 1.0], (5, 4)), ([1.0, 3.0, 3.0], (3, 7)), ([2.0], (1, 1)), ([], (3, 2)), ([0.0], (4, 4))],
)
def test_an_update_has_the_given_spectrum(values, shape):
    update = update_with_spectrum(values, shape, rng=0)
    exact = np.zeros(min(shape))
    exact[: len(values)] = sorted(values, reverse=True)
    assert update.shape == shape
    assert np.all(np.abs(oracles.singular_values(update) - exact) <= 10 * max(shape) * bounds.EPS64 * max([1, *values]))


def test_leading_axes_of_the_values_make_a_stack():
    values = np.arange(1.0, 13.0).reshape(2, 3, 2)
    stack = update_with_spectrum(values, (4, 5), rng=0)
    assert stack.shape == (2, 3, 4, 5)
    result = np.linalg.svd(stack, compute_uv=False)
    assert np.allclose(result[..., :2], values[..., ::-1], rtol=1e-14)
    assert np.all(result[..., 2:] < 1e-13)
    # Bases differ from one matrix to the next.
    assert not np.allclose(stack[0, 0] / stack[0, 0, 0, 0], stack[0, 1] / stack[0, 1, 0, 0])


def test_values_that_are_not_a_spectrum_are_refused():
    with pytest.raises(ValueError, match=r"values have shape \(3,\).*min\(m, n\) = 2"):
        update_with_spectrum([3, 2, 1], (2, 5), rng=0)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        update_with_spectrum(3.0, (2, 5), rng=0)
    for bad in ([-1.0], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match=r"finite and not negative: they are singular values"):
            update_with_spectrum(bad, (2, 2), rng=0)


@pytest.mark.parametrize("size", [0, -1, 1.5, "3", None])
def test_sizes_must_be_positive_whole_numbers(size):
    for function in (
        lambda s: style_update(s, 4, rng=0),
        lambda s: facts_update(4, s, rng=0),
        lambda s: update_with_spectrum([1.0], (4, s), rng=0),
    ):
        with pytest.raises(ValueError, match=r"size|row"):
            function(size)


@each_function
@pytest.mark.parametrize("noise", [-0.1, np.nan, np.inf])
def test_noise_is_a_standard_deviation(function, noise):
    with pytest.raises(ValueError, match=r"noise must be finite and at least 0; got .*standard deviation"):
        function(4, 4, noise=noise, rng=0)


def test_a_true_rank_beyond_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"rank 5 is beyond min\(m, n\) = 4"):
        style_update(4, 6, true_rank=5, rng=0)
