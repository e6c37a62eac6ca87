"""Singular values from Gram matrices, by three diagonals, against LAPACK's."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import gram
from tests.compiled import plain
from tests.internals.kernels.matrices import KINDS, with_values

EPS = 2.0**-52


def gram_values(grams, reduce=gram.tridiagonals, solve=gram.tridiagonal_values):
    diagonals, squares, values = (np.empty(grams.shape[:2]) for _ in range(3))
    exponents = np.empty(len(grams), np.int64)
    reduce(grams, diagonals, squares, exponents)
    assert solve(diagonals, squares, values) == 0
    return np.ldexp(values, exponents[:, np.newaxis])


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 33, 70])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0, -150, 250])
def test_roots_of_a_gram_matrix_are_within_float32s_rounding(n, kind, power):
    matrices = with_values(3, n + 3, n, KINDS[kind](n))
    values = gram_values(np.ldexp(np.swapaxes(matrices, 1, 2) @ matrices, 2 * power))
    exact = np.linalg.svd(matrices, compute_uv=False)
    assert np.all(np.diff(values) <= 0)
    # A square is known to a few ulp of the largest: √(4 · 2⁻⁵²) where σ is zero, an ulp or two where it is not.
    room = np.minimum(2.0**-24, 8 * max(n, 4) * EPS / np.maximum(exact / exact[:, :1].clip(1e-300), 1e-300))
    assert np.all(np.abs(np.ldexp(values, -power) - exact) <= room * exact[:, :1])


def test_tridiagonal_matrices_are_similar_to_what_they_came_from():
    grams = with_values(2, 30, 21, KINDS["drawn"](21))
    grams = np.ascontiguousarray(np.swapaxes(grams, 1, 2) @ grams)
    for reduce in (gram.tridiagonals, plain(gram.tridiagonals)):
        diagonals, squares, exponents = np.empty((2, 21)), np.empty((2, 21)), np.empty(2, np.int64)
        reduce(grams, diagonals, squares, exponents)
        for matrix, diagonal, square in zip(
            np.ldexp(grams, -2 * exponents[:, None, None]), diagonals, squares, strict=True
        ):
            beside = np.sqrt(square[:-1])
            three = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
            assert np.allclose(np.linalg.eigvalsh(three), np.linalg.eigvalsh(matrix), rtol=0, atol=100 * EPS)


def test_what_stands_beside_a_gram_matrix_changes_no_bit():
    matrices = np.concatenate([with_values(2, 11, 9, kind(9)) for kind in KINDS.values()])
    grams = np.ascontiguousarray(np.swapaxes(matrices, 1, 2) @ matrices)
    values = gram_values(grams)
    for i in range(len(grams)):
        assert np.array_equal(gram_values(grams[i : i + 1])[0], values[i])


def test_tridiagonal_values_do_not_depend_on_size():
    matrices = with_values(9, 12, 10, KINDS["drawn"](10))
    diagonals, squares, exponents = np.empty((9, 10)), np.empty((9, 10)), np.empty(9, np.int64)
    gram.tridiagonals(np.ascontiguousarray(np.swapaxes(matrices, 1, 2) @ matrices), diagonals, squares, exponents)
    found = []
    for power in (0, -100, 100):
        values = np.empty((9, 10))
        assert gram.tridiagonal_values(np.ldexp(diagonals, 2 * power), np.ldexp(squares, 4 * power), values) == 0
        found.append(np.ldexp(values, -power))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_a_matrix_that_is_no_gram_matrix_is_left_at_nan():
    diagonals, squares = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]), np.zeros((2, 3))
    for solve in (gram.tridiagonal_values, plain(gram.tridiagonal_values)):
        values = np.empty((2, 3))
        assert solve(diagonals, squares, values) == 1
        assert np.allclose(values[0], 1.0, rtol=EPS)
        assert np.isnan(values[1, 0])
