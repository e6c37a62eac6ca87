"""Eigenvalues of Gram matrices too large for a core's own cache: to a band by matrix products, then to three diagonals.

The reduction in two stages of Bischof, Lang and Sun (ACM Trans. Math. Softw. 26 (2000) 581). The matrix stands as the
square tiles of its lower triangle, those on the diagonal whole, one tile row after the other: a tile is read and
written along memory, and in a core's cache meanwhile. The band stands in one row of 2·BAND + 1 numbers for each of the
matrix's, shifted so that a block of it is a matrix with rows 2·BAND numbers apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast, broadcast_entry, fma, load, select, store, transpose

__all__ = ["BAND", "DEPTH", "TILE", "chase", "pack", "reduce_panel", "update_and_multiply"]

# Diagonals below the main one that the first stage leaves. A product with so many columns at once runs near a core's
# speed for matrix products; the second stage takes time in proportion to them.
BAND = 32

# Columns of V and W together, in A − V Wᵀ − W Vᵀ.
DEPTH = 2 * BAND

# Rows and columns of a tile: 128 KiB, which with what is multiplied stays in a core's own cache.
TILE = 128

# A column whose square is under this share of what reflectors have taken off it is rounding: 16 units of it.
ROUNDED = 2.0**-96

# Rows of a panel whose products are summed up by themselves.
STRETCH = 64

# Between rows of a block of the band.
APART = 2 * BAND

# Squares under this are dropped: a reflector from them would not be orthogonal.
NEGLIGIBLE = 1e-280


@kernel
def _tile_at(row: int, column: int) -> int:
    return (row * (row + 1) // 2 + column) * TILE * TILE


@kernel
def _add_product(A: Floats, at: int, left: Floats, i: int, right: Floats, j: int) -> None:
    """Add to 8 rows and 16 columns of a tile the product of as many rows of ``left`` and columns of ``right``."""
    r1, r2, r3, r4 = at + TILE, at + 2 * TILE, at + 3 * TILE, at + 4 * TILE
    r5, r6, r7 = at + 5 * TILE, at + 6 * TILE, at + 7 * TILE
    a0, b0, a1, b1 = load(A, at), load(A, at + WIDTH), load(A, r1), load(A, r1 + WIDTH)
    a2, b2, a3, b3 = load(A, r2), load(A, r2 + WIDTH), load(A, r3), load(A, r3 + WIDTH)
    a4, b4, a5, b5 = load(A, r4), load(A, r4 + WIDTH), load(A, r5), load(A, r5 + WIDTH)
    a6, b6, a7, b7 = load(A, r6), load(A, r6 + WIDTH), load(A, r7), load(A, r7 + WIDTH)
    for _ in range(DEPTH):
        x, y = load(right, j), load(right, j + WIDTH)
        s0, s1 = broadcast_entry(left, i), broadcast_entry(left, i + DEPTH)
        s2, s3 = broadcast_entry(left, i + 2 * DEPTH), broadcast_entry(left, i + 3 * DEPTH)
        a0, b0, a1, b1 = fma(s0, x, a0), fma(s0, y, b0), fma(s1, x, a1), fma(s1, y, b1)
        a2, b2, a3, b3 = fma(s2, x, a2), fma(s2, y, b2), fma(s3, x, a3), fma(s3, y, b3)
        s4, s5 = broadcast_entry(left, i + 4 * DEPTH), broadcast_entry(left, i + 5 * DEPTH)
        s6, s7 = broadcast_entry(left, i + 6 * DEPTH), broadcast_entry(left, i + 7 * DEPTH)
        a4, b4, a5, b5 = fma(s4, x, a4), fma(s4, y, b4), fma(s5, x, a5), fma(s5, y, b5)
        a6, b6, a7, b7 = fma(s6, x, a6), fma(s6, y, b6), fma(s7, x, a7), fma(s7, y, b7)
        i += 1
        j += 2 * WIDTH
    store(A, at, a0)
    store(A, at + WIDTH, b0)
    store(A, r1, a1)
    store(A, r1 + WIDTH, b1)
    store(A, r2, a2)
    store(A, r2 + WIDTH, b2)
    store(A, r3, a3)
    store(A, r3 + WIDTH, b3)
    store(A, r4, a4)
    store(A, r4 + WIDTH, b4)
    store(A, r5, a5)
    store(A, r5 + WIDTH, b5)
    store(A, r6, a6)
    store(A, r6 + WIDTH, b6)
    store(A, r7, a7)
    store(A, r7 + WIDTH, b7)


@kernel
def _add_rows(A: Floats, at: int, step: int, apart: int, count: int, x: Floats, j: int, y: Floats, i: int) -> None:
    """Add to four rows of y, of BAND columns, four rows of A times ``count`` rows of x.

    The rows of A are ``apart``, and the entries within them ``step``, so that its columns can be taken for rows.
    Summed up by themselves first: of equal entries each rounding is the same, and they would add up over all of a row.
    """
    i1, i2, i3 = i + BAND, i + 2 * BAND, i + 3 * BAND
    zero = broadcast(0.0)
    a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
    c0, c1, c2, c3, d0, d1, d2, d3 = zero, zero, zero, zero, zero, zero, zero, zero
    for _ in range(count):
        x0, x1, x2, x3 = load(x, j), load(x, j + 8), load(x, j + 16), load(x, j + 24)
        s = broadcast_entry(A, at)
        a0, a1, a2, a3 = fma(s, x0, a0), fma(s, x1, a1), fma(s, x2, a2), fma(s, x3, a3)
        s = broadcast_entry(A, at + apart)
        b0, b1, b2, b3 = fma(s, x0, b0), fma(s, x1, b1), fma(s, x2, b2), fma(s, x3, b3)
        s = broadcast_entry(A, at + 2 * apart)
        c0, c1, c2, c3 = fma(s, x0, c0), fma(s, x1, c1), fma(s, x2, c2), fma(s, x3, c3)
        s = broadcast_entry(A, at + 3 * apart)
        d0, d1, d2, d3 = fma(s, x0, d0), fma(s, x1, d1), fma(s, x2, d2), fma(s, x3, d3)
        at += step
        j += BAND
    store(y, i, load(y, i) + a0)
    store(y, i + 8, load(y, i + 8) + a1)
    store(y, i + 16, load(y, i + 16) + a2)
    store(y, i + 24, load(y, i + 24) + a3)
    store(y, i1, load(y, i1) + b0)
    store(y, i1 + 8, load(y, i1 + 8) + b1)
    store(y, i1 + 16, load(y, i1 + 16) + b2)
    store(y, i1 + 24, load(y, i1 + 24) + b3)
    store(y, i2, load(y, i2) + c0)
    store(y, i2 + 8, load(y, i2 + 8) + c1)
    store(y, i2 + 16, load(y, i2 + 16) + c2)
    store(y, i2 + 24, load(y, i2 + 24) + c3)
    store(y, i3, load(y, i3) + d0)
    store(y, i3 + 8, load(y, i3 + 8) + d1)
    store(y, i3 + 16, load(y, i3 + 16) + d2)
    store(y, i3 + 24, load(y, i3 + 24) + d3)


@kernel
def update_and_multiply(
    tiles: Floats, begin: int, end: int, left: Floats, right: Floats, x: Floats, y: Floats, part: int
) -> None:
    """Add left · right to every ``parts``-th tile of A[begin:end, begin:end], and give y[part] its share of A x.

    x is (end, BAND) flattened, y is (parts, end · BAND), ``left`` (end, DEPTH) flattened and ``right`` as `pack` lays
    it out; all are taken from row ``begin`` on, a multiple of BAND as is ``end``.
    """
    parts, share = y.shape[0], y[part]
    share[begin * BAND : end * BAND] = 0.0
    first, count = begin // TILE, 0
    for row in range(first, (end - 1) // TILE + 1):
        i0, i1 = max(row * TILE, begin), min((row + 1) * TILE, end)
        for column in range(first, row + 1):
            count += 1
            if count % parts != part:
                continue
            j0, j1 = max(column * TILE, begin), min((column + 1) * TILE, end)
            at = _tile_at(row, column) - row * TILE * TILE - column * TILE
            for i in range(i0, i1, WIDTH):
                for j in range(j0, j1, 2 * WIDTH):
                    _add_product(tiles, at + i * TILE + j, left, i * DEPTH, right, j * DEPTH)
            for i in range(i0, i1, 4):
                _add_rows(tiles, at + i * TILE + j0, 1, TILE, j1 - j0, x, j0 * BAND, share, i * BAND)
            if row > column:
                for j in range(j0, j1, 4):
                    _add_rows(tiles, at + i0 * TILE + j, TILE, 1, i1 - i0, x, i0 * BAND, share, j * BAND)


@kernel
def pack(x: Floats, begin: int, right: Floats, depth: int) -> None:
    """Lay out rows ``begin`` … of x (end, BAND), flattened, as columns of ``right`` from ``depth`` on, 16 together."""
    for i in range(begin, x.size // BAND, WIDTH):
        for k in range(0, BAND, WIDTH):
            at = i * BAND + k
            to = i // (2 * WIDTH) * 2 * WIDTH * DEPTH + i % (2 * WIDTH) + (depth + k) * 2 * WIDTH
            a, b, c, d, e, f, g, h = transpose(
                load(x, at),
                load(x, at + BAND),
                load(x, at + 2 * BAND),
                load(x, at + 3 * BAND),
                load(x, at + 4 * BAND),
                load(x, at + 5 * BAND),
                load(x, at + 6 * BAND),
                load(x, at + 7 * BAND),
            )
            store(right, to, a)
            store(right, to + 2 * WIDTH, b)
            store(right, to + 4 * WIDTH, c)
            store(right, to + 6 * WIDTH, d)
            store(right, to + 8 * WIDTH, e)
            store(right, to + 10 * WIDTH, f)
            store(right, to + 12 * WIDTH, g)
            store(right, to + 14 * WIDTH, h)


@kernel
def reduce_panel(tiles: Floats, begin: int, end: int, left: Floats, right: Floats, v: Floats, band: Floats) -> None:
    """Take the next BAND columns into the band, and reduce what is below them to reflectors v, of squared norm 2.

    v (end, BAND), flattened, is filled from row begin + BAND on, and used from ``begin`` on. ``left · right`` is what
    has not been subtracted from the tiles yet.
    """
    column = begin // TILE
    across = np.empty(DEPTH * BAND)
    for k in range(DEPTH):
        for j in range(BAND):
            i = begin + j
            across[k * BAND + j] = right[i // (2 * WIDTH) * 2 * WIDTH * DEPTH + k * 2 * WIDTH + i % (2 * WIDTH)]
    for i in range(begin, end):
        at = _tile_at(i // TILE, column) + i % TILE * TILE + begin % TILE
        for k in range(0, BAND, WIDTH):
            store(v, i * BAND + k, load(tiles, at + k))
    for i in range(begin, end, 4):
        _add_rows(left, i * DEPTH, 1, DEPTH, DEPTH, across, 0, v, i * BAND)
    for i in range(BAND):
        for j in range(i + 1):
            band[(begin + i) * APART + begin + j] = v[(begin + i) * BAND + j]
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
    """Factor rows begin … end of v, of BAND columns: R on and above the diagonal, reflectors below it.

    Of those, of squared norm 2, the first entries go to ``heads``. One pass a column: while a reflector is applied, the
    products of what becomes the next one with all columns are summed. A column of which the reflectors before it leave
    no more than rounding has none of its own: of a matrix with equal rows all of them would point one way, and what
    each multiplies cancel among them at the price of many roundings.
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
    """Scale a column, subtract from each row its entry there times w, and sum up the next column times all.

    The sum of a stretch of rows after the other, as of `_add_rows`.
    """
    w0, w1, w2, w3 = load(w, 0), load(w, 8), load(w, 16), load(w, 24)
    zero = broadcast(0.0)
    t0, t1, t2, t3 = zero, zero, zero, zero
    for top in range(begin, end, STRETCH):
        s0, s1, s2, s3 = zero, zero, zero, zero
        for at in range(top * BAND, min(top + STRETCH, end) * BAND, BAND):
            entry = scale * v[at + column]
            minus = broadcast(-entry)
            a0, a1 = fma(minus, w0, load(v, at)), fma(minus, w1, load(v, at + 8))
            a2, a3 = fma(minus, w2, load(v, at + 16)), fma(minus, w3, load(v, at + 24))
            store(v, at, a0)
            store(v, at + 8, a1)
            store(v, at + 16, a2)
            store(v, at + 24, a3)
            if scale != 0.0:
                v[at + column] = entry
            x = broadcast_entry(v, at + following)
            s0, s1, s2, s3 = fma(x, a0, s0), fma(x, a1, s1), fma(x, a2, s2), fma(x, a3, s3)
        t0, t1, t2, t3 = t0 + s0, t1 + s1, t2 + s2, t3 + s3
    store(dots, 0, t0)
    store(dots, 8, t1)
    store(dots, 16, t2)
    store(dots, 24, t3)


