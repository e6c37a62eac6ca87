"""Learning sweeps by example, against a plain loop, and at the edges of float64."""

import warnings

import numpy as np
import pytest

from lowrank_core import (
    LowRankUpdate,
    Spectrum,
    learning_sweep,
    reconstruction_error,
    rslora,
    spectrum,
    standard,
    unscaled,
    update_with_spectrum,
)
from tests import oracles

VALUES = np.array([3.0, 2.0, 1.0, 0.5])
OF = Spectrum(VALUES, np.linalg.norm(VALUES), (6, 4), complete=True)
UPDATE = update_with_spectrum(VALUES, (6, 4), rng=0)
DIAGONAL = np.vstack([np.diag(VALUES), np.zeros((2, 4))])


def test_shapes_and_fields():
    stack = np.stack([[UPDATE, 2 * UPDATE, 0 * UPDATE]] * 2)
    for optimizer in ("sgd", "adam"):
        sweep = learning_sweep(stack, [0, 1, 3], rules=["standard", rslora], steps=7, repeats=2, optimizer=optimizer)
        assert sweep.errors.shape == sweep.spread.shape == (2, 3, 2, 3)
        assert sweep.curves.shape == (2, 3, 2, 3, 8)
        assert sweep.gradient_norms.shape == (2, 3, 2, 3, 7)
        assert sweep.optimal.shape == (2, 3, 3)
        assert sweep.scalings.tolist() == [[0, 16, 16 / 3], [0, 16, 16 / np.sqrt(3)]]
        assert sweep.ranks.tolist() == [0, 1, 3]
        assert sweep.rules == ("standard", "rslora")
        assert sweep.alpha == 16
        assert np.allclose(sweep.curves[..., -1], sweep.errors, rtol=1e-14)
        assert np.array_equal(sweep.optimal, reconstruction_error(spectrum(stack), [0, 1, 3]))
    assert learning_sweep(OF, None, steps=1).ranks.tolist() == [0, 1, 2, 3, 4]
    assert learning_sweep(OF, [], steps=1).errors.shape == (2, 0)
    assert learning_sweep(OF, [1]).curves.shape == (2, 1, 301)


def test_rank_0_learns_nothing_and_a_zero_update_has_nothing_to_learn():
    sweep = learning_sweep(np.stack([UPDATE, 0 * UPDATE]), [0, 2], steps=3, repeats=2)
    assert np.all(sweep.curves[0, :, 0] == 1)
    assert not sweep.gradient_norms[0, :, 0].any()
    for field in (sweep.curves, sweep.gradient_norms, sweep.errors, sweep.spread, sweep.optimal):
        assert not field[1].any()
    nothing = LowRankUpdate(np.ones((6, 0)), np.ones((0, 4)))
    for optimizer in ("sgd", "adam"):
        assert not learning_sweep(nothing, [0, 4], steps=2, optimizer=optimizer).errors.any()


def test_the_starting_factor_depends_on_the_seed_and_the_repeat_alone():
    common = {"steps": 4, "learning_rate": 0.01, "alpha": 2.0, "rng": 5}
    sweep = learning_sweep(np.stack([UPDATE, 3 * UPDATE]), [1, 3], **common)
    for item, rank in ((0, 1), (1, 3)):
        A = oracles.starting_factor(5, 0, rank, 4, 1 / 4)
        for rule, formula in enumerate((standard, rslora)):
            curve, _ = oracles.learn((1 + 2 * item) * DIAGONAL, A, formula(2.0, rank), steps=4, learning_rate=0.01)
            assert np.allclose(sweep.curves[item, rule, (1, 3).index(rank)], curve, rtol=1e-12)


@pytest.mark.parametrize("variance", [None, 0.25, 4.0])
def test_the_variance_of_a(variance):
    A = oracles.starting_factor(0, 0, 2, 4, 0.25 if variance is None else variance)
    curve, norms = oracles.learn(DIAGONAL, A, 1.0, steps=5, learning_rate=0.01)
    sweep = learning_sweep(OF, [2], rules=["unscaled"], steps=5, learning_rate=0.01, init_variance=variance)
    assert np.allclose(sweep.curves[0, 0], curve, rtol=1e-13)
    assert np.allclose(sweep.gradient_norms[0, 0], norms, rtol=1e-12)


