"""The iteration for the edge of uneven noise: how many iterations it takes, and on which threads."""

from contextlib import contextmanager

import numpy as np
import pytest

from lowrank_core import noise
from lowrank_core.noise import noise_edge
from tests import oracles
from tests.profiles import PROFILES

PRODUCTS = noise._products


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_edge_converges_in_a_few_dozen_iterations(profile, monkeypatch):
    rounds = []
    monkeypatch.setattr(noise, "_products", lambda *given: rounds.append(None) or PRODUCTS(*given))
    noise_edge(PROFILES[profile])
    # Two products a round: one to bound the edge from below, one from above.
    assert len(rounds) <= 2 * 40


def test_edge_is_a_bound_after_any_number_of_iterations(monkeypatch):
    for variances in PROFILES.values():
        exact = oracles.noise_edge(variances)
        for rounds in (1, 2, 5):
            monkeypatch.setattr(noise, "_ITERATIONS", rounds)
            assert noise_edge(variances)[0] >= exact * (1 - 1e-5)


def test_every_product_of_uneven_noise_is_on_one_blas_thread(monkeypatch):
    held, products = [], []

    @contextmanager
    def blas_threads(threads):
        held.append(threads)
        yield
        held.pop()

    monkeypatch.setattr(noise, "blas_threads", blas_threads)
    monkeypatch.setattr(noise, "_products", lambda *given: products.append([*held]) or PRODUCTS(*given))
    assert noise_edge(np.array([[1.0, 2.0], [3.0, 4.0]]))[0] > 0
    # The sums to start from, and two at least.
    assert len(products) >= 3
    assert all(threads == [1] for threads in products)


def test_an_edge_starts_from_that_of_like_variances(monkeypatch):
    variances = np.exp(np.random.default_rng(0).standard_normal((60, 90)))
    own, rounds = noise.edge_of_variances(variances), []
    monkeypatch.setattr(noise, "_products", lambda *given: rounds.append(None) or PRODUCTS(*given))
    again = noise.edge_of_variances(2 * variances, own)
    # The sums, and both bounds of the first round, which agree already.
    assert len(rounds) == 3
    assert again.edge == pytest.approx(np.sqrt(2) * own.edge, rel=1e-9)
    # That of another shape, as where rows without noise were left out, is of no use.
    rounds.clear()
    variances[3] = 0
    assert noise.edge_of_variances(variances, own).edge == noise.edge_of_variances(variances[np.arange(60) != 3]).edge
    assert len(rounds) > 6


def test_a_flag_that_blas_raises_for_finite_numbers_is_no_warning(monkeypatch):
    variances = next(iter(PROFILES.values()))
    expected = noise_edge(variances)

    def flagged(*given):
        np.subtract(np.inf, np.inf)
        return PRODUCTS(*given)

    monkeypatch.setattr(noise, "_products", flagged)
    assert noise_edge(variances) == expected