@kernel
def _sums_of_rows(parts: Floats) -> Any:
    """Sum each of eight vectors, one a lane."""
    a, b, c, d, e, f, g, h = transpose(
        load(parts, 0),
        load(parts, WIDTH),
        load(parts, 2 * WIDTH),
        load(parts, 3 * WIDTH),
        load(parts, 4 * WIDTH),
        load(parts, 5 * WIDTH),
        load(parts, 6 * WIDTH),
        load(parts, 7 * WIDTH),
    )
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@kernel
def _inner(x: Floats, y: Floats, parts: Floats) -> Any:
    total = broadcast(0.0)
    for k in range(0, BAND, WIDTH):
        total = fma(load(x, k), load(y, k), total)
    store(parts, 0, total)
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]))


@kernel
def _reflector(x: Floats, parts: Floats) -> float:
    """Turn x into a reflector of squared norm 2; give what it leaves of x in the first entry."""
    square = _inner(x, x, parts)
    norm, alpha = math.sqrt(square), x[0]
    added = -norm if alpha < 0.0 else norm
    x[0] = alpha + added
    scale = broadcast(1.0 / math.sqrt(norm * abs(alpha + added)) if square > NEGLIGIBLE else 0.0)
    for k in range(0, BAND, WIDTH):
        store(x, k, scale * load(x, k))
    return -added


