"""Singular values of many small matrices, eight at a time, each in a lane of its own.

Householder bidiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.8), then dqds with shifts on the
squares of what is left. No lane changes another, so that a matrix has the same bits in any batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.dqds import STATE, dqds, write_values
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, WIDTH

__all__ = ["small_values"]

# Rows that reflectors are applied to at once, which lanes of eight matrices each leave registers for.
ROWS = 2


@kernel
def _reflector(alpha: Any, rest: Any) -> Any:
    """Return ‖x‖², v₀ and c for which I − c v vᵀ maps x to a multiple of e₁; v is x but for its first entry, v₀.

    x begins with α, and ``rest`` is the sum of the other entries' squares; c is 0 where x is negligible.
    """
    square = simd.fma(alpha, alpha, rest)
    norm = simd.sqrt(square)
    first = simd.select(alpha < 0.0, alpha - norm, alpha + norm)
    significant = square > NEGLIGIBLE
    size = simd.select(alpha < 0.0, 0.0 - first, first)
    factor = simd.select(significant, 1.0 / simd.select(significant, norm * size, 1.0), 0.0)
    return square, first, factor


@kernel
def _bidiagonalise(A: Floats, rows: int, columns: int, w: Floats, u: Floats, p: Floats, q: Floats, e: Floats) -> None:
    """Bidiagonalise A (rows ≥ columns, columns, lanes), flattened, after which a row of zeros is; fill both squares.

    One pass over what is left of A for each column: a row has both reflectors applied and, as the next column's
    reflector is known but for its first entry, adds its part to that one's products ``p`` with the columns.
    """
    width, weights = columns * WIDTH, np.ones(ROWS + 1)
    weights[0] = 0.0
    p[:] = 0.0
    for i in range(1, rows):
        x = simd.load(A, i * width)
        for k in range(0, width, WIDTH):
            simd.store(p, k, simd.fma(x, simd.load(A, i * width + k), simd.load(p, k)))
    for j in range(columns):  # pragma: no branch - the last column returns
        here, after = j * WIDTH, (j + 1) * WIDTH
        row = j * width
        square, first, factor = _reflector(simd.load(A, row + here), simd.load(p, here))
        simd.store(q, here, square)
        if j + 1 == columns:
            return
        rest = simd.broadcast(0.0)
        for k in range(after, width, WIDTH):
            entry = simd.load(A, row + k)
            product = factor * simd.fma(first, entry, simd.load(p, k))
            simd.store(w, k, product)
            entry = entry - first * product
            simd.store(u, k, entry)
            if k > after:
                rest = simd.fma(entry, entry, rest)
            simd.store(p, k, simd.broadcast(0.0))
        square, head, scale = _reflector(simd.load(u, after), rest)
        simd.store(e, here, square)
        simd.store(u, after, head)
        # The next pivot's row is no part of the next products: its weight is not known yet.
        _reflect_rows(A, row + width, here, after, width, w, u, p, scale, simd.load_column(weights, 0, 1, ROWS))
        for i in range(j + 1 + ROWS, rows, ROWS):
            _reflect_rows(A, i * width, here, after, width, w, u, p, scale, simd.load_column(weights, 1, 1, ROWS))


@kernel
def _reflect_rows(
    A: Floats, row: int, here: int, after: int, width: int, w: Floats, u: Floats, p: Floats, scale: Any, weights: Any
) -> None:
    """Apply both reflectors to some rows, and add their part to the next column's products, times a weight each."""
    v, z = 0.0 - simd.load_rows(A, row + here, width, ROWS), simd.broadcast(0.0, WIDTH, ROWS)
    for k in range(after, width, WIDTH):
        z = simd.fma(simd.fma(v, simd.load(w, k), simd.load_rows(A, row + k, width, ROWS)), simd.load(u, k), z)
    z = 0.0 - scale * z
    x = weights * simd.fma(
        z, simd.load(u, after), simd.fma(v, simd.load(w, after), simd.load_rows(A, row + after, width, ROWS))
    )
    for k in range(after, width, WIDTH):
        tile = simd.fma(z, simd.load(u, k), simd.fma(v, simd.load(w, k), simd.load_rows(A, row + k, width, ROWS)))
        simd.store_rows(A, row + k, width, tile)
        simd.store(p, k, simd.add_combination(simd.load(p, k), x, tile))


@kernel
def _interleave(
    flat: Floats, starts: Integers, m: int, n: int, A: Floats, scale: Floats, places: Integers, exponents: Integers
) -> None:
    """Copy eight matrices, or their transposes where those are taller, to the lanes of A, each over 2^exponent."""
    count = m * n
    for lane in range(WIDTH):
        exponents[starts[lane] // count] = exponent = simd.exponent_of(flat, starts[lane], count)
        # In two factors, because 1/2^e alone need not be a float64.
        half = -(exponent // 2)
        scale[lane], scale[WIDTH + lane] = math.ldexp(1.0, half), math.ldexp(1.0, -exponent - half)
    one, other, matrices = simd.load(scale, 0), simd.load(scale, WIDTH), simd.load_column(starts, 0, 1, WIDTH)
    whole = count - count % WIDTH
    for t in range(0, whole, WIDTH):
        tile = simd.transpose(simd.load_rows(flat, t, matrices, WIDTH)) * one * other
        if m < n:
            for j in range(WIDTH):
                places[j] = ((t + j) % n * m + (t + j) // n) * WIDTH
            simd.store_rows(A, 0, simd.load_column(places, 0, 1, WIDTH), tile)
        else:
            simd.store_rows(A, t * WIDTH, WIDTH, tile)
    for t in range(whole, count):
        at = (t % n) * m + t // n if m < n else t
        for lane in range(WIDTH):
            A[at * WIDTH + lane] = (flat[starts[lane] + t] * scale[lane]) * scale[WIDTH + lane]


@kernel
def small_values(matrices: Floats, values: Floats, exponents: Integers) -> int:
    """Singular values of matrices (batch, m, n), descending, over 2^exponents; NaN for a matrix that did not converge.

    ``values`` has shape (batch, min(m, n)), ``exponents`` (batch,). Returns the number of matrices left at NaN.
    """
    batch, m, n = matrices.shape
    rows, columns = max(m, n), min(m, n)
    size = columns * WIDTH
    A, w, u = np.zeros((rows + 1) * size), np.empty(size), np.empty(size)
    # Steps look at a row of q beyond the last; the last row of e stays zero.
    p, q, e = np.empty(size), np.zeros(size + WIDTH), np.zeros(size)
    q_old, e_old, sigmas = np.empty(size), np.empty(size), np.empty(size)
    state, scale, flat = np.empty(STATE), np.empty(2 * WIDTH), matrices.reshape(matrices.size)
    starts, places = np.empty(WIDTH, np.int64), np.empty(WIDTH, np.int64)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        for lane in range(WIDTH):
            # Lanes beyond the last matrix have it again: dqds is slower where lanes have blocks of different rows.
            starts[lane] = min(first + lane, batch - 1) * m * n
        _interleave(flat, starts, m, n, A, scale, places, exponents)
        _bidiagonalise(A, rows, columns, w, u, p, q, e)
        dqds(columns, q, e, q_old, e_old, sigmas, state, 0.0)
        unfinished += write_values(first, q, state, values)
    return unfinished
