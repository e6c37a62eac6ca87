"""The reduction of one large matrix in two stages: each stage on its own, against LAPACK and exact figures."""

import numpy as np
import pytest

from lowrank_core import spectrum
from lowrank_core._linalg import thresholds, two_stage
from lowrank_core._linalg.kernels.band import DEPTH, TILE, pack, reduce_panel, update_and_multiply
from lowrank_core._linalg.kernels.chasing import apply_reflectors, chase
from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.threads import Team
from tests import bounds
from tests.internals.kernels.matrices import BANDS, whole_numbers

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


def drawn_band(kind, size):
    """The rows of a band, as `chase` takes them."""
    i, j = np.indices((size, size))
    drawn = np.random.default_rng(size).standard_normal((size, size)) * BANDS[kind](i, i - j)
    inside = (j <= i) & (i - j <= BAND)
    rows = np.zeros((size + 3 * BAND) * (2 * BAND + 1))
    rows[(i * 2 * BAND + j)[inside]] = drawn[inside]
    return rows


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
    monkeypatch.setattr(two_stage, "BLOCK_ENTRIES", 1000)
    X = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
    exact = (X @ X.T if of_rows else X.T @ X).astype(np.float64)
    with Team(2) as team:
        result = two_stage.lower_tiles(X, team, of_rows=of_rows)
    expected = tiled(exact)
    assert result.shape == expected.shape
    assert np.array_equal(result, expected)


def laid_out(V, W, begin):
    """The sides of −V Wᵀ − W Vᵀ from row ``begin`` on: rows of −(V, W), and (W, V) as `pack` lays it out."""
    left, right = np.zeros((len(V), DEPTH)), np.zeros(len(V) * DEPTH)
    left[begin:] = -np.hstack([V, W])[begin:]
    pack(W.reshape(-1), begin, right, 0)
    pack(V.reshape(-1), begin, right, BAND)
    return left.reshape(-1), right


@pytest.mark.parametrize(("begin", "end", "parts"), [(0, 32, 1), (32, 128, 2), (96, 160, 2), (160, 288, 4)])
def test_a_pass_subtracts_what_is_due_and_multiplies_exactly_and_each_part_takes_its_share(begin, end, parts):
    rng = np.random.default_rng(begin)
    A, V, W, x = whole_numbers(rng, end, end), *whole_numbers(rng, 3, end, BAND)
    A += A.T
    left, right = laid_out(V, W, begin)
    tiles, shares, changed = tiled(A), np.full((parts, end, BAND), np.nan), []
    for part in range(parts):
        before = tiles.copy()
        update_and_multiply(tiles.reshape(-1), begin, end, left, right, x.reshape(-1), shares.reshape(parts, -1), part)
        changed.append(np.count_nonzero(np.any(tiles != before, axis=(1, 2))))
    A[begin:, begin:] -= (V @ W.T + W @ V.T)[begin:, begin:]
    assert np.array_equal(tiles, tiled(A))
    assert np.array_equal(np.sum(shares[:, begin:], axis=0), A[begin:, begin:] @ x[begin:])
    assert max(changed) - min(changed) <= 1


# What a column of a panel may be like; each is as large as it is, so that errors are measured column by column.
COLUMNS = {
    "drawn": lambda rng, rows: rng.standard_normal((rows, BAND)),
    "graded": lambda rng, rows: rng.standard_normal((rows, BAND)) * np.exp2(-8.0 * np.arange(BAND)),
    "rising": lambda rng, rows: rng.standard_normal((rows, BAND)) * np.exp2(8.0 * np.arange(BAND) - 200),
    "reduced": lambda _, rows: np.where(np.arange(BAND) >= np.arange(rows)[:, None], 0.75, 0.0),
    "nearly": lambda rng, rows: np.eye(rows, BAND) * rng.choice([-0.5, 0.5], BAND) + 1e-9 * np.ones((rows, BAND)),
    "hollow": lambda rng, rows: rng.standard_normal((rows, BAND)) * (np.arange(BAND) < np.arange(rows)[:, None]),
    "zero": lambda _, rows: np.zeros((rows, BAND)),
}


def assert_panel(expected, begin, left, right, tiles):
    """See that a panel, (end, BAND), has its head in the band, and became reflectors and R below that."""
    end, below = len(expected), begin + BAND
    v, band = np.full((end, BAND), np.nan), np.full((end + 3 * BAND) * (2 * BAND + 1), np.nan)
    reduce_panel(tiles.reshape(-1), begin, end, left, right, v.reshape(-1), band)
    rows = np.lib.stride_tricks.as_strided(band, (end, end), (2 * BAND * 8, 8))[:, begin:below]
    assert np.array_equal(np.tril(rows[begin:below]), np.tril(expected[begin:below]))
    # Nothing else is written.
    assert np.count_nonzero(~np.isnan(band)) == BAND * (BAND + 1)
    reflectors, rest = v[below:], expected[below:]
    assert not np.triu(reflectors, 1).any()
    squared = np.sum(reflectors**2, axis=0)
    assert np.all(np.abs(squared[squared > 0] - 2) <= 8 * len(rest) * bounds.EPS64)
    product = np.zeros_like(rest)
    product[:BAND] = np.triu(rows[below : below + BAND])
    for k in range(BAND - 1, -1, -1):
        product -= np.outer(reflectors[:, k], reflectors[:, k] @ product)
    sizes = np.linalg.norm(rest, axis=0)
    assert np.all(np.linalg.norm(product - rest, axis=0) <= 8 * BAND * bounds.EPS64 * sizes)


