"""Laws of noise against integrals, exact edges and draws."""

import tracemalloc

import numpy as np
import pytest
from scipy import integrate, optimize

from lowrank_core import spectrum
from lowrank_core.noise import marchenko_pastur_median, noise_edge, optimal_threshold
from tests import oracles
from tests.profiles import PROFILES


def median_by_integration(beta):
    low, high = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2

    def density(x):
        return np.sqrt(max(high - x, 0.0) * max(x - low, 0.0)) / (2 * np.pi * beta * x)

    return optimize.brentq(lambda x: integrate.quad(density, low, x, limit=500)[0] - 0.5, low, high, xtol=1e-13)


@pytest.mark.parametrize("beta", [1e-3, 0.01, 0.0624, 0.0626, 0.1, 0.25, 0.5, 0.75, 0.9])
def test_median_is_where_the_density_has_half_its_mass(beta):
    assert marchenko_pastur_median(beta) == pytest.approx(median_by_integration(beta), rel=1e-9)


@pytest.mark.parametrize("beta", [1.0, 1 - 1e-6, 0.25, 0.0625, 1e-6, 1e-12])
def test_median_is_accurate_to_the_last_digits(beta):
    assert marchenko_pastur_median(beta) == pytest.approx(oracles.marchenko_pastur_median(beta), rel=2e-15)


def test_median_of_drawn_noise():
    noise = np.random.default_rng(1).standard_normal((400, 1000))
    drawn = np.median(spectrum(noise).values ** 2 / 1000)
    assert drawn == pytest.approx(marchenko_pastur_median(0.4), rel=0.01)


def test_thresholds_of_the_paper():
    # Its table and title: 4/√3 for squares, and ω(1) ≈ 2.858 for unknown noise; the polynomial is good to 0.02.
    assert optimal_threshold(1.0) == pytest.approx(4 / np.sqrt(3), rel=1e-15)
    for beta in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        unknown = optimal_threshold(beta) / np.sqrt(marchenko_pastur_median(beta))
        assert unknown == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)
    assert optimal_threshold(1.0) / np.sqrt(marchenko_pastur_median(1.0)) == pytest.approx(2.858, abs=5e-4)
    assert optimal_threshold(1e-9) == pytest.approx(np.sqrt(2), abs=1e-4)


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.5, 0.9])
def test_the_threshold_is_where_keeping_costs_as_much_as_dropping(beta):
    # A value x of the update appears at y, with vectors at cosines c and d to its own (Benaych-Georges and Nadakuditi,
    # arXiv:1103.2221): to keep it costs x² + y² − 2xycd, to drop it x².
    def y(x):
        return np.sqrt((x + 1 / x) * (x + beta / x))

    def cosines(x):
        return (x**4 - beta) / np.sqrt((x**4 + beta * x**2) * (x**4 + x**2))

    x = optimize.brentq(lambda x: y(x) - 2 * x * cosines(x), beta**0.25, 5.0, xtol=1e-14)
    assert optimal_threshold(beta) == pytest.approx(y(x), rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, -0.5, 1.0001, np.nan])
@pytest.mark.parametrize("law", [marchenko_pastur_median, optimal_threshold])
def test_a_ratio_of_sides_is_at_most_one(law, beta):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared below
        law(beta)
    assert str(caught.value) == f"beta must lie in 0 < beta <= 1; got {beta!r}. It is min(m, n) / max(m, n)."


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 500), (100, 100), (400, 100), (600, 300)])
def test_edge_of_equal_variances_is_the_formula(m, n):
    edge, above = noise_edge(np.full((m, n), 0.25))
    a, b = np.sqrt(m), np.sqrt(n)
    assert edge == pytest.approx(0.5 * (a + b), rel=1e-12)
    assert above**2 == pytest.approx(0.25 * ((a + b) ** 2 + 2.02 * (a + b) * (1 / a + 1 / b) ** (1 / 3)), rel=1e-12)


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_edge_is_at_most_one_per_cent_above_the_exact_one(profile, dtype):
    variances = PROFILES[profile]
    exact = oracles.noise_edge(variances)
    edge, above = noise_edge(variances.astype(dtype))
    assert exact * (1 - 1e-5) <= edge <= exact * 1.01
    assert above > edge
    assert noise_edge(variances.T.astype(dtype))[0] == pytest.approx(edge, rel=0.01)


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"entries", "one entry"}))
@pytest.mark.parametrize("uniform", [False, True])
def test_draws_are_below_the_edge_and_near_it(profile, uniform):
    variances = np.kron(PROFILES[profile], np.ones((2, 2)))
    rng = np.random.default_rng(2)
    drawn = rng.random((100, *variances.shape)) - 0.5 if uniform else rng.standard_normal((100, *variances.shape))
    sizes = np.sqrt(variances * 12) if uniform else np.sqrt(variances)
    largest = spectrum(drawn * sizes, rank=1).values[:, 0]
    edge, above = noise_edge(variances)
    assert np.sum(largest > above) <= 5
    # The limit of large matrices, from below: the fewer rows matter, the further.
    assert 0.9 * edge < np.median(largest) < edge


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_edge_is_proportional_to_the_noise(profile):
    # Powers of two move no digit, so that the same rounds are gone through.
    edge, above = noise_edge(np.ldexp(PROFILES[profile], 40))
    plain, plain_above = noise_edge(PROFILES[profile])
    assert edge == np.ldexp(plain, 20)
    assert above == pytest.approx(np.ldexp(plain_above, 20), rel=1e-14)


def test_edge_of_float32_variances_takes_no_copy_of_them():
    variances = np.ones((1000, 1000), dtype=np.float32)
    noise_edge(variances[:10])
    tracemalloc.start()
    noise_edge(variances)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < variances.nbytes / 4


def test_rows_and_columns_without_noise_change_nothing():
    variances = PROFILES["rows and columns"]
    padded = np.zeros((60, 90))
    padded[5:55, 10:80] = variances
    for part in (padded, padded[:, 10:80], padded[5:55]):
        assert noise_edge(part) == pytest.approx(noise_edge(variances), rel=1e-12)
    assert noise_edge(np.zeros((4, 5))) == (0.0, 0.0)
