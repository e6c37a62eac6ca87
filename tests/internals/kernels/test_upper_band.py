"""The reduction of one large matrix to bidiagonal form in two stages, against LAPACK's values."""

import numpy as np
import pytest

from lowrank_core._linalg import two_stage_svd
from lowrank_core._linalg.kernels.band import DEPTH, multiply_rows, pack, update_and_multiply_columns
from lowrank_core._linalg.kernels.chasing import chase_bidiagonal
from lowrank_core._linalg.kernels.sizes import BAND, WIDE_APART
from lowrank_core._linalg.panels import factor_panel
from lowrank_core._linalg.threads import Team, blas_threads
from tests import bounds
from tests.internals.kernels.matrices import BANDS, KINDS, whole_numbers, with_values


@pytest.mark.parametrize("shape", [(1, 1), (40, 33), (64, 64), (70, 20), (330, 299), (129, 128)])
@pytest.mark.parametrize("kind", KINDS)
def test_two_stages_to_bidiagonal_form_keep_the_values(shape, kind):
    (matrix,) = with_values(1, *shape, KINDS[kind](min(shape)))
    exact = np.linalg.svd(matrix, compute_uv=False)
    for given in (matrix, matrix.T):
        values = two_stage_svd.two_stage_svd_values(given[np.newaxis], 2).values[0]
        assert np.all(np.abs(values - exact) <= max(shape) * 2.0**-52 * exact[0])


def test_an_upper_band_does_not_depend_on_workers():
    matrix = np.random.default_rng(0).standard_normal((400, 350))
    bands = []
    for workers in (1, 3):
        with blas_threads(1), Team(workers) as team:
            bands.append(two_stage_svd.upper_band(matrix, team))
    assert np.array_equal(*bands)
    # Three bands of zeros follow, which the kernel reads; it does not check where its arrays end.
    assert len(bands[0]) == (352 + 3 * BAND) * (3 * BAND + 1)


@pytest.mark.parametrize(("begin", "start", "stop"), [(0, 32, 96), (32, 64, 160), (96, 128, 160), (160, 0, 32)])
def test_a_pass_over_columns_subtracts_what_is_due_and_multiplies_exactly(begin, start, stop):
    rng, (rows, columns) = np.random.default_rng(begin), (224, 160)
    A, left, x = whole_numbers(rng, rows, columns), whole_numbers(rng, rows, DEPTH), whole_numbers(rng, rows, BAND)
    halves, right, y = whole_numbers(rng, 2, columns, BAND), np.zeros(columns * DEPTH), np.full((columns, BAND), np.nan)
    for i, half in enumerate(halves):
        pack(half.reshape(-1), 0, right, i * BAND)
    expected, chosen = A.copy(), slice(start, stop)
    if begin > 0:
        expected[begin:, chosen] += left[begin:] @ np.hstack(halves)[chosen].T
    update_and_multiply_columns(A, begin, start, stop, left.reshape(-1), right, x.reshape(-1), y.reshape(-1))
    assert np.array_equal(A, expected)
    assert np.array_equal(y[chosen], expected[begin:, chosen].T @ x[begin:])
    assert np.all(np.isnan(np.delete(y, chosen, axis=0)))


@pytest.mark.parametrize(("begin", "end", "start", "stop"), [(0, 160, 32, 96), (32, 128, 64, 224), (96, 128, 0, 32)])
def test_rows_are_multiplied_exactly(begin, end, start, stop):
    rng = np.random.default_rng(begin)
    A, x, y = whole_numbers(rng, 224, 192), whole_numbers(rng, 192, BAND), np.full((224, BAND), np.nan)
    multiply_rows(A, begin, end, start, stop, x.reshape(-1), y.reshape(-1))
    assert np.array_equal(y[start:stop], A[start:stop, begin:end] @ x[begin:end])
    assert np.all(np.isnan(np.delete(y, slice(start, stop), axis=0)))


@pytest.mark.parametrize("rows", [32, 64, 100, 333])
@pytest.mark.parametrize("rank", [0, 5, BAND])
def test_a_panel_is_an_orthogonal_factor_times_its_triangle(rows, rank):
    rng = np.random.default_rng(rows)
    panel = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, BAND))
    V = panel.copy()
    T, R = factor_panel(V)
    Q = np.eye(rows) - V @ T @ V.T
    assert np.linalg.norm(Q.T @ Q - np.eye(rows), 2) <= rows * bounds.EPS64
    assert np.linalg.norm(Q[:, :BAND] @ R - panel) <= rows * bounds.EPS64 * np.linalg.norm(panel)
    assert not np.tril(T, -1).any()
    assert not np.tril(R, -1).any()
    assert not np.triu(V, 1).any()


@pytest.mark.parametrize("kind", sorted(BANDS))
@pytest.mark.parametrize("size", [2, 33, 75])
def test_two_diagonals_have_the_singular_values_of_the_upper_band(kind, size):
    i, j = np.indices((size, size))
    drawn = np.random.default_rng(size).standard_normal((size, size)) * BANDS[kind](i, j - i)
    inside = (j >= i) & (j - i <= BAND)
    rows = np.zeros((size + 3 * BAND) * (WIDE_APART + 1))
    rows[(i * WIDE_APART + j)[inside]] = drawn[inside]
    exact = np.linalg.svd(np.where(inside, drawn, 0.0), compute_uv=False)
    diagonal, above = np.full((2, size), np.nan)
    chase_bidiagonal(rows, diagonal, above)
    assert above[-1] == 0
    result = np.linalg.svd(np.diag(np.sqrt(diagonal)) + np.diag(np.sqrt(above[:-1]), 1), compute_uv=False)
    assert np.all(np.abs(result - exact) <= 4 * size * bounds.EPS64 * exact[0])