@pytest.mark.parametrize("columns", sorted(COLUMNS))
@pytest.mark.parametrize(("begin", "end"), [(0, 64), (32, 160), (96, 192)])
def test_a_panel_is_the_product_of_its_reflectors_and_what_they_leave(columns, begin, end):
    rng, below = np.random.default_rng(end), begin + BAND
    A = np.zeros((end, end))
    A[begin:below, begin:below] = rng.standard_normal((BAND, BAND))
    A[below:, begin:below] = COLUMNS[columns](rng, end - below)
    assert_panel(A[:, begin:below], begin, np.zeros(end * DEPTH), np.zeros(end * DEPTH), tiled(A))


def test_a_panel_column_of_which_only_rounding_is_left_has_no_reflector():
    rng, end = np.random.default_rng(2), 96
    A = np.zeros((end, end))
    A[BAND:, 0], A[BAND:, 1] = 1.0, np.tile([1.0, -1.0], 32)
    # Three times the first, which is what its reflector takes off, and about 0.3 and 18 roundings more a row.
    A[BAND:, 2], A[BAND:, 3] = 3.0 + 2.0**-51 * rng.integers(-1, 2, 64), 3.0 + 2.0**-45 * rng.integers(-1, 2, 64)
    v, band_rows = np.zeros((end, BAND)), np.zeros((end + 3 * BAND) * (2 * BAND + 1))
    unused = np.zeros(end * DEPTH)
    reduce_panel(tiled(A).reshape(-1), 0, end, unused, unused, v.reshape(-1), band_rows)
    squares = np.sum(v[BAND:] ** 2, axis=0)
    assert squares[[0, 1, 3]] == pytest.approx([2.0, 2.0, 2.0])
    assert squares[2] < 1e-25


@pytest.mark.parametrize(("begin", "end"), [(0, 64), (32, 160), (96, 192)])
def test_a_panel_takes_off_what_is_due_exactly(begin, end):
    rng = np.random.default_rng(begin)
    A, V, W = whole_numbers(rng, end, end), *whole_numbers(rng, 2, end, BAND)
    left, right = laid_out(V, W, begin)
    expected = A - V @ W.T - W @ V.T
    assert_panel(expected[:, begin : begin + BAND], begin, left, right, tiled(A))


@pytest.mark.parametrize("begin", [0, 96, 128])
def test_the_last_panel_is_a_square_in_the_band(begin):
    rng, end = np.random.default_rng(begin), begin + BAND
    A = whole_numbers(rng, end, end)
    v, band = np.full((end, BAND), np.nan), np.full((end + 3 * BAND) * (2 * BAND + 1), np.nan)
    reduce_panel(tiled(A).reshape(-1), begin, end, np.zeros(end * DEPTH), np.zeros(end * DEPTH), v.reshape(-1), band)
    rows = np.lib.stride_tricks.as_strided(band, (end, end), (2 * BAND * 8, 8))
    assert np.array_equal(np.tril(rows[begin:, begin:]), np.tril(A[begin:, begin:]))
    assert np.count_nonzero(~np.isnan(band)) == BAND * (BAND + 1) // 2


@pytest.mark.parametrize("kind", sorted(BANDS))
@pytest.mark.parametrize("size", [2, 33, 75])
def test_three_diagonals_have_the_eigenvalues_of_the_band(kind, size):
    rows = drawn_band(kind, size)
    exact = np.linalg.eigvalsh(dense_band(rows, size))
    diagonal, squares = np.full((2, size), np.nan)
    chase(rows, diagonal, squares, np.empty(0))
    assert squares[-1] == 0
    beside = np.sqrt(squares[:-1])
    result = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    assert np.all(np.abs(result - exact) <= 4 * size * bounds.EPS64 * np.max(np.abs(exact)))


