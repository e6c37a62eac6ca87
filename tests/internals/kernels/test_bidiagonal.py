"""Singular values by bidiagonal form, of one matrix after another, against LAPACK's."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import bidiagonal
from tests.compiled import plain
from tests.internals.kernels.matrices import KINDS, with_values

EPS = 2.0**-52


def bidiagonal_values(matrices, reduce=bidiagonal.bidiagonals, solve=bidiagonal.bidiagonal_values):
    count, size = len(matrices), min(matrices.shape[1:])
    diagonals, above, values = (np.empty((count, size)) for _ in range(3))
    exponents = np.empty(count, np.int64)
    reduce(matrices, diagonals, above, exponents)
    assert solve(diagonals, above, values) == 0
    return np.ldexp(values, exponents[:, np.newaxis])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 5), (9, 7), (8, 8), (16, 17), (40, 33), (33, 70)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0, -600, 600])
def test_values_are_within_float64s_rounding(m, n, kind, power):
    matrices = with_values(3, m, n, KINDS[kind](min(m, n)))
    values = bidiagonal_values(np.ldexp(matrices, power))
    exact = np.linalg.svd(matrices, compute_uv=False)
    assert np.all(np.diff(values) <= 0)
    assert np.all(np.abs(np.ldexp(values, -power) - exact) <= 10 * max(m, n) * EPS * exact[:, :1])


def test_bidiagonal_matrices_have_the_values_of_what_they_came_from():
    matrices = with_values(2, 30, 21, KINDS["drawn"](21))
    for reduce in (bidiagonal.bidiagonals, plain(bidiagonal.bidiagonals)):
        diagonals, above, exponents = np.empty((2, 21)), np.empty((2, 21)), np.empty(2, np.int64)
        reduce(matrices, diagonals, above, exponents)
        assert np.all(above[:, -1] == 0.0)
        for matrix, diagonal, beside in zip(
            np.ldexp(matrices, -exponents[:, None, None]), diagonals, above, strict=True
        ):
            two = np.diag(np.sqrt(diagonal)) + np.diag(np.sqrt(beside[:-1]), 1)
            exact = np.linalg.svd(matrix, compute_uv=False)
            assert np.allclose(np.linalg.svd(two, compute_uv=False), exact, rtol=0, atol=100 * EPS * exact[0])


def test_what_stands_beside_a_matrix_changes_no_bit():
    matrices = np.concatenate([with_values(2, 11, 9, kind(9)) for kind in KINDS.values()])
    values = bidiagonal_values(matrices)
    for i in range(len(matrices)):
        assert np.array_equal(bidiagonal_values(matrices[i : i + 1])[0], values[i])


def test_a_zero_matrix_has_zeros_for_values():
    assert np.all(bidiagonal_values(np.zeros((2, 12, 10))) == 0.0)