def test_means_and_spreads_over_repeats():
    sweep = learning_sweep(OF, [2], rules=["unscaled"], steps=5, learning_rate=0.05, repeats=4, rng=9)
    runs = [
        oracles.learn(DIAGONAL, oracles.starting_factor(9, repeat, 2, 4, 0.25), 1.0, steps=5, learning_rate=0.05)[0]
        for repeat in range(4)
    ]
    assert np.allclose(sweep.curves[0, 0], np.mean(runs, axis=0), rtol=1e-13)
    assert sweep.spread[0, 0] == pytest.approx(np.std([run[-1] for run in runs]), rel=1e-10)
    assert learning_sweep(OF, [2], steps=5).spread.tolist() == [[0.0], [0.0]]


def test_seeds_and_generators():
    first, second = (learning_sweep(OF, [2], steps=3, rng=seed).errors for seed in (3, np.random.default_rng(3)))
    assert np.array_equal(first, second)
    assert np.array_equal(first, learning_sweep(OF, [2], steps=3, rng=np.random.SeedSequence(3)).errors)
    assert not np.array_equal(first, learning_sweep(OF, [2], steps=3, rng=4).errors)
    generator = np.random.default_rng(3)
    runs = [learning_sweep(OF, [2], steps=3, rng=generator).errors for _ in range(2)]
    assert not np.array_equal(*runs)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_workers_change_nothing(monkeypatch, workers):
    stack = np.stack([UPDATE, UPDATE[::-1], 0.5 * UPDATE])
    expected = learning_sweep(stack, [1, 2, 4], steps=5, repeats=3)
    monkeypatch.setattr("lowrank_core.learning.as_workers", lambda _: workers)
    sweep = learning_sweep(stack, [1, 2, 4], steps=5, repeats=3)
    assert sweep.curves.tobytes() == expected.curves.tobytes()
    assert sweep.gradient_norms.tobytes() == expected.gradient_norms.tobytes()


def test_a_run_that_diverges_is_inf_with_a_warning_that_names_the_rate():
    with pytest.warns(
        RuntimeWarning, match=r"diverged at learning_rate=0\.5 for some ranks and rules.*inf; lower the rate"
    ):
        sweep = learning_sweep(OF, [1, 4], rules=["standard", unscaled], steps=200, learning_rate=0.5, repeats=3)
    assert np.all(np.isposinf(sweep.errors[0]))
    assert np.all(np.isposinf(sweep.spread[0]))
    assert np.all(np.isposinf(sweep.curves[0, :, -1]))
    assert np.all(np.isposinf(sweep.gradient_norms[0, :, -1]))
    assert not np.any(np.isnan(sweep.curves))
    assert not np.any(np.isnan(sweep.gradient_norms))
    assert np.all(sweep.curves[..., 0] == 1)


def test_a_zero_update_does_not_disturb_the_others_of_its_stack():
    values = np.array([[0.0, 0.0], [2.0, 1.0]])
    stack = Spectrum(values, np.linalg.norm(values, axis=1), (3, 2), complete=True)
    alone = Spectrum(values[1], np.linalg.norm(values[1]), (3, 2), complete=True)
    both = learning_sweep(stack, [1, 2], steps=3)
    assert not both.curves[0].any()
    assert np.array_equal(both.curves[1], learning_sweep(alone, [1, 2], steps=3).curves)