@kernel
def _from_both_sides(F: Floats, at: int, v: Floats, p: Floats, w: Floats, lane: Floats, parts: Floats) -> None:
    """Apply the reflector v to a block on the diagonal, of which the lower triangle stands in F."""
    zero, lanes = broadcast(0.0), load(lane, 0)
    for k in range(0, BAND, WIDTH):
        store(p, k, zero)
    for i in range(0, BAND, WIDTH):
        for h in range(WIDTH):
            row, v_i, total = at + (i + h) * APART, broadcast_entry(v, i + h), zero
            for k in range(0, i, WIDTH):
                a = load(F, row + k)
                total = fma(a, load(v, k), total)
                store(p, k, fma(a, v_i, load(p, k)))
            # What stands right of the diagonal is another row's.
            a, here = load(F, row + i), broadcast_entry(lane, h)
            store(p, i, fma(select(lanes < here, a, zero), v_i, load(p, i)))
            store(parts, h * WIDTH, fma(select(lanes <= here, a, zero), load(v, i), total))
        store(p, i, load(p, i) + _sums_of_rows(parts))
    half = broadcast(-0.5 * _inner(p, v, parts))
    for k in range(0, BAND, WIDTH):
        store(w, k, fma(half, load(v, k), load(p, k)))
    for i in range(BAND):
        row, last = at + i * APART, i // WIDTH * WIDTH
        v_i, w_i = broadcast(-v[i]), broadcast(-w[i])
        for k in range(0, last, WIDTH):
            store(F, row + k, fma(v_i, load(w, k), fma(w_i, load(v, k), load(F, row + k))))
        a = load(F, row + last)
        changed = fma(v_i, load(w, last), fma(w_i, load(v, last), a))
        store(F, row + last, select(lanes <= broadcast_entry(lane, i - last), changed, a))


