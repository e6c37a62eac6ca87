"""The article's experiment: every figure that its program prints, in every digit shown, and its conclusion."""

import numpy as np
import pytest

from lowrank_core import (
    Spectrum,
    error_sweep,
    facts_update,
    learning_sweep,
    reconstruction_error,
    rslora,
    spectrum,
    standard,
    style_update,
    update_with_spectrum,
    variance_captured,
)

RANKS = [2, 4, 8, 16, 32, 48]
ERRORS = {
    "style": {
        "standard": [6.608106, 2.988677, 1.000000, 0.063517, 0.500869, 0.666727],
        "rslora": [9.729615, 6.970877, 4.642097, 2.994616, 1.827684, 1.309361],
    },
    "facts": {
        "standard": [2.165376, 1.481534, 1.000000, 0.701083, 0.627560, 0.685698],
        "rslora": [3.016290, 2.858262, 2.619609, 2.251191, 1.701114, 1.296699],
    },
}
LEADING = {"style": [4.99, 3.50, 2.01, 0.52, 0.14], "facts": [3.00, 2.96, 2.91, 2.87, 2.84]}
VARIANCES = {
    "style": [88.8897, 99.1524, 99.3367, 99.5966, 99.8841],
    "facts": [7.6851, 14.9368, 28.3393, 50.8483, 80.8224],
}
LEARNING_RANKS = [2, 8, 16, 32, 48, 64]
LEARNING = {
    "best": [0.961, 0.846, 0.700, 0.437, 0.216, 0.000],
    "standard": [0.971, 0.916, 0.932, 0.963, 0.975, 0.981],
    "rslora": [0.972, 0.891, 0.788, 0.640, 0.528, 0.462],
}
ADAM_RANKS = [8, 32, 48, 64]
ADAM = {
    2e-3: [[0.848, 0.449, 0.233, 0.071], [0.846, 0.439, 0.218, 0.000]],
    5e-4: [[0.885, 0.707, 0.666, 0.643], [0.869, 0.505, 0.297, 0.129]],
}
kinds = pytest.mark.parametrize("kind", ["style", "facts"])


@pytest.fixture(scope="module")
def spectra():
    generator = np.random.RandomState(42)
    style = style_update(64, 64, rng=generator)
    return {"style": spectrum(style), "facts": spectrum(facts_update(64, 64, rng=generator))}


@pytest.fixture(scope="module")
def facts():
    values = np.linspace(3.0, 0.5, 64)
    return Spectrum(values, np.linalg.norm(values), (64, 64), complete=True)


@kinds
def test_reconstruction_errors(spectra, kind):
    sweep = error_sweep(spectra[kind], RANKS, alpha=16)
    assert sweep.rules == ("standard", "rslora")
    for errors, rule in zip(sweep.errors, sweep.rules, strict=True):
        assert errors.round(6).tolist() == ERRORS[kind][rule]
    for rule, gamma in (("standard", standard(16, RANKS)), ("rslora", rslora(16, RANKS))):
        assert reconstruction_error(spectra[kind], RANKS, gamma).round(6).tolist() == ERRORS[kind][rule]


@kinds
def test_leading_singular_values(spectra, kind):
    assert spectra[kind].values[:5].round(2).tolist() == LEADING[kind]


@kinds
def test_variances(spectra, kind):
    assert (100 * variance_captured(spectra[kind], RANKS[:5])).round(4).tolist() == VARIANCES[kind]


def test_best_errors(facts):
    assert reconstruction_error(facts, LEARNING_RANKS).round(3).tolist() == LEARNING["best"]


@pytest.mark.parametrize("seed", range(10))
def test_learning_within_the_spread_of_seeds_and_with_the_articles_conclusion(facts, seed):
    sweep = learning_sweep(facts, LEARNING_RANKS, alpha=16, steps=300, learning_rate=1e-3, rng=seed)
    for errors, rule in zip(sweep.errors, sweep.rules, strict=True):
        assert np.all(np.abs(errors - LEARNING[rule]) <= 0.03)
    standard_errors, rslora_errors = sweep.errors
    assert np.all(np.diff(standard_errors[1:]) > 0)
    assert np.all(np.diff(rslora_errors) < 0)
    assert sweep.optimal.round(3).tolist() == LEARNING["best"]


@pytest.mark.parametrize("rate", sorted(ADAM))
def test_adam_hides_part_of_it(rate):
    update = update_with_spectrum(np.linspace(3.0, 0.5, 64), (64, 64), rng=0)
    sweep = learning_sweep(update, ADAM_RANKS, learning_rate=rate, optimizer="adam", repeats=3)
    assert np.all(np.abs(sweep.errors - ADAM[rate]) <= 0.03)


def test_no_scaling_rule_beats_the_truncation_itself(spectra):
    for decomposed in spectra.values():
        sweep = error_sweep(decomposed, RANKS)
        assert np.all(sweep.errors[1] > 1)
        assert np.all(sweep.errors[1] > sweep.errors[0])
        assert np.all(sweep.errors >= sweep.optimal)
        # α/r is 1 at r = α, and nowhere else as good as the truncation.
        assert np.flatnonzero(sweep.errors[0] == sweep.optimal).tolist() == [RANKS.index(16)]
