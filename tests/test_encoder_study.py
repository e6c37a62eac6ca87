"""The study of a sentence encoder: its methods do what they say, its data are complete, its page says what they say."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs" / "encoder"))

import curves
import truncations


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """An update, and second moments of inputs of which some directions hardly occur and one does not."""
    basis, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    return rng.normal(size=(7, 9)), (basis * [4.0, 2.0, 1.0, 0.5, 0.1, 1e-2, 1e-4, 1e-8, 0.0]) @ basis.T


def weighted_energy(update, moment):
    return truncations.energy({"": update}, {"": moment})


def test_weighted_truncation_is_best_for_the_outputs(layer, rng):
    """The error is the tail of the spectrum of ΔC^½ (Eckart and Young there), and nothing near it is better."""
    update, moment = layer
    values, directions = np.linalg.eigh(moment)
    spectrum = np.linalg.svd(update @ (directions * np.sqrt(values.clip(0))), compute_uv=False)
    for rank, kept in truncations.weighted(update, moment, (1, 2, 4)).items():
        error = weighted_energy(update - kept, moment)
        assert np.linalg.matrix_rank(kept) == rank
        assert error == pytest.approx(np.sum(spectrum[rank:] ** 2), rel=1e-9)
        assert error <= weighted_energy(update - truncations.plain(update, (rank,))[rank], moment)
        for _ in range(50):
            left, _, right = np.linalg.svd(kept + 0.01 * rng.normal(size=kept.shape))
            near = left[:, :rank] @ (left[:, :rank].T @ kept @ right[:rank].T + 0.01 * rng.normal(size=(rank, rank)))
            assert weighted_energy(update - near @ right[:rank], moment) >= error


def test_truncations_at_full_rank_are_the_update(layer):
    update, moment = layer
    np.testing.assert_allclose(truncations.plain(update, (7,))[7], update, atol=1e-12)
    np.testing.assert_allclose(truncations.weighted(update, moment, (7,))[7], update, atol=1e-12)


def test_weighted_truncation_by_equal_inputs_is_the_plain_one(layer):
    update, _ = layer
    for rank, kept in truncations.weighted(update, np.eye(9), (1, 3)).items():
        np.testing.assert_allclose(kept, truncations.plain(update, (rank,))[rank], atol=1e-12)


def test_weighted_energy_is_the_mean_over_the_inputs(layer, rng):
    update, _ = layer
    inputs = rng.normal(size=(30, 9))
    mean = np.mean(np.sum((inputs @ update.T) ** 2, axis=1))
    assert weighted_energy(update, inputs.T @ inputs / 30) == pytest.approx(mean, rel=1e-12)


def test_measures_of_nothing_and_of_everything(layer):
    update, moment = layer
    weights, moments = {"": np.ones((7, 9))}, {"": moment}
    nothing = truncations.measure({"": update}, {"": np.zeros_like(update)}, weights, moments)
    assert nothing == pytest.approx(
        {"variance": 0, "base_relative": np.linalg.norm(update) / np.sqrt(63), "weighted_error": 1}
    )
    everything = truncations.measure({"": update}, {"": update}, weights, moments)
    assert everything == {"variance": 1, "base_relative": 0, "weighted_error": 0}
    half = truncations.measure({"": update}, {"": update / 2}, weights, moments)
    assert half["variance"] == pytest.approx(0.75)
    assert half["weighted_error"] == pytest.approx(0.5)


def test_random_part_is_a_projection(layer):
    update, _ = layer
    part = truncations.random_part(update, np.random.default_rng(1))
    assert np.linalg.matrix_rank(part) == round(truncations.RANDOM_FRACTION * 7)
    np.testing.assert_allclose(np.sum(part * (update - part)), 0, atol=1e-12)


def test_a_monotone_relation_predicts_exactly_and_noise_does_not(rng):
    x, groups = np.tile(np.linspace(0, 1, 20), 3), np.repeat(np.arange(3), 20)
    exact = curves.predict(x, x**3, groups, 1)
    assert (exact.correlation, exact.low, exact.high) == pytest.approx((1, 1, 1))
    assert exact.error < 1e-12
    assert curves.predict(x, -x, groups, -1).correlation == pytest.approx(1)
    noise = curves.predict(x, rng.normal(size=60), groups, 1)
    assert abs(noise.correlation) < 0.4
    assert noise.error > 0.8


def test_monotone_fit_averages_what_falls():
    np.testing.assert_allclose(
        curves.monotone(np.array([1.0, 2, 3, 3]), np.array([0.0, 4, 1, 3]), [0, 1, 2.5, 9]), [0, 0, 8 / 3, 8 / 3]
    )
