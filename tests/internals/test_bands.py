"""Leading eigenvalues and eigenvectors of bands, against LAPACK's of the same matrix."""

import numpy as np
import pytest

from lowrank_core._linalg import bands
from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.threads import Team
from tests.bounds import EPS64

SIZES = [bands.SMALLEST_SIDE, bands.SMALLEST_SIDE + 1, 9 * BAND, 301]


@pytest.fixture(params=[1, 2])
def team(request):
    with Team(request.param) as team:
        yield team


@pytest.fixture
def no_lapack(monkeypatch):
    def refuse(*_):
        raise AssertionError("LAPACK was asked")

    monkeypatch.setattr(bands.np.linalg, "eigvalsh", refuse)
    monkeypatch.setattr(bands.np.linalg, "eigh", refuse)


def random_band(size):
    """A factor with BAND diagonals below the main one, times its transpose: a band without a small eigenvalue."""
    i, j = np.indices((size, size))
    L = np.random.default_rng(size).standard_normal((size, size))
    L[(j > i) | (i - j > BAND // 2)] = 0.0
    return L @ L.T


def blocks(size):
    """The same block of BAND rows along the diagonal: each eigenvalue as often as there are blocks."""
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((BAND, BAND)))[0]
    return np.kron(np.eye(-(-size // BAND)), (Q * np.arange(1.0, BAND + 1)) @ Q.T)[:size, :size]


def diagonal(size):
    return np.diag(np.arange(size, 0.0, -1.0))


def noise_edge(size):
    """Tridiagonal, with eigenvalues that crowd at the upper end."""
    return 2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)


def rank_one(size):
    matrix = np.zeros((size, size))
    matrix[3:30, 3:30] = 1.0
    return matrix


def zero(size):
    return np.zeros((size, size))


KINDS = [random_band, blocks, diagonal, noise_edge, rank_one, zero]


def leading_eigenvalues(matrix, count, team):
    (values,) = bands.leading_eigenvalues([matrix], count, are_bands=True, team=team)
    return values


@pytest.mark.parametrize("power", [0, 200, -200])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", KINDS)
def test_eigenvalues_are_lapacks(make, size, power, team, no_lapack, request):
    matrix = np.ldexp(make(size), power)
    chased = {count: leading_eigenvalues(matrix, count, team) for count in (1, BAND, BAND + 1, size, 999)}
    request.getfixturevalue("monkeypatch").undo()
    exact = np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0.0)
    for count, values in chased.items():
        assert values.shape == (min(count, size),)
        assert np.all(values >= 0)
        assert np.all(np.abs(values - exact[:count]) <= size * EPS64 * exact[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, BAND - 1, BAND, BAND + 1, 70])
@pytest.mark.parametrize("make", KINDS)
def test_vectors_span_a_leading_space(make, count, size, team, no_lapack):
    matrix = make(size)
    values = leading_eigenvalues(matrix, count, team)
    vectors = bands.leading_eigenvectors(matrix, count, 0.0, team)
    assert vectors.shape == (size, count)
    assert np.max(np.abs(vectors.T @ vectors - np.eye(count))) <= size * EPS64
    assert np.max(np.abs(matrix @ vectors - vectors * values)) <= 4 * size * EPS64 * values[0]


def test_what_is_left_out_is_the_largest_column_beside_the_band(team):
    matrix = random_band(SIZES[0])
    assert bands.left_out(matrix, 0.0) == 0.0
    for i, entry in ((200, 3.0), (5, 3.5), (201, 4.0)):
        matrix[i, 100] = matrix[100, i] = entry
    norm = np.sqrt(3.0**2 + 3.5**2 + 4.0**2)
    assert bands.left_out(matrix, 6.2) == pytest.approx(norm, rel=1e-14)
    assert bands.left_out(matrix, 6.0) is None
    without = leading_eigenvalues(matrix, 5, team)
    matrix[100, [200, 5, 201]] = matrix[[200, 5, 201], 100] = 0.0
    assert np.array_equal(leading_eigenvalues(matrix, 5, team), without)


def test_several_matrices_have_the_values_that_each_has_alone(team):
    matrices = [random_band(SIZES[0]), diagonal(SIZES[0]), noise_edge(SIZES[0])]
    together = bands.leading_eigenvalues(matrices, 7, are_bands=True, team=team)
    for matrix, values in zip(matrices, together, strict=True):
        assert np.array_equal(values, leading_eigenvalues(matrix, 7, team))
    # Those that are no bands are LAPACK's.
    matrices[1] = np.ones((SIZES[0], SIZES[0]))
    together = bands.leading_eigenvalues(matrices, 7, are_bands=False, team=team)
    for matrix, values in zip(matrices, together, strict=True):
        assert np.array_equal(values, np.maximum(np.linalg.eigvalsh(matrix)[:-8:-1], 0.0))


@pytest.mark.parametrize("size", [5, bands.SMALLEST_SIDE - 1])
def test_small_matrices_are_no_bands(size, team):
    matrix = diagonal(size)
    assert bands.left_out(matrix, np.inf) is None
    assert np.allclose(np.abs(bands.leading_eigenvectors(matrix, 2, None, team)), np.eye(size)[:, :2], atol=1e-14)


def test_vectors_with_a_large_residual_are_computed_by_lapack(team, monkeypatch):
    matrix = noise_edge(SIZES[0])
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[:-6:-1].copy(), vectors[:, :-6:-1].copy()
    values[3] += 0.5
    monkeypatch.setattr(bands, "_of_band", lambda *_: (values, -vectors))
    # The residual of one is 0.5, and may be twice what is left out.
    for beside, kept in ((0.2499, False), (0.2501, True)):
        found = bands.leading_eigenvectors(matrix, 5, beside, team)
        assert np.array_equal(found, -vectors if kept else vectors)


def test_vectors_that_are_not_orthonormal_are_computed_by_lapack(team, monkeypatch):
    matrix = noise_edge(SIZES[0])
    values, vectors = np.linalg.eigh(matrix)
    monkeypatch.setattr(bands, "_of_band", lambda *_: (values[[-1, -1]], vectors[:, [-1, -1]]))
    found = bands.leading_eigenvectors(matrix, 2, 1.0, team)
    assert np.max(np.abs(found.T @ found - np.eye(2))) <= 1e-14


def test_no_thread_changes_a_bit():
    matrix = random_band(300)
    results = []
    for workers in (1, 2, 3):
        with Team(workers) as team:
            results.append((leading_eigenvalues(matrix, 70, team), bands.leading_eigenvectors(matrix, 70, 0.0, team)))
    for values, vectors in results[1:]:
        assert np.array_equal(values, results[0][0])
        assert np.array_equal(vectors, results[0][1])
