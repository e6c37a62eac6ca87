"""Singular values of many small matrices: eight at a time, one a lane.

Householder bidiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.8), then differential
quotient-difference steps with shifts (Fernando and Parlett, Numer. Math. 67 (1994) 191) on the squares of what is left.
A lane's operations are the same whatever its neighbours hold, so a matrix has the same bits in any batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.dqds import END, STATE, descending_sqrt, dqds
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast, fma, load, select, sqrt, store, transpose

__all__ = ["small_values"]

# Squares of the matrices' unit below this are dropped: a reflector from them would not be orthogonal.
NEGLIGIBLE = 1e-280


@kernel
def _reflector(alpha: Any, rest: Any) -> Any:
    """Give ‖x‖², v₀ and c for which I − c v vᵀ maps x to a multiple of e₁; v is x but for its first entry, v₀.

    x begins with α, and ``rest`` is the sum of the other entries' squares; c is 0 where x is negligible.
    """
    zero = broadcast(0.0)
    square = fma(alpha, alpha, rest)
    norm = sqrt(square)
    first = select(alpha < zero, alpha - norm, alpha + norm)
    lives = broadcast(NEGLIGIBLE) < square
    size = select(alpha < zero, zero - first, first)
    factor = select(lives, broadcast(1.0) / select(lives, norm * size, broadcast(1.0)), zero)
    return square, first, factor


@kernel
def _to_squares(A: Floats, rows: int, columns: int, w: Floats, u: Floats, p: Floats, q: Floats, e: Floats) -> None:
    """Bidiagonalise A, shape (rows ≥ columns, columns, lanes) flattened; fill the squares of both diagonals.

    One pass over what is left of A for each column: a row has both reflectors applied and, as the next column's
    reflector is known but for its first entry, adds its part to that one's products ``p`` with the columns.
    """
    width = columns * WIDTH
    zero = broadcast(0.0)
    for k in range(0, width, WIDTH):
        store(p, k, zero)
    for i in range(1, rows):
        x = load(A, i * width)
        for k in range(0, width, WIDTH):
            store(p, k, fma(x, load(A, i * width + k), load(p, k)))
    for j in range(columns):  # pragma: no branch - the last column returns
        here, after = j * WIDTH, (j + 1) * WIDTH
        row = j * width
        square, first, factor = _reflector(load(A, row + here), load(p, here))
        store(q, here, square)
        if j + 1 == columns:
            return
        rest = zero
        for k in range(after, width, WIDTH):
            entry = load(A, row + k)
            product = factor * fma(first, entry, load(p, k))
            store(w, k, product)
            entry = entry - first * product
            store(u, k, entry)
            if k > after:
                rest = fma(entry, entry, rest)
            store(p, k, zero)
        square, head, scale = _reflector(load(u, after), rest)
        store(e, here, square)
        store(u, after, head)
        # The next pivot's row is no part of the next products: its weight is not known yet.
        _reflect_row(A, row + width, here, after, width, w, u, scale)
        i = j + 2
        while i + 1 < rows:
            _reflect_two_rows(A, i * width, here, after, width, w, u, p, scale)
            i += 2
        if i < rows:
            x = _reflect_row(A, i * width, here, after, width, w, u, scale)
            for k in range(after, width, WIDTH):
                store(p, k, fma(x, load(A, i * width + k), load(p, k)))


@kernel
def _reflect_row(A: Floats, row: int, here: int, after: int, width: int, w: Floats, u: Floats, scale: Floats) -> Any:
    """Apply both reflectors to a row; give the entry that the next column's reflector holds of it."""
    v = broadcast(0.0) - load(A, row + here)
    z = broadcast(0.0)
    for k in range(after, width, WIDTH):
        z = fma(fma(v, load(w, k), load(A, row + k)), load(u, k), z)
    z = broadcast(0.0) - scale * z
    for k in range(after, width, WIDTH):
        store(A, row + k, fma(z, load(u, k), fma(v, load(w, k), load(A, row + k))))
    return load(A, row + after)


@kernel
def _reflect_two_rows(
    A: Floats, row: int, here: int, after: int, width: int, w: Floats, u: Floats, p: Floats, scale: Floats
) -> None:
    """Apply both reflectors to two rows, and add their part to the next column's products."""
    zero = broadcast(0.0)
    other = row + width
    v0, v1 = zero - load(A, row + here), zero - load(A, other + here)
    z0, z1 = zero, zero
    for k in range(after, width, WIDTH):
        w_k, u_k = load(w, k), load(u, k)
        z0 = fma(fma(v0, w_k, load(A, row + k)), u_k, z0)
        z1 = fma(fma(v1, w_k, load(A, other + k)), u_k, z1)
    z0, z1 = zero - scale * z0, zero - scale * z1
    head, product = load(u, after), load(w, after)
    x0 = fma(z0, head, fma(v0, product, load(A, row + after)))
    x1 = fma(z1, head, fma(v1, product, load(A, other + after)))
    for k in range(after, width, WIDTH):
        w_k, u_k = load(w, k), load(u, k)
        y0 = fma(z0, u_k, fma(v0, w_k, load(A, row + k)))
        y1 = fma(z1, u_k, fma(v1, w_k, load(A, other + k)))
        store(A, row + k, y0)
        store(A, other + k, y1)
        store(p, k, fma(x1, y1, fma(x0, y0, load(p, k))))


