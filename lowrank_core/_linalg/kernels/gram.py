"""Eigenvalues of Gram matrices too large for a matrix a lane: each alone to three diagonals, eight at once from there.

Householder tridiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §8.3.1), from the last row upwards
so that rows are read along memory, in one pass for each reflector: the last one is applied while the next one's product
is formed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.dqds import END, STATE, descending_sqrt, dqds
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast, fma, load, store, transpose

__all__ = ["tridiagonal_values", "tridiagonals"]

# What keeps the factors of a deficient Gram matrix positive is added to its diagonal, as a share of the largest entry,
# and taken off its eigenvalues again.
LIFT = 2.0**-46

# Eigenvalues of a Gram matrix are known to an ulp of the largest, no better.
BLUR = 2.0**-4

# Squares under this, where the largest entry is near 1, are dropped. A reflector is scaled by about one over its
# square, which is squared in turn, and under 1e-154 would be infinite. What is dropped moves no eigenvalue by
# more than 1e-75.
NEGLIGIBLE = 1e-150


@kernel
def _four_rows(
    A: Floats, row: int, size: int, stop: int, at: int, v: Floats, w: Floats, x: Floats, p: Floats, sums: Floats
) -> None:
    """Apply the last reflector to four rows up to a column, and form the next one's product with that part of them.

    It is added to p for the columns; for the rows, a vector of partial sums each goes to ``sums``.
    """
    r0, r1, r2, r3 = row * size, (row + 1) * size, (row + 2) * size, (row + 3) * size
    v0, v1, v2, v3 = broadcast(-v[row]), broadcast(-v[row + 1]), broadcast(-v[row + 2]), broadcast(-v[row + 3])
    w0, w1, w2, w3 = broadcast(-w[row]), broadcast(-w[row + 1]), broadcast(-w[row + 2]), broadcast(-w[row + 3])
    x0, x1, x2, x3 = broadcast(x[row]), broadcast(x[row + 1]), broadcast(x[row + 2]), broadcast(x[row + 3])
    s0, s1, s2, s3 = broadcast(0.0), broadcast(0.0), broadcast(0.0), broadcast(0.0)
    for k in range(0, stop, WIDTH):
        v_k, w_k, x_k = load(v, k), load(w, k), load(x, k)
        a0 = fma(v0, w_k, fma(w0, v_k, load(A, r0 + k)))
        a1 = fma(v1, w_k, fma(w1, v_k, load(A, r1 + k)))
        a2 = fma(v2, w_k, fma(w2, v_k, load(A, r2 + k)))
        a3 = fma(v3, w_k, fma(w3, v_k, load(A, r3 + k)))
        store(A, r0 + k, a0)
        store(A, r1 + k, a1)
        store(A, r2 + k, a2)
        store(A, r3 + k, a3)
        s0, s1, s2, s3 = fma(a0, x_k, s0), fma(a1, x_k, s1), fma(a2, x_k, s2), fma(a3, x_k, s3)
        store(p, k, fma(a3, x3, fma(a2, x2, fma(a1, x1, fma(a0, x0, load(p, k))))))
    store(sums, at, s0)
    store(sums, at + WIDTH, s1)
    store(sums, at + 2 * WIDTH, s2)
    store(sums, at + 3 * WIDTH, s3)


@kernel
def _square_block(A: Floats, first: int, size: int, v: Floats, w: Floats, x: Floats, p: Floats, sums: Floats) -> None:
    """Apply the last reflector to a block on the diagonal; add its part, and the rows' sums, to the next product."""
    w_k, v_k, product = load(w, first), load(v, first), load(p, first)
    for i in range(first, first + WIDTH):
        at = i * size + first
        a = fma(broadcast(-v[i]), w_k, fma(broadcast(-w[i]), v_k, load(A, at)))
        store(A, at, a)
        # The block is kept whole, so its columns are its rows.
        product = fma(a, broadcast(x[i]), product)
    for part in transpose(
        load(sums, 0),
        load(sums, WIDTH),
        load(sums, 2 * WIDTH),
        load(sums, 3 * WIDTH),
        load(sums, 4 * WIDTH),
        load(sums, 5 * WIDTH),
        load(sums, 6 * WIDTH),
        load(sums, 7 * WIDTH),
    ):
        product = product + part
    store(p, first, product)


@kernel
def _inner(x: Floats, y: Floats, stop: int) -> Any:
    """Sum of products of the first entries, of which those beyond the last wanted one are zero."""
    total = broadcast(0.0)
    for k in range(0, stop, WIDTH):
        total = fma(load(x, k), load(y, k), total)
    parts = np.empty(WIDTH)
    store(parts, 0, total)
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]))


