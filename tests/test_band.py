"""The reduction of one large matrix in two stages: each stage on its own, against LAPACK and exact figures."""

import numpy as np
import pytest

from lowrank_core import band, spectrum, thresholds
from lowrank_core.kernels.band import BAND, TILE, chase
from lowrank_core.threads import Team
from tests import bounds

# On either side of a vector, a band, a tile and two of each.
SIZES = [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 127, 128, 129, 200]

SPECTRA = {
    "flat": np.ones,
    "falling": lambda p: np.linspace(3.0, 0.5, p),
    "graded": lambda p: np.exp2(-np.linspace(0, 60, p)),
    "deficient": lambda p: np.where(np.arange(p) < (p + 2) // 3, 1.0, 0.0),
    "one": lambda p: np.where(np.arange(p) < 1, 1.0, 1e-9),
}
kinds = pytest.mark.parametrize("kind", sorted(SPECTRA))


def symmetric(kind, size):
    Q = np.linalg.qr(np.random.default_rng(size).standard_normal((size, size)))[0]
    return (Q * SPECTRA[kind](size)) @ Q.T


def tiled(matrix):
    """The tiles of a symmetric matrix, as `lower_tiles` makes them of a Gram matrix."""
    rows = -(-len(matrix) // TILE)
    whole = np.zeros((rows * TILE, rows * TILE))
    whole[: len(matrix), : len(matrix)] = matrix
    return np.array(
        [
            whole[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            for row in range(rows)
            for column in range(row + 1)
        ]
    )


def dense_band(rows, size):
    """The symmetric matrix that a band stands for."""
    matrix = np.zeros((size, size))
    for i in range(size):
        for j in range(max(0, i - BAND), i + 1):
            matrix[i, j] = matrix[j, i] = rows[i * 2 * BAND + j]
    return matrix


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (130, 40), (260, 7), (140, 129)])
@pytest.mark.parametrize("of_rows", [True, False])
def test_tiles_are_the_lower_triangle_of_the_gram_matrix_to_the_bit(shape, of_rows, monkeypatch):
    monkeypatch.setattr(thresholds, "BLOCK_ENTRIES", 1000)
    X = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
    exact = (X @ X.T if of_rows else X.T @ X).astype(np.float64)
    with Team(2) as team:
        found = band.lower_tiles(X, team, of_rows=of_rows)
    expected = tiled(exact)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@kinds
@pytest.mark.parametrize("size", SIZES)
def test_a_band_is_similar_to_what_it_came_from_and_three_diagonals_to_the_band(kind, size):
    matrix = symmetric(kind, size)
    exact = np.linalg.eigvalsh(matrix)
    with Team(1) as team:
        rows = band.band_of(tiled(matrix), size, team)
    room = 10 * size * bounds.EPS64 * exact[-1]
    assert np.all(np.abs(np.linalg.eigvalsh(dense_band(rows, size)) - exact) <= room)
    diagonal, squares = np.empty(size), np.empty(size)
    chase(rows, diagonal, squares)
    assert squares[-1] == 0
    beside = np.sqrt(squares[:-1])
    assert np.all(
        np.abs(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)) - exact) <= room
    )


@kinds
@pytest.mark.parametrize("shape", [(200, 70), (70, 200)])
@pytest.mark.parametrize("power", [0, 60, -60])
def test_values_by_the_whole_reduction_are_lapacks(kind, shape, power):
    values = SPECTRA[kind](70)
    U, V = (np.linalg.qr(np.random.default_rng(n).standard_normal((n, 70)))[0] for n in shape)
    X = np.ldexp(((U * values) @ V.T).astype(np.float32), power)
    exact = np.linalg.svd(X.astype(np.float64), compute_uv=False)
    found, trace, exponent = band.gram_eigenvalues(X, 1, of_rows=shape[0] < shape[1])
    assert trace == pytest.approx(np.sum(exact**2), rel=1e-13)
    assert np.all(np.abs(np.ldexp(np.sqrt(found[::-1]), exponent) - exact) <= bounds.EPS32 * exact[0])


@pytest.fixture
def two_stages(monkeypatch):
    monkeypatch.setattr(thresholds, "TWO_STAGES", 513)


@pytest.mark.usefixtures("two_stages")
@pytest.mark.parametrize("shape", [(700, 530), (513, 515)])
def test_the_bits_are_the_same_on_any_number_of_threads(shape):
    X = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    found = {spectrum(X, workers=workers).values.tobytes() for workers in (1, 2, 3, 5)}
    assert len(found) == 1


@pytest.mark.usefixtures("two_stages")
def test_a_large_zero_update_and_one_of_rank_one():
    assert not spectrum(np.zeros((520, 514), np.float32)).values.any()
    rng = np.random.default_rng(4)
    X = np.outer(rng.standard_normal(520), rng.standard_normal(600)).astype(np.float32)
    found = spectrum(X)
    assert found.values[0] == pytest.approx(np.linalg.norm(X.astype(np.float64)), rel=1e-7)
    assert np.all(found.values[1:] <= bounds.EPS32 * found.values[0])
