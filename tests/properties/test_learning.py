"""Theorems on gradient descent, and runs against a plain loop over dense matrices."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lowrank_core import LowRankUpdate, Spectrum, learning_sweep, power_rule, spectrum
from lowrank_core.testing import updates
from tests import oracles

KINDS = ["ordinary", "repeated", "clustered", "deficient"]
targets = updates(max_side=6, dtypes=["float64"], kinds=KINDS)
seeds = st.integers(0, 2**32 - 1)
AGREE = 1e-10


def diagonal(s):
    return (
        np.vstack([np.diag(s.values), np.zeros((s.shape[0] - len(s.values), len(s.values)))])
        if (s.shape[0] >= s.shape[1])
        else np.hstack([np.diag(s.values), np.zeros((len(s.values), s.shape[1] - len(s.values)))])
    )


@given(st.data(), targets, seeds, st.floats(0.1, 4), st.floats(1e-3, 0.05), st.integers(-8, 2))
def test_gradient_descent_is_the_dense_loop(data, update, seed, alpha, rate, power):
    update = np.ldexp(update, power)
    s, (m, n) = spectrum(update), update.shape
    rank, repeats = data.draw(st.integers(1, min(m, n))), data.draw(st.integers(1, 2))
    sweep = learning_sweep(s, [rank], alpha=alpha, steps=12, learning_rate=rate, repeats=repeats, rng=seed)
    for rule in range(2):
        runs = [
            oracles.learn(
                diagonal(s),
                oracles.starting_factor(seed, repeat, rank, n, 1 / n),
                sweep.scalings[rule, 0],
                steps=12,
                learning_rate=rate,
            )
            for repeat in range(repeats)
        ]
        curve, norms = (np.mean([run[part] for run in runs], axis=0) for part in (0, 1))
        # γBA − Δ is rounded to a few eps of Δ, however near the two are.
        assert np.all(np.abs(sweep.curves[rule, 0] - curve) <= np.maximum(AGREE * curve, 8 * 2.0**-52))
        assert np.all(np.abs(sweep.gradient_norms[rule, 0] - norms) <= AGREE * np.max(norms))
        finals = [run[0][-1] for run in runs]
        assert abs(sweep.errors[rule, 0] - np.mean(finals)) <= AGREE
        assert abs(sweep.spread[rule, 0] - np.std(finals)) <= AGREE


@given(st.data(), targets, seeds, st.floats(1e-4, 0.1), st.integers(-8, 2))
def test_adam_is_the_dense_loop(data, update, seed, rate, power):
    update = np.ldexp(update, power)
    m, n = update.shape
    rank = data.draw(st.integers(1, min(m, n)))
    sweep = learning_sweep(update, [rank], steps=8, learning_rate=rate, optimizer="adam", rng=seed)
    for rule in range(2):
        curve, norms = oracles.learn(
            update,
            oracles.starting_factor(seed, 0, rank, n, 1 / n),
            sweep.scalings[rule, 0],
            steps=8,
            learning_rate=rate,
            optimizer="adam",
        )
        # Where an entry's gradients cancel to rounding, its step divides rounding by rounding.
        assert np.all(np.abs(sweep.curves[rule, 0] - curve) <= 1e-6 * np.maximum(curve, 1))
        assert np.all(np.abs(sweep.gradient_norms[rule, 0] - norms) <= 1e-6 * np.max(norms))


@given(st.data(), targets, seeds)
def test_the_curve_depends_on_the_spectrum_alone(data, update, seed):
    # With Δ = U Σ Vᵀ and A = A' Vᵀ, the dense run of Δ from A is that of Σ from A'.
    m, n = update.shape
    rank = data.draw(st.integers(1, min(m, n)))
    sweep = learning_sweep(update, [rank], steps=10, learning_rate=0.01, alpha=2.0, rng=seed)
    Vt = np.linalg.svd(update)[2]
    rotated = oracles.starting_factor(seed, 0, rank, n, 1 / n) @ Vt
    for rule in range(2):
        curve, _ = oracles.learn(update, rotated, sweep.scalings[rule, 0], steps=10, learning_rate=0.01)
        assert np.all(np.abs(sweep.curves[rule, 0] - curve) <= 1e-9)


@given(targets, seeds)
def test_a_matrix_and_its_spectrum_learn_alike(update, seed):
    first = learning_sweep(update, [1], steps=5, rng=seed)
    second = learning_sweep(spectrum(update), [1], steps=5, rng=seed)
    assert np.array_equal(first.curves, second.curves)
    assert np.array_equal(first.gradient_norms, second.gradient_norms)


@given(st.data(), targets, seeds, st.sampled_from(["sgd", "adam"]))
def test_no_adapter_beats_the_best_of_its_rank(data, update, seed, optimizer):
    rank = data.draw(st.integers(0, min(update.shape)))
    sweep = learning_sweep(update, [rank], steps=60, learning_rate=0.02, alpha=2.0, optimizer=optimizer, rng=seed)
    assert np.all(sweep.curves >= sweep.optimal - 1e-9)


@given(st.data(), targets, seeds)
def test_before_the_first_step_nothing_is_learnt(data, update, seed):
    rank = data.draw(st.integers(0, min(update.shape)))
    sweep = learning_sweep(update, [rank], steps=0, rng=seed)
    assert np.all(sweep.errors == 1)
    assert np.all(sweep.curves == 1)
    assert sweep.gradient_norms.shape == (2, 1, 0)


@given(st.data(), targets, seeds, st.floats(0.1, 10))
def test_the_first_step_moves_by_the_gain(data, update, seed, alpha):
    # From B = 0: B = η γ Δ Aᵀ and A unchanged, so the error is ‖Δ (I − η γ² AᵀA)‖ / ‖Δ‖.
    s, n = spectrum(update), update.shape[1]
    rank = data.draw(st.integers(1, min(update.shape)))
    sweep = learning_sweep(s, [rank], steps=1, alpha=alpha, learning_rate=0.01, init_variance=0.5, rng=seed)
    A = oracles.starting_factor(seed, 0, rank, n, 0.5)
    for rule in range(2):
        gamma = sweep.scalings[rule, 0]
        left = diagonal(s) @ (np.eye(n) - 0.01 * gamma**2 * A.T @ A)
        assert abs(sweep.errors[rule, 0] - np.linalg.norm(left) / s.norm) <= AGREE * max(1, sweep.errors[rule, 0])
        # Both gradients: A's is zero at B = 0.
        assert abs(sweep.gradient_norms[rule, 0, 0] - gamma * np.linalg.norm(diagonal(s) @ A.T)) <= (
            1e-12 * sweep.gradient_norms[rule, 0, 0]
        )


@given(st.data(), targets, seeds)
def test_ranks_rules_and_repeats_are_independent(data, update, seed):
    s, p = spectrum(update), min(update.shape)
    ranks = data.draw(st.permutations(range(p + 1)))
    rules = ["rslora", "unscaled", power_rule(-0.75)]
    sweep = learning_sweep(s, ranks, rules=rules, steps=4, learning_rate=0.01, alpha=3.0, rng=seed)
    for i, rank in enumerate(ranks):
        for j, rule in enumerate(rules):
            single = learning_sweep(s, [rank], rules=[rule], steps=4, learning_rate=0.01, alpha=3.0, rng=seed)
            assert np.array_equal(single.curves[0, 0], sweep.curves[j, i])
            assert np.array_equal(single.gradient_norms[0, 0], sweep.gradient_norms[j, i])


@given(targets, seeds)
def test_a_smaller_rule_at_a_larger_alpha_is_the_same_run(update, seed):
    s, p = spectrum(update), min(update.shape)
    first = learning_sweep(s, [p], alpha=4.0 * p, rules=["standard"], steps=4, learning_rate=1e-3, rng=seed)
    second = learning_sweep(s, [p], alpha=4.0, rules=[power_rule(0)], steps=4, learning_rate=1e-3, rng=seed)
    assert np.array_equal(first.curves, second.curves)


@given(targets, seeds, st.integers(-6, 6))
def test_size_can_be_traded_for_rate_and_variance(update, seed, power):
    # Δ → 4^p Δ, A → 2^p A, B → 2^p B and η → 4^-p η leaves every relative error as it is.
    s = spectrum(update)
    larger = Spectrum(np.ldexp(s.values, 2 * power), np.ldexp(s.norm, 2 * power), s.shape, complete=True)
    common = {"steps": 6, "alpha": 2.0, "rng": seed}
    first = learning_sweep(s, [1], learning_rate=2.0**-7, init_variance=0.25, **common)
    second = learning_sweep(
        larger, [1], learning_rate=2.0 ** (-7 - 2 * power), init_variance=0.25 * 4.0**power, **common
    )
    assert np.all(np.abs(first.curves - second.curves) <= 1e-12 * first.curves)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@given(seed=seeds)
def test_a_product_learns_as_its_dense_update(optimizer, seed):
    rng = np.random.default_rng(seed)
    update = LowRankUpdate(rng.standard_normal((5, 2)), rng.standard_normal((2, 4)), 0.3)
    first, second = (
        learning_sweep(target, [1, 3], steps=5, optimizer=optimizer, alpha=2.0, rng=1)
        for target in (update, update.to_dense())
    )
    assert np.all(np.abs(first.curves - second.curves) <= 1e-7)


@given(targets, seeds)
def test_more_repeats_begin_with_the_same_runs(update, seed):
    s = spectrum(update)
    one, three = (
        learning_sweep(s, [1], steps=3, repeats=repeats, learning_rate=0.01, alpha=2.0, rng=seed).errors
        for repeats in (1, 3)
    )
    n = update.shape[1]
    single = [
        oracles.learn(
            diagonal(s), oracles.starting_factor(seed, repeat, 1, n, 1 / n), 2.0, steps=3, learning_rate=0.01
        )[0][-1]
        for repeat in range(3)
    ]
    assume(np.all(np.isfinite(single)))
    assert np.all(np.abs(one[:, 0] - single[0]) <= 1e-10)
    assert np.all(np.abs(three[:, 0] - np.mean(single)) <= 1e-10)