def test_a_run_that_converges_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep = learning_sweep(OF, [4], rules=["unscaled"], steps=4000, learning_rate=0.05, init_variance=1.0)
    # Below what the trace form can tell from 0: the residual itself is taken.
    assert 0 < sweep.errors[0, 0] < 1e-12
    curve, _ = oracles.learn(DIAGONAL, oracles.starting_factor(0, 0, 4, 4, 1.0), 1.0, steps=4000, learning_rate=0.05)
    small = (curve > 1e-11) & (curve < 1e-3)
    assert small.sum() > 100
    assert np.allclose(sweep.curves[0, 0, small], curve[small], rtol=1e-3)
    assert np.all(np.diff(np.log(sweep.curves[0, 0, small])) < 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("size", [1e-150, 1e-5, 1e3, 1e150])
def test_updates_of_any_size(optimizer, size):
    # The rate is such that B moves: Δ's size for plain steps, which go with the gradient; 1 for Adam, which does not.
    rate = 0.01 if optimizer == "adam" or size < 1 else 0.01 / size**2
    sweep = learning_sweep(
        size * UPDATE, [2], alpha=2.0, rules=["unscaled"], steps=6, learning_rate=rate, optimizer=optimizer, rng=1
    )
    A = oracles.starting_factor(1, 0, 2, 4, 0.25)
    if optimizer == "sgd" and size in {1e-5, 1e3}:
        curve, norms = oracles.learn(size * DIAGONAL, A, 1.0, steps=6, learning_rate=rate)
        assert np.allclose(sweep.curves[0, 0], curve, rtol=1e-12)
        assert np.allclose(sweep.gradient_norms[0, 0], norms, rtol=1e-10)
    if optimizer == "adam" and size in {1e-5, 1e3}:
        curve, norms = oracles.learn(size * UPDATE, A, 1.0, steps=6, learning_rate=rate, optimizer="adam")
        assert np.allclose(sweep.curves[0, 0], curve, rtol=1e-7)
        assert np.allclose(sweep.gradient_norms[0, 0], norms, rtol=1e-7)
    assert np.all(np.isfinite(sweep.curves))
    assert np.all(sweep.gradient_norms[0, 0] > 0)


def test_wide_updates_match_the_dense_loop():
    wide = update_with_spectrum(VALUES, (4, 9), rng=0)
    sweep = learning_sweep(wide, [3], rules=["unscaled"], steps=8, learning_rate=0.02, rng=2)
    A = oracles.starting_factor(2, 0, 3, 9, 1 / 9)
    curve, norms = oracles.learn(np.hstack([np.diag(VALUES), np.zeros((4, 5))]), A, 1.0, steps=8, learning_rate=0.02)
    assert np.allclose(sweep.curves[0, 0], curve, rtol=1e-12)
    assert np.allclose(sweep.gradient_norms[0, 0], norms, rtol=1e-12)


def test_a_spectrum_with_fewer_values_than_min_m_n_learns_as_one_padded_with_zeros():
    short = Spectrum(VALUES[:2], np.linalg.norm(VALUES[:2]), (6, 4), complete=True)
    padded = Spectrum([*VALUES[:2], 0, 0], short.norm, (6, 4), complete=True)
    first, second = (learning_sweep(s, [1, 3], steps=5) for s in (short, padded))
    assert np.allclose(first.curves, second.curves, rtol=1e-14)
    assert learning_sweep(LowRankUpdate(UPDATE[:, :2], np.eye(2, 4)), [3], steps=2).errors.shape == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sgdm"}, r"unknown optimizer 'sgdm'; accepted are sgd, adam"),
        ({"optimizer": "adam"}, r"Adam is not rotation-invariant: it needs the update itself"),
        ({"ranks": [[1]]}, r"ranks must be one-dimensional.*shape \(1, 1\)"),
        ({"alpha": [1.0, 2.0]}, "alpha is one number"),
        ({"ranks": [5]}, r"rank 5 is beyond min\(m, n\) = 4"),
        ({"steps": -1}, r"steps must be a whole number of at least 0; got -1"),
        ({"steps": 1.5}, r"steps must be a whole number"),
        ({"repeats": 0}, r"repeats must be at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and positive; got 0"),
        ({"learning_rate": np.nan}, r"learning_rate must be finite and positive; got nan"),
        ({"init_variance": -1.0}, r"init_variance must be finite and positive; got -1"),
        ({"rules": ["rsLoRA"]}, r"unknown scaling rule 'rsLoRA'"),
        ({"rules": "standard"}, r"rules must be a sequence"),
        ({"alpha": -1.0}, r"alpha must be finite and positive"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        learning_sweep(**({"update": OF, "ranks": [1]} | arguments))


def test_an_incomplete_spectrum_is_refused():
    with pytest.raises(ValueError, match=r"learning needs every singular value.*leading 2.*spectrum\(update\)"):
        learning_sweep(spectrum(UPDATE, rank=2), [1])