@kernel
def _below(F: Floats, at: int, v: Floats, u: Floats, y: Floats, z: Floats, parts: Floats) -> None:
    """Apply v to a block from the right, then from the left the reflector of its first column, which goes to u."""
    zero = broadcast(0.0)
    for i in range(0, BAND, WIDTH):
        for h in range(0, WIDTH, 4):
            r0 = at + (i + h) * APART
            r1, r2, r3 = r0 + APART, r0 + 2 * APART, r0 + 3 * APART
            s0, s1, s2, s3 = zero, zero, zero, zero
            for k in range(0, BAND, WIDTH):
                v_k = load(v, k)
                s0, s1 = fma(load(F, r0 + k), v_k, s0), fma(load(F, r1 + k), v_k, s1)
                s2, s3 = fma(load(F, r2 + k), v_k, s2), fma(load(F, r3 + k), v_k, s3)
            store(parts, h * WIDTH, s0)
            store(parts, (h + 1) * WIDTH, s1)
            store(parts, (h + 2) * WIDTH, s2)
            store(parts, (h + 3) * WIDTH, s3)
        store(y, i, _sums_of_rows(parts))
    for i in range(BAND):
        u[i] = F[at + i * APART] - y[i] * v[0]
    left = _reflector(u, parts)
    both = broadcast(-_inner(u, y, parts))
    for k in range(0, BAND, WIDTH):
        even, odd = both * load(v, k), zero
        for i in range(0, BAND, 2):
            even = fma(broadcast_entry(u, i), load(F, at + i * APART + k), even)
            odd = fma(broadcast_entry(u, i + 1), load(F, at + (i + 1) * APART + k), odd)
        store(z, k, even + odd)
    for i in range(0, BAND, 2):
        r0, r1 = at + i * APART, at + (i + 1) * APART
        y0, y1, u0, u1 = broadcast(-y[i]), broadcast(-y[i + 1]), broadcast(-u[i]), broadcast(-u[i + 1])
        for k in range(0, BAND, WIDTH):
            v_k, z_k = load(v, k), load(z, k)
            store(F, r0 + k, fma(y0, v_k, fma(u0, z_k, load(F, r0 + k))))
            store(F, r1 + k, fma(y1, v_k, fma(u1, z_k, load(F, r1 + k))))
        F[r0], F[r1] = 0.0, 0.0
    F[at] = left