@pytest.mark.parametrize("kind", sorted(BANDS))
@pytest.mark.parametrize("size", [2, 33, 34, 75])
def test_three_diagonals_have_the_eigenvectors_of_the_band_but_for_its_reflectors(kind, size):
    rows = drawn_band(kind, size)
    band = dense_band(rows, size)
    counts = [-(-(size - 1 - column) // BAND) for column in range(size)]
    firsts = BAND * np.cumsum([0, *counts])[: size - 1]
    diagonal, squares, reflectors = np.empty(size), np.empty(size), np.full(BAND * sum(counts), np.nan)
    chase(rows, diagonal, squares, reflectors)
    beside = np.copysign(np.sqrt(squares[:-1]), -reflectors[firsts])
    T = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    Q = np.zeros((size, size))
    for start in range(0, size, BAND):
        chosen = np.eye(size)[:, start : start + BAND]
        vectors = np.zeros((size + BAND, BAND))
        vectors[:size, : chosen.shape[1]] = chosen
        apply_reflectors(reflectors, size, vectors.reshape(-1))
        assert not vectors[size:].any()
        Q[:, start : start + BAND] = vectors[:size, : size - start]
    rounding = 8 * size * bounds.EPS64
    assert np.max(np.abs(Q @ Q.T - np.eye(size))) <= rounding
    assert np.max(np.abs(Q @ T @ Q.T - band)) <= rounding * np.max(np.abs(np.linalg.eigvalsh(band)))


@kinds
@pytest.mark.parametrize("size", SIZES)
def test_a_band_is_similar_to_what_it_came_from_and_three_diagonals_to_the_band(kind, size):
    matrix = symmetric(kind, size)
    exact = np.linalg.eigvalsh(matrix)
    with Team(1) as team:
        rows = two_stage.band_form(tiled(matrix), size, team)
    # Three bands of zeros follow, which the kernel reads; it does not check where its arrays end.
    assert len(rows) == (-(-size // BAND) * BAND + 3 * BAND) * (2 * BAND + 1)
    allowed = 10 * size * bounds.EPS64 * exact[-1]
    assert np.all(np.abs(np.linalg.eigvalsh(dense_band(rows, size)) - exact) <= allowed)
    diagonal, squares = np.empty(size), np.empty(size)
    chase(rows, diagonal, squares, np.empty(0))
    assert squares[-1] == 0
    beside = np.sqrt(squares[:-1])
    assert np.all(
        np.abs(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)) - exact) <= allowed
    )


@kinds
@pytest.mark.parametrize("shape", [(200, 70), (70, 200)])
@pytest.mark.parametrize("power", [0, 60, -60])
def test_values_by_the_whole_reduction_are_lapacks(kind, shape, power):
    values = SPECTRA[kind](70)
    U, V = (np.linalg.qr(np.random.default_rng(n).standard_normal((n, 70)))[0] for n in shape)
    X = np.ldexp(((U * values) @ V.T).astype(np.float32), power)
    exact = np.linalg.svd(X.astype(np.float64), compute_uv=False)
    result, trace, exponent = two_stage.gram_eigenvalues(X, 1, of_rows=shape[0] < shape[1])
    assert np.ldexp(trace, 2 * exponent) == pytest.approx(np.sum(exact**2), rel=1e-13)
    assert np.all(np.abs(np.ldexp(np.sqrt(result[::-1]), exponent) - exact) <= bounds.EPS32 * exact[0])


@pytest.fixture
def two_stages(monkeypatch):
    monkeypatch.setattr(thresholds, "TWO_STAGES", 513)


@pytest.mark.usefixtures("two_stages")
@pytest.mark.parametrize("shape", [(700, 530), (513, 515)])
def test_the_bits_are_the_same_on_any_number_of_threads(shape):
    X = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    result = {spectrum(X, workers=workers).values.tobytes() for workers in (1, 2, 3, 5)}
    assert len(result) == 1


@pytest.mark.usefixtures("two_stages")
def test_a_large_zero_update_and_one_of_rank_one():
    assert not spectrum(np.zeros((520, 514), np.float32)).values.any()
    rng = np.random.default_rng(4)
    X = np.outer(rng.standard_normal(520), rng.standard_normal(600)).astype(np.float32)
    result = spectrum(X)
    assert result.values[0] == pytest.approx(np.linalg.norm(X.astype(np.float64)), rel=1e-7)
    assert np.all(result.values[1:] <= bounds.EPS32 * result.values[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (4, 7), (5, 5)])
def test_equal_rows_and_columns_whose_roundings_are_all_the_same(shape):
    # Of copies by Kronecker's product: σ(1 ⊗ X) is √(number of copies) · σ(X), the others are zero.
    few = np.random.default_rng(shape).integers(-3, 4, shape).astype(np.float32)
    few[0, 0] = 1.0
    copies = -(-1100 // shape[0]), -(-1100 // shape[1])
    exact = np.sqrt(copies[0] * copies[1]) * np.linalg.svd(few.astype(np.float64), compute_uv=False)
    result = spectrum(np.tile(few, copies), method="gram").values
    assert np.all(np.abs(result - np.pad(exact, (0, len(result) - len(exact)))) <= bounds.EPS32 * exact[0])
