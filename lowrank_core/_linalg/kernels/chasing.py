"""A band reduced to three diagonals, or an upper band to two: the second of two stages.

Bischof, Lang and Sun, Proc. SHPCC 1994, doi 10.1109/SHPCC.1994.296622; Großer and Lang, Parallel Comput. 25 (1999) 969.
A band is stored as rows of APART + 1 numbers, shifted so that a block of it is a matrix with rows APART numbers apart,
and an upper band as rows of WIDE_APART + 1.
"""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, WIDTH
from lowrank_core._linalg.kernels.sizes import APART, BAND, COLUMNS, WIDE_APART

__all__ = ["apply_reflectors", "chase", "chase_bidiagonal"]


@kernel
def _reflect(x: Floats) -> float:
    """Replace x by a reflector of squared norm 2; return what it leaves of x in the first entry."""
    square = simd.inner(x, x, BAND)
    norm, alpha = math.sqrt(square), x[0]
    added = -norm if alpha < 0.0 else norm
    x[0] = alpha + added
    scale = 1.0 / math.sqrt(norm * abs(alpha + added)) if square > NEGLIGIBLE else 0.0
    for k in range(0, BAND, WIDTH):
        simd.store(x, k, scale * simd.load(x, k))
    return -added


@kernel
def _apply_to_diagonal(F: Floats, at: int, v: Floats, p: Floats, w: Floats, lane: Floats, parts: Floats) -> None:
    """Apply the reflector v from both sides to a block on the diagonal, whose lower triangle is in F."""
    lanes = simd.load(lane, 0)
    p[:] = 0.0
    for i in range(0, BAND, WIDTH):
        for h in range(WIDTH):
            row, v_i, total = at + (i + h) * APART, simd.load_entry(v, i + h), simd.broadcast(0.0)
            for k in range(0, i, WIDTH):
                a = simd.load(F, row + k)
                total = simd.fma(a, simd.load(v, k), total)
                simd.store(p, k, simd.fma(a, v_i, simd.load(p, k)))
            # What is right of the diagonal belongs to another row.
            a, here = simd.load(F, row + i), simd.load_entry(lane, h)
            simd.store(p, i, simd.fma(simd.select(lanes < here, a, 0.0), v_i, simd.load(p, i)))
            simd.store(parts, h * WIDTH, simd.fma(simd.select(lanes <= here, a, 0.0), simd.load(v, i), total))
        simd.store(p, i, simd.load(p, i) + simd.sum_pairs(simd.transpose(simd.load_rows(parts, 0, WIDTH, WIDTH))))
    half = -0.5 * simd.inner(p, v, BAND)
    for k in range(0, BAND, WIDTH):
        simd.store(w, k, simd.fma(half, simd.load(v, k), simd.load(p, k)))
    for i in range(BAND):
        row, last = at + i * APART, i // WIDTH * WIDTH
        v_i, w_i = -v[i], -w[i]
        for k in range(0, last, WIDTH):
            simd.store(
                F, row + k, simd.fma(v_i, simd.load(w, k), simd.fma(w_i, simd.load(v, k), simd.load(F, row + k)))
            )
        a = simd.load(F, row + last)
        changed = simd.fma(v_i, simd.load(w, last), simd.fma(w_i, simd.load(v, last), a))
        simd.store(F, row + last, simd.select(lanes <= simd.load_entry(lane, i - last), changed, a))


@kernel
def _apply_from_right_and_left(F: Floats, at: int, apart: int, v: Floats, u: Floats, y: Floats, z: Floats) -> None:
    """Apply v to a block from the right, then from the left the reflector of its first column, which goes to u."""
    for i in range(0, BAND, WIDTH):
        sums = simd.broadcast(0.0, WIDTH, WIDTH)
        for k in range(0, BAND, WIDTH):
            sums = simd.fma(simd.load_rows(F, at + i * apart + k, apart, WIDTH), simd.load(v, k), sums)
        simd.store(y, i, simd.sum_pairs(simd.transpose(sums)))
    for i in range(BAND):
        u[i] = F[at + i * apart] - y[i] * v[0]
    left = _reflect(u)
    both = -simd.inner(u, y, BAND)
    for k in range(0, BAND, WIDTH):
        even, odd = both * simd.load(v, k), simd.broadcast(0.0)
        for i in range(0, BAND, 2):
            even = simd.fma(simd.load_entry(u, i), simd.load(F, at + i * apart + k), even)
            odd = simd.fma(simd.load_entry(u, i + 1), simd.load(F, at + (i + 1) * apart + k), odd)
        simd.store(z, k, even + odd)
    for i in range(BAND):
        row = at + i * apart
        y_i, u_i = -y[i], -u[i]
        for k in range(0, BAND, WIDTH):
            simd.store(
                F, row + k, simd.fma(y_i, simd.load(v, k), simd.fma(u_i, simd.load(z, k), simd.load(F, row + k)))
            )
        F[row] = 0.0
    F[at] = left