@kernel
def chase(band: Floats, diagonal: Floats, squares: Floats) -> None:
    """Reduce a band to three diagonals: one, and the squares of the others, of the same length and 0 at the end.

    A column is reduced to two entries; what that adds below the band is chased down and out of it, so far that the next
    column finds room (Bischof, Lang and Sun, "Parallel tridiagonalization through two-step band reduction", Proc.
    SHPCC 1994, doi 10.1109/SHPCC.1994.296622). Beyond the last row of the matrix ``band`` has 3·BAND more, of zeros.
    """
    n = diagonal.size
    v, u, y, z = np.empty(BAND), np.empty(BAND), np.empty(BAND), np.empty(BAND)
    parts, lane = np.empty(WIDTH * WIDTH), np.empty(WIDTH)
    for i in range(WIDTH):
        lane[i] = i
    squares[n - 1] = 0.0
    for column in range(n):  # pragma: no branch - the last column returns
        diagonal[column] = band[column * APART + column]
        if column == n - 1:
            return
        for i in range(BAND):
            v[i] = band[(column + 1 + i) * APART + column]
        off = _reflector(v, parts)
        squares[column] = off * off
        for k in range(column + 1, n, BAND):
            _from_both_sides(band, k * APART + k, v, y, z, lane, parts)
            if k + BAND < n:
                _below(band, (k + BAND) * APART + k, v, u, y, z, parts)
                v, u = u, v
