"""Leading right singular vectors of matrices of a small or medium size, one after another.

Householder bidiagonalisation, then QR steps with a shift (Golub and Van Loan, "Matrix Computations", 4th ed., §8.6.2).
Their rotations are stored, and applied from the last to the first to as many unit vectors as are wanted: a full basis
would cost min(m, n) vectors whatever the rank.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.householder import ROWS, bidiagonalise, fill_tall
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, WIDTH

__all__ = ["leading_vectors"]

# An off-diagonal entry below this fraction of the largest is negligible: two ulp of σ₁.
TOL = 2.0**-51

# Rotations of each side, over the square of the number of values, beyond which a matrix is left to LAPACK: spectra of
# every kind take up to 1.5.
MAX_ROTATIONS = 4

# Vectors that rotations and reflectors are applied to at a time, in registers.
PANEL = 2 * WIDTH

# A step has its first row, its last, and the place of its first rotation.
FIRST, LAST, PLACE = 0, 1, 2


@kernel
def _rotation(f: float, g: float) -> Any:
    """Return c, s and r for which the rotation maps (f, g) to (r, 0)."""
    square = f * f + g * g
    if square < NEGLIGIBLE:
        return 1.0, 0.0, f
    inverse = 1.0 / math.sqrt(square)
    return f * inverse, g * inverse, square * inverse


@kernel
def _smaller_value(f: float, g: float, h: float) -> float:
    """Return the smaller singular value of [[f, g], [0, h]], where g is not zero."""
    f, h = abs(f), abs(h)
    larger = 0.5 * (math.sqrt((f + h) * (f + h) + g * g) + math.sqrt((f - h) * (f - h) + g * g))
    return f * (h / larger)


@kernel
def _step(
    first: int, last: int, shift: float, d: Floats, e: Floats, of_columns: bool, rotations: Floats, place: int
) -> None:
    """Take a QR step on a block of a bidiagonal matrix, and store its rotations of columns, or of rows."""
    f, g = d[first], e[first]
    if shift > 0.0:
        f = (abs(f) - shift) * ((1.0 if f > 0.0 else -1.0) + shift / f)
    for k in range(first, last):
        c, s, r = _rotation(f, g)
        if k > first:
            e[k - 1] = r
        if of_columns:
            rotations[place], rotations[place + 1] = c, s
        f, above = c * d[k] + s * e[k], c * e[k] - s * d[k]
        g, below = s * d[k + 1], c * d[k + 1]
        c, s, d[k] = _rotation(f, g)
        if not of_columns:
            rotations[place], rotations[place + 1] = c, s
        f, d[k + 1] = c * above + s * below, c * below - s * above
        if k + 1 < last:
            g, e[k + 1] = s * e[k + 1], c * e[k + 1]
        place += 2
    e[last - 1] = f


@kernel
def _diagonalise(n: int, d: Floats, e: Floats, of_columns: bool, rotations: Floats, steps: Integers) -> int:
    """Reduce a bidiagonal matrix to its diagonal d; return the number of steps, −1 where rotations do not suffice."""
    largest = 0.0
    for k in range(n):
        largest = max(largest, abs(d[k]), abs(e[k]))
    negligible = TOL * largest
    count, place, last = 0, 0, n - 1
    while last > 0:
        # As the search for the first row has it: where an entry is NaN, too, the block loses its last row.
        if not abs(e[last - 1]) > negligible:
            last -= 1
            continue
        first, smallest = last, abs(d[last])
        while first > 0 and abs(e[first - 1]) > negligible:
            first -= 1
            smallest = min(smallest, abs(d[first]))
        if place + 2 * (last - first) > rotations.size:
            return -1
        # A step without a shift takes a zero on the diagonal to the end of its block.
        shift = _smaller_value(d[last - 1], e[last - 1], d[last]) if smallest > negligible else 0.0
        _step(first, last, shift, d, e, of_columns, rotations, place)
        steps[count, FIRST], steps[count, LAST], steps[count, PLACE] = first, last, place
        count += 1
        place += 2 * (last - first)
    return count


@kernel
def _apply_rotations(W: Floats, rotations: Floats, steps: Integers, count: int) -> None:
    """Apply all rotations to rows of W (rows, PANEL), flattened, from the last to the first."""
    for step in range(count - 1, -1, -1):
        first, last, place = steps[step, FIRST], steps[step, LAST], steps[step, PLACE]
        carried = simd.load(W, last * PANEL, PANEL)
        for k in range(last - 1, first - 1, -1):
            c, s = rotations[place + 2 * (k - first)], rotations[place + 2 * (k - first) + 1]
            row = simd.load(W, k * PANEL, PANEL)
            simd.store(W, (k + 1) * PANEL, simd.fma(s, row, c * carried))
            carried = simd.fma(c, row, (0.0 - s) * carried)
        simd.store(W, first * PANEL, carried)


@kernel
def _reflect(W: Floats, first: int, stop: int, v: Floats, scale: float) -> None:
    """Apply I − scale · v vᵀ to some rows of W (rows, PANEL), flattened; v has an entry for each row."""
    product = simd.broadcast(0.0, PANEL)
    for i in range(first, stop):
        product = simd.fma(v[i], simd.load(W, i * PANEL, PANEL), product)
    product = (0.0 - scale) * product
    for i in range(first, stop):
        simd.store(W, i * PANEL, simd.fma(v[i], product, simd.load(W, i * PANEL, PANEL)))


@kernel
def _apply_reflectors(
    W: Floats, A: Floats, rows: int, columns: int, size: int, of_columns: bool, reflectors: Floats, v: Floats
) -> None:
    """Apply the reflectors of columns, or of rows, that `bidiagonalise` left, from the last to the first."""
    for j in range(columns - 1, -1, -1):
        if of_columns:
            for k in range(j + 1, columns):
                v[k] = A[j * size + k]
            _reflect(W, j + 1, columns, v, reflectors[j, 2])
        else:
            v[j] = reflectors[j, 0]
            for i in range(j + 1, rows):
                v[i] = A[i * size + j]
            _reflect(W, j, rows, v, reflectors[j, 1])


@kernel
def _take_signs(A: Floats, size: int, reflectors: Floats, d: Floats, e: Floats) -> None:
    """Replace squares of a bidiagonal matrix's entries, as `bidiagonalise` left them, by the entries."""
    for j in range(d.size):
        # A reflector maps x to the multiple of e₁ of the sign that v₀ does not have.
        d[j] = -math.sqrt(d[j]) if reflectors[j, 0] > 0.0 else math.sqrt(d[j])
        if j + 1 < d.size:
            e[j] = -math.sqrt(e[j]) if A[j * size + j + 1] > 0.0 else math.sqrt(e[j])