@kernel
def chase(band: Floats, diagonal: Floats, squares: Floats, reflectors: Floats) -> None:
    """Reduce a band to three diagonals: one, and the squares of the others, of the same length and 0 at the end.

    A column is reduced to two entries; what that adds below the band is chased out of the next column's way. ``band``
    ends in 3·BAND rows of zeros. If ``reflectors`` has entries, the reflectors are stored there: ⌈(n − 1 − j)/BAND⌉ of
    column j, BAND numbers each. The first number of a column has the sign opposite to that of the entry beside the
    diagonal.
    """
    n, stored = diagonal.size, 0
    v, u, y, z = np.empty(BAND), np.empty(BAND), np.empty(BAND), np.empty(BAND)
    parts, lane = np.empty(WIDTH * WIDTH), np.arange(float(WIDTH))
    for column in range(n):
        diagonal[column] = band[column * APART + column]
        for i in range(BAND):
            v[i] = band[(column + 1 + i) * APART + column]
        off = _reflect(v)
        squares[column] = off * off
        for k in range(column + 1, n, BAND):
            if reflectors.size > 0:
                reflectors[stored : stored + BAND] = v
                stored += BAND
            _apply_to_diagonal(band, k * APART + k, v, y, z, lane, parts)
            if k + BAND < n:
                _apply_from_right_and_left(band, (k + BAND) * APART + k, APART, v, u, y, z)
                v, u = u, v


@kernel
def apply_reflectors(reflectors: Floats, n: int, vectors: Floats) -> None:
    """Compute the product of reflectors that `chase` stored and vectors (n + BAND, COLUMNS), flattened, in place."""
    at = reflectors.size
    for column in range(n - 2, -1, -1):
        for k in range(column + 1 + (n - 2 - column) // BAND * BAND, column, -BAND):
            at -= BAND
            product = simd.broadcast(0.0, COLUMNS)
            for i in range(BAND):
                row = simd.load(vectors, (k + i) * COLUMNS, COLUMNS)
                product = simd.fma(simd.load_entry(reflectors, at + i), row, product)
            for i in range(BAND):
                row = simd.load(vectors, (k + i) * COLUMNS, COLUMNS)
                row = simd.fma(-simd.load_entry(reflectors, at + i), product, row)
                simd.store(vectors, (k + i) * COLUMNS, row)


@kernel
def _apply_from_left_and_right(F: Floats, at: int, u: Floats, v: Floats, y: Floats, z: Floats) -> None:
    """Apply u to a block from the left, then from the right the reflector of its first row, which goes to v."""
    for k in range(0, BAND, WIDTH):
        even, odd = simd.broadcast(0.0), simd.broadcast(0.0)
        for i in range(0, BAND, 2):
            even = simd.fma(simd.load_entry(u, i), simd.load(F, at + i * WIDE_APART + k), even)
            odd = simd.fma(simd.load_entry(u, i + 1), simd.load(F, at + (i + 1) * WIDE_APART + k), odd)
        simd.store(z, k, even + odd)
        simd.store(v, k, simd.load(F, at + k) - u[0] * simd.load(z, k))
    right = _reflect(v)
    both = -simd.inner(z, v, BAND)
    for i in range(0, BAND, WIDTH):
        sums = simd.broadcast(0.0, WIDTH, WIDTH)
        for k in range(0, BAND, WIDTH):
            sums = simd.fma(simd.load_rows(F, at + i * WIDE_APART + k, WIDE_APART, WIDTH), simd.load(v, k), sums)
        simd.store(y, i, simd.fma(both, simd.load(u, i), simd.sum_pairs(simd.transpose(sums))))
    for i in range(BAND):
        row = at + i * WIDE_APART
        y_i, u_i = -y[i], -u[i]
        for k in range(0, BAND, WIDTH):
            simd.store(
                F, row + k, simd.fma(y_i, simd.load(v, k), simd.fma(u_i, simd.load(z, k), simd.load(F, row + k)))
            )
    F[at : at + BAND] = 0.0
    F[at] = right


@kernel
def chase_bidiagonal(band: Floats, diagonal: Floats, above: Floats) -> None:
    """Reduce an upper band to two diagonals, and fill in their squares; the last of those above is 0.

    A row is reduced to two entries; what that adds below the diagonal is chased out of the next row's way. The band is
    followed by 3·BAND rows of zeros.
    """
    n = diagonal.size
    v, u, y, z = np.empty(BAND), np.empty(BAND), np.empty(BAND), np.empty(BAND)
    for row in range(n):
        at = row * WIDE_APART + row
        diagonal[row] = band[at] * band[at]
        for i in range(BAND):
            v[i] = band[at + 1 + i]
        off = _reflect(v)
        above[row] = off * off
        for k in range(row + 1, n, BAND):
            _apply_from_right_and_left(band, k * WIDE_APART + k, WIDE_APART, v, u, y, z)
            if k + BAND < n:
                _apply_from_left_and_right(band, k * WIDE_APART + k + BAND, u, v, y, z)
