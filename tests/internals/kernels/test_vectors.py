"""Leading right singular vectors, against LAPACK's values and the best error of each rank."""

import numpy as np
import pytest

from lowrank_core import truncate
from lowrank_core._linalg.kernels import vectors
from lowrank_core.testing import assert_eckart_young
from tests.compiled import plain
from tests.internals.kernels.matrices import KINDS, with_values

EPS = 2.0**-52
SHAPES = [(1, 1), (2, 5), (9, 7), (8, 8), (16, 17), (40, 33), (33, 70)]


def leading(matrices, rank, kernel=vectors.leading_vectors):
    count, m, n = matrices.shape
    values, rows = np.empty((count, min(m, n))), np.empty((count, rank, n))
    assert kernel(matrices, values, rows) == 0
    return values, rows


def assert_factors(matrices, rank, values, rows):
    """The values, orthonormal rows, and the best error of the rank, to the rounding that accuracy.md promises."""
    exact = np.linalg.svd(matrices, compute_uv=False)
    bound = 10 * max(matrices.shape[1:]) * EPS
    assert np.all(np.diff(values) <= 0)
    assert np.all(np.abs(values - exact) <= bound * exact[:, :1])
    assert np.all(np.abs(rows @ rows.swapaxes(1, 2) - np.eye(rank)) <= bound)
    left = np.linalg.norm(matrices - matrices @ rows.swapaxes(1, 2) @ rows, axis=(1, 2))
    assert np.all(left <= np.linalg.norm(exact[:, rank:], axis=1) + bound * np.linalg.norm(exact, axis=1))


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_orthonormal_and_leave_the_least_error(m, n, kind):
    p = min(m, n)
    matrices = with_values(3, m, n, KINDS[kind](p)) / 4
    for rank in {0, 1, p // 2, p}:
        assert_factors(matrices, rank, *leading(matrices, rank))


@pytest.mark.parametrize(("m", "n"), [(6, 5), (5, 6)])
def test_the_python_of_the_kernel_computes_the_same(m, n):
    matrices = with_values(2, m, n, KINDS["deficient"](5)) / 4
    assert_factors(matrices, 5, *leading(matrices, 5, plain(vectors.leading_vectors)))


def of_diagonals(diagonal, above):
    return np.diag(diagonal) + np.diag(above[: len(diagonal) - 1], 1)


STEEP = np.exp2(-np.linspace(0, 60, 50))
BIDIAGONALS = {
    "falling": of_diagonals(STEEP, STEEP),
    "rising": of_diagonals(STEEP[::-1], STEEP[::-1]),
    "nilpotent": of_diagonals(np.zeros(50), np.ones(50)),
    "zeros on the diagonal": of_diagonals(np.arange(50.0) % 3 / 4, np.ones(50)),
    "a zero in the last place": of_diagonals(np.append(np.ones(49), 0.0), np.ones(50)),
    "a zero in the first place": of_diagonals(np.append(0.0, np.ones(49)), np.ones(50)),
    "one block of many": of_diagonals(np.ones(50), np.arange(50.0) % 5 / 5),
    "squares that underflow": of_diagonals(np.append(1.0, 1e-160 * np.ones(49)), 1e-170 * np.ones(50)),
}


@pytest.mark.parametrize("kind", BIDIAGONALS)
def test_a_bidiagonal_matrix_of_any_kind_is_diagonalised(kind):
    for matrix in (BIDIAGONALS[kind], BIDIAGONALS[kind].T):
        matrices = np.ascontiguousarray(matrix[np.newaxis])
        for rank in (3, 50):
            assert_factors(matrices, rank, *leading(matrices, rank))


def test_neither_the_rank_nor_the_stack_changes_a_bit():
    matrices = np.concatenate([with_values(2, 21, 19, kind(19)) for kind in KINDS.values()]) / 4
    for stack in (matrices, np.ascontiguousarray(matrices.swapaxes(1, 2))):
        values, rows = leading(stack, 19)
        for i in range(len(stack)):
            for rank in (0, 1, 17):
                values_alone, rows_alone = leading(stack[i : i + 1], rank)
                assert np.array_equal(values_alone[0], values[i])
                assert np.array_equal(rows_alone[0], rows[i, :rank])


def test_a_matrix_that_needs_too_many_rotations_is_left_at_nan(monkeypatch):
    monkeypatch.setattr(vectors, "MAX_ROTATIONS", 0)
    matrices = np.stack([with_values(1, 7, 6, KINDS["drawn"](6))[0], np.eye(7, 6)]) / 4
    values, rows = np.empty((2, 6)), np.empty((2, 2, 6))
    assert plain(vectors.leading_vectors)(matrices, values, rows) == 1
    assert np.all(np.isnan(values[0]))
    assert np.all(values[1] == 0.25)


@pytest.mark.parametrize("entry", [np.nan, np.inf])
def test_entries_that_are_not_finite_end_in_values_that_are_not(entry):
    matrices = with_values(1, 9, 9, KINDS["drawn"](9)) / 4
    matrices[0, 4, 4] = entry
    values, _ = leading(matrices, 9)
    assert not np.all(np.isfinite(values))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_lapack_decomposes_what_did_not_converge(monkeypatch, dtype):
    def without_convergence(matrices, values, rows):
        values[:], rows[:] = np.nan, np.nan
        return len(matrices)

    stack = (1e3 * with_values(3, 9, 12, KINDS["drawn"](9))).astype(dtype)
    expected = truncate(stack, 4)
    monkeypatch.setattr(vectors, "leading_vectors", without_convergence)
    result = truncate(stack, 4)
    assert_eckart_young(stack, result, 4)
    assert np.allclose(np.abs(result.A), np.abs(expected.A), rtol=0, atol=1e-12)
    assert truncate(stack, lambda s: 4 if np.all(np.isfinite(s.values)) else 0).rank == 4
