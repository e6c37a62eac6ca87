"""Matrices too large for a core's own cache, reduced to a band by matrix products: the first of two stages.

That of a Gram matrix (Bischof, Lang and Sun, ACM Trans. Math. Softw. 26 (2000) 581), and of a matrix itself to an upper
band (Großer and Lang, Parallel Comput. 25 (1999) 969); `chasing` has the second stage. A Gram matrix is stored as the
square tiles of its lower triangle, row by row, to be read along memory and to stay in a core's cache meanwhile.
"""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.narrow import SUM_ROWS, TERMS, add_product
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, TILE_COLUMNS, TILE_ROWS, WIDTH
from lowrank_core._linalg.kernels.sizes import APART, BAND

__all__ = [
    "DEPTH",
    "TILE",
    "accumulate",
    "factor_panel",
    "multiply_rows",
    "pack",
    "reduce_panel",
    "update_and_multiply",
    "update_and_multiply_columns",
]

# Columns of both terms of A − V Wᵀ − W Vᵀ or A − V Yᵀ − X Wᵀ.
DEPTH = 2 * BAND

# Rows and columns of a tile: 128 KiB, which stay in a core's own cache.
TILE = 128

# Columns that `pack` interleaves, as the register tile of AVX-512 takes them.
PACKED = 16

# A column whose square is below this fraction of what reflectors have taken off it is rounding: 16 units of it.
ROUNDED = 2.0**-96


