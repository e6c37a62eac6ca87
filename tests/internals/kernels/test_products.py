"""Gram matrices of factors in float32, and their balance."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import products
from tests.compiled import both

EPS = 2.0**-52
RNG = np.random.default_rng(0)


def transposes(factors):
    return np.ascontiguousarray(np.swapaxes(factors, 1, 2))


@both(products.gram_matrices)
@pytest.mark.parametrize("other", [0, 1, 8, 11])
@pytest.mark.parametrize(
    ("length", "rank"), [(1, 1), (7, 3), (8, 8), (65, 9), (64, 16), (131, 24), (130, 17), (70, 32)]
)
def test_gram_matrices_of_float32_factors_beside_each_other(kernel, length, rank, other):
    first, second = (RNG.standard_normal((3, length, size), dtype=np.float32) for size in (rank, other))
    joined = np.concatenate([first, second], axis=2).astype(float)
    exact, size = transposes(joined) @ joined, rank + other
    bound = 2 * (length + 1) * EPS * (transposes(np.abs(joined)) @ np.abs(joined))
    for pair, of_rows in (((first, second), False), ((transposes(first), transposes(second)), True)):
        grams, alone = np.full((3, size, size), np.nan), np.full((1, size, size), np.nan)
        kernel(*pair, of_rows, grams)
        assert np.all(np.abs(grams - exact) <= bound)
        assert np.array_equal(grams, np.swapaxes(grams, 1, 2))
        kernel(*(factor[1:2] for factor in pair), of_rows, alone)
        assert np.array_equal(alone[0], grams[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of_rows", [False, True])
def test_a_gram_matrix_has_a_finite_diagonal_just_where_its_factor_is_finite(bad, of_rows):
    extreme = np.full((2, 70, 70), np.finfo(np.float32).max)
    extreme[1, 69, 3] = bad
    grams = np.empty((2, 70, 70))
    products.gram_matrices(
        extreme.astype(np.float32), np.empty((2, 0, 70) if of_rows else (2, 70, 0), "f4"), of_rows, grams
    )
    finite = np.isfinite(np.diagonal(grams, axis1=1, axis2=2))
    assert finite[0].all()
    assert np.flatnonzero(~finite[1]).tolist() == [69 if of_rows else 3]


@both(products.balance)
def test_balanced_gram_matrices_share_the_size_of_each_component(kernel):
    B, A = RNG.standard_normal((2, 4, 9, 4))
    B *= np.exp2([0, 60, -90, 3])
    A *= np.exp2([0, -40, 95, 3])
    # Zero on one side, however large on the other; and a product that is small as a whole.
    A[1, :, 3], B[1, :, 3] = 0.0, 2.0**200 * B[1, :, 3]
    B[2, :, 2], A[2, :, 2] = 0.0, 2.0**200 * A[2, :, 2]
    B[3] *= 2.0**-60
    dead = [[], [3], [2], []]
    B_grams, A_grams = (np.swapaxes(X, 1, 2) @ X for X in (B, A))
    exponents, bounds = np.empty(4, np.int64), np.empty((4, 2))
    B_core, A_core = B_grams.copy(), A_grams.copy()
    kernel(B_core, A_core, exponents, bounds)
    for item in range(4):
        b, a = np.diagonal(B_core[item]), np.diagonal(A_core[item])
        lives = [i for i in range(4) if i not in dead[item]]
        assert np.all((b[lives] / a[lives] >= 1 / 16) & (b[lives] / a[lives] <= 16))
        assert 1 / 16 <= np.max(b * a) <= 16
        sizes = np.sqrt(np.diagonal(B_grams[item]) * np.diagonal(A_grams[item]))
        assert np.allclose(np.sqrt(b * a) * np.exp2(exponents[item]), sizes, rtol=1e-14)
        # A power of two for each row and column: the angles between columns stay to the bit but for rounding.
        for core, gram_ in ((B_core[item], B_grams[item]), (A_core[item], A_grams[item])):
            kept = np.ix_(lives, lives)
            roots = [np.sqrt(np.diagonal(X)[lives]) for X in (core, gram_)]
            assert np.allclose(core[kept] / np.outer(*[roots[0]] * 2), gram_[kept] / np.outer(*[roots[1]] * 2))
        for core in (B_core[item], A_core[item]):
            assert not core[dead[item]].any()
            assert not core[:, dead[item]].any()
        sides = (B_core[item], A_core[item])
        assert np.allclose(bounds[item], [np.max(np.sum(np.abs(X), axis=1)) for X in sides], rtol=1e-14)


@both(products.balance)
def test_balanced_products_are_over_the_floor_of_half_their_exponents(kernel):
    small_and_one = np.array([2.0**-8, 1.0, 0.0]).reshape(3, 1, 1), np.array([1.0, 2.0**-8, 1.0]).reshape(3, 1, 1)
    exponents = np.empty(3, np.int64)
    kernel(*small_and_one, exponents, np.empty((3, 2)))
    assert exponents.tolist() == [-4, -4, 0]