@kernel
def _tridiagonalise(
    A: Floats, n: int, size: int, v: Floats, w: Floats, x: Floats, p: Floats, sums: Floats, d: Floats, b: Floats
) -> None:
    """Reduce the lower triangle of A, shape (size, size) flattened and zero beyond n, to d and the squares b beside it.

    b[i] stands between d[i] and d[i + 1].
    """
    v[:] = 0.0
    w[:] = 0.0
    for i in range(n - 1, -1, -1):  # pragma: no branch - row 0 returns
        padded = (i // WIDTH + 1) * WIDTH
        minus_v, minus_w = broadcast(-v[i]), broadcast(-w[i])
        for k in range(0, padded, WIDTH):
            row = fma(minus_v, load(w, k), fma(minus_w, load(v, k), load(A, i * size + k)))
            store(x, k, row)
        d[i] = x[i]
        if i == 0:
            return
        x[i:padded] = 0.0
        square = _inner(x, x, padded)
        b[i - 1] = square
        norm, alpha = math.sqrt(square), x[i - 1]
        head = alpha - norm if alpha < 0.0 else alpha + norm
        x[i - 1] = head
        scale = 1.0 / (norm * abs(head)) if square > NEGLIGIBLE else 0.0
        v[i] = w[i] = 0.0
        blocks = ((i - 1) // WIDTH + 1) * WIDTH
        p[:blocks] = 0.0
        for first in range(0, blocks, WIDTH):
            _four_rows(A, first, size, first, 0, v, w, x, p, sums)
            _four_rows(A, first + 4, size, first, 4 * WIDTH, v, w, x, p, sums)
            _square_block(A, first, size, v, w, x, p, sums)
        p[i:blocks] = 0.0
        half = 0.5 * scale * scale * _inner(p, x, blocks)
        scales, halves = broadcast(scale), broadcast(-half)
        for k in range(0, blocks, WIDTH):
            x_k = load(x, k)
            store(v, k, x_k)
            store(w, k, fma(halves, x_k, scales * load(p, k)))


@kernel
def _factored(lane: int, n: int, d: Floats, b: Floats, q: Floats, e: Floats) -> float:
    """Factor T + lift·I, of diagonal d and squares b beside it, into a lane; give the lift, or −1 if it does not do."""
    lift = 0.0
    for i in range(n):
        lift = max(lift, d[i])
    lift *= LIFT
    above = 0.0
    for i in range(n):
        pivot = d[i] + lift - above
        if not 0.0 < pivot < math.inf and lift > 0.0:
            return -1.0
        above = b[i] / pivot if i + 1 < n and b[i] > 0.0 else 0.0
        q[i * WIDTH + lane], e[i * WIDTH + lane] = pivot, above
    return lift


@kernel
def _power_of_two(exponent: int) -> float:
    return math.ldexp(1.0, exponent)


@kernel
def tridiagonals(grams: Floats, diagonals: Floats, squares: Floats, exponents: Integers) -> None:
    """Reduce Gram matrices (batch, n, n) to three diagonals: one, and the squares of the others, each (batch, n).

    Over 4^exponents, so that what is squared on the way stays in range.
    """
    batch, n, _ = grams.shape
    size = ((n - 1) // WIDTH + 1) * WIDTH
    A = np.zeros(size * size)
    v, w, x, p = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size)
    sums = np.empty(WIDTH * WIDTH)
    for matrix in range(batch):
        largest = 0.0
        for i in range(n):
            largest = max(largest, grams[matrix, i, i])
        half = math.frexp(largest)[1] // 2
        exponents[matrix] = half
        unit = _power_of_two(-2 * half)
        for i in range(n):
            # The lower triangle, with whole blocks on the diagonal.
            for k in range(min(n, (i // WIDTH + 1) * WIDTH)):
                A[i * size + k] = grams[matrix, i, k] * unit
        squares[matrix, n - 1] = 0.0
        _tridiagonalise(A, n, size, v, w, x, p, sums, diagonals[matrix], squares[matrix])


@kernel
def tridiagonal_values(diagonals: Floats, squares: Floats, values: Floats) -> int:
    """Square roots of the eigenvalues of tridiagonal matrices, as above, descending, into (batch, n).

    NaN for a matrix that did not converge. Gives the number of such.
    """
    batch, n = diagonals.shape
    size = n * WIDTH
    # Steps look at a row of q beyond the last.
    q, e = np.zeros(size + WIDTH), np.zeros(size)
    q_before, e_before, left = np.empty(size), np.empty(size), np.empty(size)
    state, lifts = np.empty(STATE), np.empty(WIDTH)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        several = min(WIDTH, batch - first)
        # Lanes beyond hold zeros, or what the last eight matrices left: they change nobody else's bits.
        for lane in range(several):
            lifts[lane] = _factored(lane, n, diagonals[first + lane], squares[first + lane], q, e)
        dqds(n, q, e, q_before, e_before, left, state, BLUR)
        for lane in range(several):
            if state[END + lane] >= 0.0 or lifts[lane] < 0.0:
                values[first + lane] = math.nan
                unfinished += 1
                continue
            for i in range(n):
                q[i * WIDTH + lane] = max(q[i * WIDTH + lane] - lifts[lane], 0.0)
            descending_sqrt(lane, q, values[first + lane])
    return unfinished