@kernel
def _tile_at(row: int, column: int) -> int:
    return (row * (row + 1) // 2 + column) * TILE * TILE


@kernel
def _add_product(A: Floats, at: int, apart: int, depth: int, left: Floats, i: int, right: Floats, j: int) -> None:
    """Add to PACKED columns of rows of A, ``apart``, a product of rows of ``left``, ``depth`` apart, and ``right``."""
    for column in range(0, PACKED, TILE_COLUMNS):
        tile = simd.load_rows(A, at + column, apart, TILE_ROWS, TILE_COLUMNS)
        for k in range(depth):
            row = simd.load(right, j * depth + k * PACKED + column, TILE_COLUMNS)
            tile = simd.fma(simd.load_column(left, i * depth + k, depth, TILE_ROWS), row, tile)
        simd.store_rows(A, at + column, apart, tile)


@kernel
def update_and_multiply(
    tiles: Floats, begin: int, end: int, left: Floats, right: Floats, x: Floats, y: Floats, part: int
) -> None:
    """Add left · right to every ``parts``-th tile of A[begin:end, begin:end], and fill y[part] with its part of A x.

    x is (end, BAND) and ``left`` (end, DEPTH), flattened, y (parts, end · BAND), and ``right`` as `pack` lays it out.
    """
    parts, product = y.shape[0], y[part]
    product[begin * BAND : end * BAND] = 0.0
    first, count = begin // TILE, 0
    for row in range(first, (end - 1) // TILE + 1):
        i0, i1 = max(row * TILE, begin), min((row + 1) * TILE, end)
        for column in range(first, row + 1):
            count += 1
            if count % parts != part:
                continue
            j0, j1 = max(column * TILE, begin), min((column + 1) * TILE, end)
            at = _tile_at(row, column) - row * TILE * TILE - column * TILE
            for i in range(i0, i1, TILE_ROWS):
                for j in range(j0, j1, PACKED):
                    _add_product(tiles, at + i * TILE + j, TILE, DEPTH, left, i, right, j)
            for i in range(i0, i1, SUM_ROWS):
                add_product(tiles, at + i * TILE + j0, 1, TILE, j1 - j0, x, j0 * BAND, product, i * BAND)
            if row > column:
                for j in range(j0, j1, SUM_ROWS):
                    add_product(tiles, at + i0 * TILE + j, TILE, 1, i1 - i0, x, i0 * BAND, product, j * BAND)


@kernel
def update_and_multiply_columns(
    A: Floats, begin: int, start: int, stop: int, left: Floats, right: Floats, x: Floats, y: Floats
) -> None:
    """Add left · right to some columns of A, from row ``begin`` on, and fill the same rows of y with Aᵀ x.

    Of all rows nothing is due yet. A is (rows, columns or more); flattened are ``left`` (rows, depth), x (rows, BAND)
    and y (columns, BAND), ``right`` as `pack` lays it out. Rows and columns are multiples of BAND.
    """
    rows, apart = A.shape
    depth = left.size // rows
    flat = A.reshape(rows * apart)
    y[start * BAND : stop * BAND] = 0.0
    for top in range(begin, rows, TERMS):
        bottom = min(top + TERMS, rows)
        for i in range(top if begin > 0 else bottom, bottom, TILE_ROWS):
            for j in range(start, stop, PACKED):
                _add_product(flat, i * apart + j, apart, depth, left, i, right, j)
        for j in range(start, stop, SUM_ROWS):
            add_product(flat, top * apart + j, apart, 1, bottom - top, x, top * BAND, y, j * BAND)


@kernel
def multiply_rows(A: Floats, begin: int, end: int, start: int, stop: int, x: Floats, y: Floats) -> None:
    """Fill some rows of y with A x, of columns ``begin`` … ``end`` of A; x and y, flattened, have BAND columns."""
    rows, apart = A.shape
    flat = A.reshape(rows * apart)
    y[start * BAND : stop * BAND] = 0.0
    for left in range(begin, end, TERMS):
        count = min(TERMS, end - left)
        for i in range(start, stop, SUM_ROWS):
            add_product(flat, i * apart + left, 1, apart, count, x, left * BAND, y, i * BAND)


@kernel
def _packed_at(i: int, k: int, depth: int) -> int:
    """Return where column i and row k of ``right`` are, of so many rows."""
    return i // PACKED * PACKED * depth + k * PACKED + i % PACKED


@kernel
def pack(x: Floats, begin: int, right: Floats, first: int) -> None:
    """Lay out rows ``begin`` … of x (end, BAND) as columns of ``right`` (depth, end), flattened, from ``first`` on."""
    end, depth = x.size // BAND, right.size * BAND // x.size
    for i in range(begin, end, WIDTH):
        for k in range(0, BAND, WIDTH):
            tile = simd.load_rows(x, i * BAND + k, BAND, WIDTH)
            simd.store_rows(right, _packed_at(i, first + k, depth), PACKED, simd.transpose(tile))


@kernel
def reduce_panel(tiles: Floats, begin: int, end: int, left: Floats, right: Floats, v: Floats, band: Floats) -> None:
    """Move the next BAND columns to the band, and reduce what is below them to reflectors v (end, BAND), flattened.

    Their squared norm is 2. What has not been added to the tiles yet is ``left · right``.
    """
    column = begin // TILE
    across = np.empty(DEPTH * BAND)
    for k in range(DEPTH):
        for j in range(BAND):
            across[k * BAND + j] = right[_packed_at(begin + j, k, DEPTH)]
    for i in range(begin, end):
        at = _tile_at(i // TILE, column) + i % TILE * TILE + begin % TILE
        simd.store(v, i * BAND, simd.load(tiles, at, BAND))
    for i in range(begin, end, SUM_ROWS):
        add_product(left, i * DEPTH, 1, DEPTH, DEPTH, across, 0, v, i * BAND)
    for i in range(begin, begin + BAND):
        for j in range(i - begin + 1):
            band[i * APART + begin + j] = v[i * BAND + j]
    below = begin + BAND
    if below == end:
        return
    heads = np.empty(BAND)
    _reflectors(v, below, end, heads)
    for i in range(BAND):
        for j in range(i, BAND):
            at = (below + i) * BAND + j
            band[(below + i) * APART + begin + j] = v[at]
            v[at] = heads[i] if i == j else 0.0


@kernel
def _reflectors(v: Floats, begin: int, end: int, heads: Floats) -> None:
    """Factor rows of v, of BAND columns: R on and above the diagonal, below it reflectors, whose ``heads`` are apart.

    One pass a column: while a reflector is applied, the products of what becomes the next one with all columns are
    summed. A column of which the reflectors before it leave no more than rounding has no reflector: of a matrix with
    equal rows all would point one way, and what they multiply would cancel at the price of many roundings.
    """
    dots, w = np.zeros(BAND), np.empty(BAND)
    _apply_and_sum(v, begin, end, 0, 0, 0.0, np.zeros(BAND), dots)
    for k in range(BAND):
        at = (begin + k) * BAND
        square, alpha, above = dots[k], v[at + k], 0.0
        for i in range(k):
            above += v[(begin + i) * BAND + k] * v[(begin + i) * BAND + k]
        norm = math.sqrt(square)
        added = -norm if alpha < 0.0 else norm
        significant = square > max(NEGLIGIBLE, ROUNDED * above)
        scale = 1.0 / math.sqrt(norm * abs(alpha + added)) if significant else 0.0
        head = scale * (alpha + added)
        w[: k + 1] = 0.0
        for j in range(k + 1, BAND):
            w[j] = scale * (dots[j] + added * v[at + j])
            v[at + j] -= head * w[j]
        v[at + k], heads[k] = -added, head
        _apply_and_sum(v, begin + k + 1, end, k, min(k + 1, BAND - 1), scale, w, dots)


@kernel
def _apply_and_sum(
    v: Floats, begin: int, end: int, column: int, following: int, scale: float, w: Floats, dots: Floats
) -> None:
    """Scale a column, subtract its entries times w from the rows, and sum the next column's products with all."""
    weights, total = simd.load(w, 0, BAND), simd.broadcast(0.0, BAND)
    for top in range(begin, end, TERMS):
        part = simd.broadcast(0.0, BAND)
        for at in range(top * BAND, min(top + TERMS, end) * BAND, BAND):
            entry = scale * v[at + column]
            row = simd.fma(-entry, weights, simd.load(v, at, BAND))
            simd.store(v, at, row)
            if scale != 0.0:
                v[at + column] = entry
            part = simd.fma(simd.load_entry(v, at + following), row, part)
        total = total + part
    simd.store(dots, 0, total)


@kernel
def accumulate(V: Floats, T: Floats) -> None:
    """Fill the upper half of T of I − V T Vᵀ, for reflectors V (rows, BAND) of squared norm 2.

    It is the inverse of triu(Vᵀ V) with ones on its diagonal (Puglisi, SIAM J. Sci. Stat. Comput. 13 (1992) 723).
    """
    rows, v, gram = V.shape[0], V.reshape(V.size), np.zeros(BAND * BAND)
    for top in range(0, rows, TERMS):
        for i in range(0, BAND, SUM_ROWS):
            add_product(v, top * BAND + i, BAND, 1, min(TERMS, rows - top), v, top * BAND, gram, i * BAND)
    for j in range(BAND):
        T[j, j] = 1.0
        for i in range(j):
            T[i, j] = 0.0
            for k in range(i, j):
                T[i, j] -= T[i, k] * gram[k * BAND + j]


@kernel
def factor_panel(panel: Floats, triangle: Floats) -> None:
    """Replace a panel (rows, BAND) by reflectors of squared norm 2, and fill the upper half of its triangle."""
    heads = np.empty(BAND)
    _reflectors(panel.reshape(panel.size), 0, panel.shape[0], heads)
    for i in range(BAND):
        for j in range(i, BAND):
            triangle[i, j] = panel[i, j]
            panel[i, j] = heads[i] if i == j else 0.0
