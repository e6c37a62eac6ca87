"""Scaling by powers of two: exact, reversible, and refused where a result does not fit float64."""

import numpy as np
import pytest

from lowrank_core import LowRankUpdate, spectrum, truncate
from lowrank_core._linalg.powers_of_two import scaled_by, scaled_to_squares, scaled_to_unit, unscaled_by


@pytest.mark.parametrize("size", [1.0, 5e-324, 2.0**-1074 * 3, 1e-310, 1e308, np.finfo(float).max, 0.75, 0.5])
def test_scaling_to_unit_is_exact_and_reversible(size):
    matrices = size * np.array([[[1.0, -0.5], [0.25, 0.0]], [[0.0, 0.0], [0.0, -1.0]]])
    scaled, exponents = scaled_to_unit(matrices)
    assert np.array_equal(np.ldexp(scaled, exponents[:, np.newaxis, np.newaxis]), matrices)
    largest = np.abs(scaled).max(axis=(-2, -1))
    assert np.all((largest >= 0.5) & (largest < 1))
    assert exponents.shape == (2,)
    assert not np.shares_memory(scaled, matrices)


@pytest.mark.parametrize("exponent", [-1074, -1073, -1022, -1000, -1, 0, 1, 1023, 1024, 1050, 1074])
def test_a_power_of_two_multiplies_as_ldexp_does(exponent):
    rng = np.random.default_rng(0)
    numbers = np.ldexp(rng.uniform(-1, 1, 5000), rng.integers(-1074, 1024, 5000))
    numbers = np.r_[numbers, 0.0, 5e-324, np.finfo(float).max, np.inf, -np.inf, np.nan]
    with np.errstate(over="ignore"):
        expected = np.ldexp(numbers, exponent)
        assert np.array_equal(scaled_by(numbers, np.array(exponent)), expected, equal_nan=True)
        exponents = np.r_[np.full(5000, exponent), np.zeros(6, int)]
        assert np.array_equal(scaled_by(numbers, exponents), np.ldexp(numbers, exponents), equal_nan=True)
        assert scaled_by(numbers, exponents, out=numbers) is numbers


def test_scaling_a_zero_matrix_leaves_it_zero():
    scaled, exponents = scaled_to_unit(np.zeros((2, 3)))
    assert not scaled.any()
    assert exponents == 0


def test_only_float64_is_copied_before_squares_are_taken():
    narrow = np.full((2, 3, 3), 3e38, dtype=np.float32)
    scaled, exponents = scaled_to_squares(narrow)
    assert scaled is narrow
    assert not exponents.any()
    scaled, exponents = scaled_to_squares(np.full((2, 3, 3), 1e300))
    assert np.all(np.isfinite(scaled**2))
    assert np.array_equal(np.ldexp(scaled, exponents[:, np.newaxis, np.newaxis]), np.full((2, 3, 3), 1e300))


def test_a_result_that_float64_represents_is_returned():
    assert unscaled_by(np.array([0.5]), 1024, "x") == 2.0**1023


REFUSED = {
    "scaling": lambda: unscaled_by(np.array([1.0]), 1024, "the norm"),
    "direct": lambda: spectrum(np.full((2, 2), 1.7e308), method="direct"),
    "gram": lambda: spectrum(np.full((2, 2), 1.7e308), method="gram"),
    "product": lambda: spectrum(LowRankUpdate(np.full((2, 2), 1.7e308), np.eye(2))),
    "truncation": lambda: truncate(np.full((2, 2), 1.7e308), 1),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_a_result_beyond_float64_is_refused(call):
    with pytest.raises(ValueError, match=r"does not fit float64.*power of two"):
        call()


def test_a_norm_beyond_float64_is_refused_where_every_value_fits():
    with pytest.raises(ValueError, match="the norm of the update does not fit float64"):
        spectrum(np.diag([1.7e308, 1.7e308]))