@kernel
def _sort(d: Floats, values: Floats, order: Integers) -> None:
    """Write the sizes of d in descending order, and where each of them is in d."""
    for j in range(d.size):
        value, at = abs(d[j]), j
        while at > 0 and values[at - 1] < value:
            values[at], order[at] = values[at - 1], order[at - 1]
            at -= 1
        values[at], order[at] = value, j


@kernel
def leading_vectors(matrices: Floats, values: Floats, vectors: Floats) -> int:
    """Singular values of matrices (batch, m, n) with entries up to 1, and the leading right singular vectors.

    ``values`` has shape (batch, min(m, n)), ``vectors`` (batch, r, n). Values are NaN for a matrix that did not
    converge. Returns the number of matrices left at NaN.
    """
    batch, m, n = matrices.shape
    rows, columns, wanted = max(m, n), min(m, n), vectors.shape[1]
    size = ((columns - 1) // WIDTH + 1) * WIDTH
    A, w, u, p = np.zeros((rows + ROWS) * size), np.zeros(size), np.zeros(size), np.zeros(size)
    d, e, reflectors = np.empty(columns), np.empty(columns), np.empty((columns, 3))
    most = MAX_ROTATIONS * columns * columns
    rotations, steps, order = np.empty(2 * most), np.empty((most, 3), np.int64), np.empty(columns, np.int64)
    W, v, flat = np.empty(n * PANEL), np.empty(n), matrices.reshape(matrices.size)
    of_columns, unfinished = m >= n, 0
    for matrix in range(batch):
        fill_tall(A, size, flat, matrix * m * n, m, n, 1.0, 1.0)
        bidiagonalise(A, rows, columns, size, w, u, p, d, e, reflectors)
        _take_signs(A, size, reflectors, d, e)
        count = _diagonalise(columns, d, e, of_columns, rotations, steps)
        if count < 0:
            values[matrix, :] = math.nan
            unfinished += 1
            continue
        _sort(d, values[matrix], order)
        for start in range(0, wanted, PANEL):
            width = min(PANEL, wanted - start)
            W[:] = 0.0
            for j in range(width):
                W[order[start + j] * PANEL + j] = 1.0
            _apply_rotations(W, rotations, steps, count)
            _apply_reflectors(W, A, rows, columns, size, of_columns, reflectors, v)
            for j in range(width):
                for i in range(n):
                    vectors[matrix, start + j, i] = W[i * PANEL + j]
    return unfinished