@kernel
def _power_of_two(exponent: int) -> float:
    return math.ldexp(1.0, exponent)


@kernel
def _exponent_of(entries: Floats) -> int:
    """Give the e for which the largest entry over 2^e lies in [½, 1)."""
    zero = broadcast(0.0)
    largest, whole = zero, entries.size - entries.size % WIDTH
    for at in range(0, whole, WIDTH):
        x = load(entries, at)
        x = select(x < zero, zero - x, x)
        largest = select(largest < x, x, largest)
    several = np.empty(WIDTH)
    store(several, 0, largest)
    most = 0.0
    for lane in range(WIDTH):
        most = max(most, several[lane])
    for at in range(whole, entries.size):
        most = max(most, abs(entries[at]))
    return math.frexp(most)[1]


@kernel
def _fill(
    flat: Floats, first: int, several: int, m: int, n: int, A: Floats, scale: Floats, exponents: Integers
) -> None:
    """Copy matrices, or their transposes where those are taller, into the lanes of A, each over its own 2^exponent.

    Lanes beyond ``several`` hold the last matrix again.
    """
    count = m * n
    o0 = first * count
    for lane in range(WIDTH):
        matrix = first + min(lane, several - 1)
        exponent = _exponent_of(flat[matrix * count : (matrix + 1) * count])
        exponents[matrix] = exponent
        # In two factors, because 1/2^e alone need not be a float64.
        half = -(exponent // 2)
        scale[lane], scale[WIDTH + lane] = _power_of_two(half), _power_of_two(-exponent - half)
    one, other = load(scale, 0), load(scale, WIDTH)
    end = several - 1
    o1, o2, o3 = o0 + min(1, end) * count, o0 + min(2, end) * count, o0 + min(3, end) * count
    o4, o5, o6, o7 = (
        o0 + min(4, end) * count,
        o0 + min(5, end) * count,
        o0 + min(6, end) * count,
        o0 + min(7, end) * count,
    )
    whole = count - count % WIDTH
    for t in range(0, whole, WIDTH):
        rows = transpose(
            load(flat, o0 + t),
            load(flat, o1 + t),
            load(flat, o2 + t),
            load(flat, o3 + t),
            load(flat, o4 + t),
            load(flat, o5 + t),
            load(flat, o6 + t),
            load(flat, o7 + t),
        )
        for j in range(WIDTH):
            at = t + j
            if m < n:
                at = (at % n) * m + at // n
            store(A, at * WIDTH, (rows[j] * one) * other)
    for t in range(whole, count):
        at = (t % n) * m + t // n if m < n else t
        for lane in range(WIDTH):
            entry = flat[(first + min(lane, end)) * count + t]
            A[at * WIDTH + lane] = (entry * scale[lane]) * scale[WIDTH + lane]


@kernel
def small_values(matrices: Floats, values: Floats, exponents: Integers) -> int:
    """Singular values of matrices (batch, m, n), descending, over 2^exponents; NaN for a matrix that did not converge.

    ``values`` has shape (batch, min(m, n)), ``exponents`` (batch,). Gives the number of matrices left at NaN.
    """
    batch, m, n = matrices.shape
    rows, columns = max(m, n), min(m, n)
    size = columns * WIDTH
    A, w, u = np.empty(rows * size), np.empty(size), np.empty(size)
    p, left = np.empty(size), np.empty(size)
    # Steps look at a row of q beyond the last; the last row of e stays zero.
    q, e = np.zeros(size + WIDTH), np.zeros(size)
    q_before, e_before = np.empty(size), np.empty(size)
    state, scale, flat = np.empty(STATE), np.empty(2 * WIDTH), matrices.reshape(matrices.size)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        several = min(WIDTH, batch - first)
        _fill(flat, first, several, m, n, A, scale, exponents)
        _to_squares(A, rows, columns, w, u, p, q, e)
        dqds(columns, q, e, q_before, e_before, left, state, 0.0)
        for lane in range(several):
            if state[END + lane] >= 0.0:
                values[first + lane] = math.nan
                unfinished += 1
            else:
                descending_sqrt(lane, q, values[first + lane])
    return unfinished
