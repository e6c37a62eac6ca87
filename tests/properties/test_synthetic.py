"""Theorems on synthetic updates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core import facts_update, spectrum, style_update, update_with_spectrum
from lowrank_core.testing import assert_same_update
from tests import bounds

sides = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)
noises = st.floats(0.0, 0.5)
sizes = st.floats(0.0, 1e3) | st.sampled_from([0.0, 1.0, 1e-200, 1e200])


def update_and_values(function, d, k, rank, noise, seed):
    """A style or facts update, and the values that it has without noise."""
    if function is style_update:
        rank = min(rank, d, k)
        return style_update(d, k, true_rank=rank, noise=noise, rng=seed), np.linspace(5.0, 0.5, rank)
    return facts_update(d, k, noise=noise, rng=seed), np.linspace(3.0, 0.5, min(d, k))


@given(st.data(), sides, sides, seeds)
def test_an_update_has_its_given_spectrum(data, m, n, seed):
    values = np.array(data.draw(st.lists(sizes, max_size=min(m, n))))
    result = spectrum(update_with_spectrum(values, (m, n), rng=seed)).values
    exact = np.zeros(min(m, n))
    exact[: len(values)] = np.sort(values)[::-1]
    # The bases are orthonormal to rounding, and the product is rounded once more.
    assert np.all(np.abs(result - exact) <= 4 * bounds.of_values((m, n), "float64", exact[0]))


@given(st.data(), sides, sides, seeds, st.integers(-300, 300))
def test_scaled_values_scale_the_update(data, m, n, seed, power):
    values = np.array(data.draw(st.lists(st.floats(1e-3, 1.0), max_size=min(m, n))))
    first, second = (update_with_spectrum(sized, (m, n), rng=seed) for sized in (values, np.ldexp(values, power)))
    assert np.array_equal(second, np.ldexp(first, power))


@given(st.data(), sides, sides, seeds, st.integers(1, 3))
def test_each_matrix_of_a_stack_has_its_given_spectrum(data, m, n, seed, count):
    p = data.draw(st.integers(0, min(m, n)))
    values = np.array(data.draw(st.lists(st.floats(0.0, 1.0), min_size=count * p, max_size=count * p)))
    values = np.sort(values.reshape(count, p))[:, ::-1]
    stack = update_with_spectrum(values, (m, n), rng=seed)
    assert stack.shape == (count, m, n)
    exact = np.pad(values, ((0, 0), (0, min(m, n) - p)))
    assert np.all(np.abs(spectrum(stack).values - exact) <= 40 * max(m, n) * bounds.EPS64)


@pytest.mark.parametrize("function", [style_update, facts_update])
@given(d=sides, k=sides, rank=st.integers(0, 6), seed=seeds)
def test_without_noise_the_values_are_as_documented(function, d, k, rank, seed):
    update, values = update_and_values(function, d, k, rank, 0.0, seed)
    exact = np.pad(values, (0, min(d, k) - len(values)))
    assert update.shape == (d, k)
    assert np.all(np.abs(spectrum(update).values - exact) <= 40 * max(d, k) * bounds.EPS64 * 5.0)


@pytest.mark.parametrize("function", [style_update, facts_update])
@given(d=sides, k=sides, rank=st.integers(0, 6), noise=noises, seed=seeds)
def test_noise_is_a_matrix_of_its_own_and_moves_no_value_by_more_than_its_norm(function, d, k, rank, noise, seed):
    clean, noisy, one = (update_and_values(function, d, k, rank, level, seed)[0] for level in (0.0, noise, 1.0))
    assert_same_update(noisy, clean + noise * (one - clean), c=100)
    moved = np.abs(spectrum(noisy).values - spectrum(clean).values)
    assert np.all(moved <= np.linalg.norm(noisy - clean, 2) + 200 * max(d, k) * bounds.EPS64)


@pytest.mark.parametrize("function", [style_update, facts_update])
@given(d=sides, k=sides, seed=seeds)
def test_a_seed_determines_the_update(function, d, k, seed):
    first, second, other = (
        update_and_values(function, d, k, 4, 0.1, rng)[0] for rng in (seed, np.random.default_rng(seed), seed ^ 1)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("function", [style_update, facts_update])
@given(d=st.integers(20, 60), k=st.integers(20, 60), seed=seeds)
def test_noise_has_its_standard_deviation_in_every_row_and_column(function, d, k, seed):
    clean, one = (update_and_values(function, d, k, 4, level, seed)[0] for level in (0.0, 1.0))
    squares = (one - clean) ** 2
    for axis in (None, 0, 1):
        mean = squares.mean(axis=axis)
        # Beyond this with a probability of e⁻⁴⁰ (Laurent and Massart, Ann. Statist. 28 (2000) 1302, lemma 1).
        ratio = 40 * mean.size / squares.size
        assert np.all(np.abs(mean - 1) <= 2 * np.sqrt(ratio) + 2 * ratio)
