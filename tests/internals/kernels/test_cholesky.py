"""Cholesky factors of Gram matrices, their inverses, and what is known of their condition."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import cholesky
from tests.compiled import both

EPS = 2.0**-52
RNG = np.random.default_rng(0)


def decomposed(kernel, grams):
    roots, inverses, bounds = np.zeros(grams.shape), np.zeros(grams.shape), np.empty(len(grams))
    kernel(grams, roots, inverses, bounds)
    return roots, inverses, bounds


@both(cholesky.cholesky_inverses)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 23, 40])
def test_roots_and_inverses_have_the_residuals_of_lapacks(kernel, n):
    factors = RNG.standard_normal((3, 2 * n + 3, n))
    grams = factors.swapaxes(1, 2) @ factors
    roots, inverses, bounds = decomposed(kernel, grams)
    for gram, R, X, bound in zip(grams, roots, inverses, bounds, strict=True):
        assert np.array_equal(R, np.triu(R))
        assert np.array_equal(X, np.triu(X))
        # Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., theorem 10.3 and §14.2.
        assert np.all(np.abs(R.T @ R - gram) <= (n + 2) * EPS * (np.abs(R).T @ np.abs(R)))
        assert np.all(np.abs(R @ X - np.eye(n)) <= (n + 2) * EPS * (np.abs(R) @ np.abs(X)))
        squared = np.linalg.cond(R) ** 2
        assert squared * (1 - 1e-12) <= bound <= n**2 * squared * (1 + 1e-12)
    for i in range(3):
        for alone, batched in zip(decomposed(kernel, grams[i : i + 1]), (roots, inverses, bounds), strict=True):
            assert alone[0].tobytes() == batched[i].tobytes()


@both(cholesky.cholesky_inverses)
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_is_not_definite_is_as_ill_conditioned_as_can_be(kernel, bad):
    grams = np.stack([np.eye(9)] * 3)
    grams[1, 8, 8] = bad
    roots, _, bounds = decomposed(kernel, grams)
    assert bounds.tolist() == [1.0, np.inf, 1.0]
    assert np.array_equal(roots[2], np.eye(9))
