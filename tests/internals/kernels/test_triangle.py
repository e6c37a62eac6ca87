"""Triangles of tall matrices: their Gram matrices, and values by way of them."""

import numpy as np
import pytest

from lowrank_core._linalg import tall
from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.kernels.triangle import triangle
from lowrank_core._linalg.lapack import lapack_svd_values
from lowrank_core._linalg.panels import triangle_by_panels
from tests.compiled import plain

EPS = 2.0**-52


def square_values(stack, workers):
    return lapack_svd_values(stack)


@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (5, 5), (64, 8), (513, 8), (2100, 2), (1200, 4), (250, 16), (700, 9), (900, 30), (1000, 96)]
)
def test_a_triangle_has_the_gram_matrix_of_the_rows(m, n):
    matrix = np.random.default_rng(m).standard_normal((m, n)) * np.exp2(-np.arange(n))
    for factor in (triangle, plain(triangle)) if m * n < 5000 else (triangle,):
        R = np.full((n, n), np.nan)
        factor(matrix, R)
        assert np.array_equal(R, np.triu(R))
        sizes = np.linalg.norm(matrix, axis=0)
        # Householder's factors err in each column by a multiple of that column's size alone.
        assert np.all(np.abs(R.T @ R - matrix.T @ matrix) <= 10 * m * EPS * np.outer(sizes, sizes))


@pytest.mark.parametrize("size", [0.5, 2.0])
@pytest.mark.parametrize("rows", [40, 2000])
def test_a_column_that_is_reduced_already_is_not_cancelled(size, rows):
    # The head of a reflector is the sum of two numbers of one sign: their difference is 0 where only zeros follow.
    R = np.full((9, 9), np.nan)
    triangle(size * np.eye(rows, 9), R)
    assert np.array_equal(np.abs(R), size * np.eye(9))


@pytest.mark.parametrize(("m", "n"), [(40, 40), (500, 97), (300, 33), (700, 128), (600, 161)])
def test_panels_have_the_gram_matrix_of_the_rows(m, n):
    matrix = np.random.default_rng(m).standard_normal((m, n)) * np.exp2(-np.arange(n) / 4)
    R = triangle_by_panels(matrix)
    assert np.array_equal(R, np.triu(R))
    sizes = np.linalg.norm(matrix, axis=0)
    assert np.all(np.abs(R.T @ R - matrix.T @ matrix) <= 10 * m * EPS * np.outer(sizes, sizes))


@pytest.mark.parametrize(("parts", "n"), [(2, 97), (3, 128), (5, 70), (2, 33), (1, 64)])
def test_triangles_beside_each_other_have_the_gram_matrix_of_all_their_rows(parts, n):
    triangles = np.triu(np.random.default_rng(n).standard_normal((parts, n, n)))
    rows = triangles.swapaxes(0, 1).reshape(parts * n, n)
    R = triangle_by_panels(rows, rows_per_column=parts)
    assert np.array_equal(R, np.triu(R))
    assert np.allclose(R.T @ R, np.einsum("pij,pik->jk", triangles, triangles), rtol=0, atol=100 * n * EPS)
    # No row is read further down than columns have entries.
    below = np.vstack([rows, np.zeros((parts * n, n))])
    below[np.arange(2 * parts * n) >= parts * (-(-n // BAND) * BAND)] = np.nan
    assert np.array_equal(triangle_by_panels(below, rows_per_column=parts), R)


@pytest.mark.parametrize(("parts", "n"), [(5, 20), (9, 64), (3, 97), (6, 128), (14, 12)])
def test_a_matrix_in_parts_has_the_gram_matrix_of_all_its_rows(parts, n, monkeypatch):
    monkeypatch.setattr(tall, "PART_ENTRIES", 9 * n * n)
    matrix = np.random.default_rng(n).standard_normal((1, 9 * n * parts + 5, n))
    tasks = []
    factor = tall._triangle
    monkeypatch.setattr(tall, "_triangle", lambda rows, each: tasks.append((len(rows), each)) or factor(rows, each))
    (R,) = tall.triangles(matrix, 1)
    assert np.allclose(R.T @ R, matrix[0].T @ matrix[0], rtol=0, atol=10 * matrix.size * EPS)
    # As many parts for each of two threads, or four; and what they leave is factored with its zeros known.
    equal = parts if parts <= 4 else parts // 4 * 4
    assert [each for _, each in tasks[:equal]] == [None] * equal
    assert tasks[equal:][-1][1] is not None


@pytest.mark.parametrize(
    "shape",
    [
        (3, 300, 1),
        (2, 1000, 3),
        (1, 33333, 7),
        (2, 5000, 4),
        (1, 9000, 30),
        (1, 900, 120),
        (1, 2500, 120),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200, 0.0])
def test_values_of_tall_and_of_wide_matrices_are_lapacks(shape, scale):
    stack = scale * np.random.default_rng(0).standard_normal(shape)
    exact = lapack_svd_values(stack).values
    for given in (stack, stack.swapaxes(-1, -2)):
        values, norms, _ = tall.tall_svd_values(square_values, given, 2)
        # Not far from a thousandth of what is promised: 10 · max(m, n) · eps.
        assert np.all(np.abs(values - exact) <= 100 * EPS * exact[:, :1])
        assert np.allclose(norms, np.linalg.norm(stack / max(scale, 1e-300), axis=(1, 2)) * scale, rtol=1e-13)


@pytest.mark.parametrize("shape", [(140_000, 1), (33_333, 7), (9_000, 30)])
def test_equal_rows_are_not_all_rounded_alike(shape):
    row = np.random.default_rng(0).standard_normal(shape[1])
    largest = tall.tall_svd_values(square_values, np.tile(row, (1, shape[0], 1)), 2).values[0, 0]
    exact = np.sqrt(shape[0]) * np.linalg.norm(row)
    assert abs(largest - exact) <= 40 * EPS * exact


@pytest.mark.parametrize("n", [3, 30, 120, 400])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_are_nan_where_an_entry_is_not_finite(n, bad):
    stack = np.ones((2, 3000, n))
    stack[1, 2999, n - 1] = bad
    assert np.all(np.isnan(tall.tall_svd_values(square_values, stack, 1).norms))


def test_workers_and_neighbours_change_no_bit():
    stack = np.random.default_rng(0).standard_normal((3, 20_000, 12))
    whole = tall.triangles(stack, 3)
    assert np.array_equal(tall.triangles(stack, 1), whole)
    assert np.array_equal(tall.triangles(stack[1:2], 2)[0], whole[1])
