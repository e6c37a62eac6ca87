"""The iteration for the edge of uneven noise: how many iterations it takes, and on which threads."""

from contextlib import nullcontext

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


def test_uneven_noise_is_summed_on_one_blas_thread(monkeypatch):
    counts = []
    monkeypatch.setattr(noise, "blas_threads", lambda threads: counts.append(threads) or nullcontext())
    assert noise_edge(np.array([[1.0, 2.0], [3.0, 4.0]]))[0] > 0
    assert counts == [1]


def test_a_flag_that_blas_raises_for_finite_numbers_is_no_warning(monkeypatch):
    variances = next(iter(PROFILES.values()))
    expected = noise_edge(variances)

    def flagged(*given):
        np.subtract(np.inf, np.inf)
        return PRODUCTS(*given)

    monkeypatch.setattr(noise, "_products", flagged)
    assert noise_edge(variances) == expected
