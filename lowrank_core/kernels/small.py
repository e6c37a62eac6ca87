"""Singular values of many small matrices: eight at a time, one a lane.

Householder bidiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.8), then differential
quotient-difference steps with shifts (Fernando and Parlett, Numer. Math. 67 (1994) 191) on the squares of what is left.
A lane's operations are the same whatever its neighbours hold, so a matrix has the same bits in any batch.
"""

from __future__ import annotations

import math

import numpy as np

from lowrank_core.kernels.compiling import Floats, Integers, kernel
from lowrank_core.kernels.lanes import WIDTH, fused, load, root, select, some, spread, store

__all__ = ["small_values"]

# Squares of the matrices' unit below this are dropped: a reflector from them would not be orthogonal.
NEGLIGIBLE = 1e-280

# An off-diagonal entry under this share of the largest is left out: half an ulp of σ₁.
TOLERANCE = 2.0**-53

# Rows of what is known of every lane: its block, the shift of the next step, and what the last step found.
START, END, SHIFT, ALLOWED, SPLIT, LEAST_BEFORE, BOTTOM, TRIES = range(8)
FIELDS = 8

# Steps for each value, beyond which a matrix is left to LAPACK; most take three.
PATIENCE = 30


@kernel
def _reflector(alpha: Floats, rest: Floats) -> tuple[Floats, Floats, Floats]:
    """Give ‖x‖², v₀ and c for which I − c v vᵀ maps x to a multiple of e₁; v is x but for v₀, ``rest`` is Σ x_i², i > 0.

    x is α and that rest; c is 0 where x is negligible.
    """
    zero = spread(0.0)
    square = fused(alpha, alpha, rest)
    norm = root(square)
    first = select(alpha < zero, alpha - norm, alpha + norm)
    lives = spread(NEGLIGIBLE) < square
    size = select(alpha < zero, zero - first, first)
    factor = select(lives, spread(1.0) / select(lives, norm * size, spread(1.0)), zero)
    return square, first, factor


@kernel
def _to_squares(A: Floats, rows: int, columns: int, w: Floats, u: Floats, p: Floats, q: Floats, e: Floats) -> None:
    """Bidiagonalise A, shape (rows ≥ columns, columns, lanes) flattened; fill the squares of both diagonals.

    One pass over what is left of A for each column: a row has both reflectors applied and, as the next column's
    reflector is known but for its first entry, adds its part to that one's products ``p`` with the columns.
    """
    width = columns * WIDTH
    zero = spread(0.0)
    for k in range(0, width, WIDTH):
        store(p, k, zero)
    for i in range(1, rows):
        x = load(A, i * width)
        for k in range(0, width, WIDTH):
            store(p, k, fused(x, load(A, i * width + k), load(p, k)))
    for j in range(columns):
        here, after = j * WIDTH, (j + 1) * WIDTH
        row = j * width
        square, first, factor = _reflector(load(A, row + here), load(p, here))
        store(q, here, square)
        if j + 1 == columns:
            return
        rest = zero
        for k in range(after, width, WIDTH):
            entry = load(A, row + k)
            product = factor * fused(first, entry, load(p, k))
            store(w, k, product)
            entry = entry - first * product
            store(u, k, entry)
            if k > after:
                rest = fused(entry, entry, rest)
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
                store(p, k, fused(x, load(A, i * width + k), load(p, k)))


@kernel
def _reflect_row(A: Floats, row: int, here: int, after: int, width: int, w: Floats, u: Floats, scale: Floats) -> Floats:
    """Apply both reflectors to a row; give the entry that the next column's reflector holds of it."""
    v = spread(0.0) - load(A, row + here)
    z = spread(0.0)
    for k in range(after, width, WIDTH):
        z = fused(fused(v, load(w, k), load(A, row + k)), load(u, k), z)
    z = spread(0.0) - scale * z
    for k in range(after, width, WIDTH):
        store(A, row + k, fused(z, load(u, k), fused(v, load(w, k), load(A, row + k))))
    return load(A, row + after)


@kernel
def _reflect_two_rows(
    A: Floats, row: int, here: int, after: int, width: int, w: Floats, u: Floats, p: Floats, scale: Floats
) -> None:
    """Apply both reflectors to two rows, and add their part to the next column's products."""
    zero = spread(0.0)
    other = row + width
    v0, v1 = zero - load(A, row + here), zero - load(A, other + here)
    z0, z1 = zero, zero
    for k in range(after, width, WIDTH):
        w_k, u_k = load(w, k), load(u, k)
        z0 = fused(fused(v0, w_k, load(A, row + k)), u_k, z0)
        z1 = fused(fused(v1, w_k, load(A, other + k)), u_k, z1)
    z0, z1 = zero - scale * z0, zero - scale * z1
    head, product = load(u, after), load(w, after)
    x0 = fused(z0, head, fused(v0, product, load(A, row + after)))
    x1 = fused(z1, head, fused(v1, product, load(A, other + after)))
    for k in range(after, width, WIDTH):
        w_k, u_k = load(w, k), load(u, k)
        y0 = fused(z0, u_k, fused(v0, w_k, load(A, row + k)))
        y1 = fused(z1, u_k, fused(v1, w_k, load(A, other + k)))
        store(A, row + k, y0)
        store(A, other + k, y1)
        store(p, k, fused(x1, y1, fused(x0, y0, load(p, k))))


@kernel
def _step(last: int, q: Floats, e: Floats, q_next: Floats, e_next: Floats, state: Floats) -> None:
    """One differential quotient-difference step on a block of each lane, with a shift of its own.

    Fills q_next and e_next, and of the state: SPLIT, behind the last e_next that is negligible (but for the one before
    the end), LEAST, the smallest d from there on, LEAST_BEFORE, that of all but the last, and BOTTOM, the last.
    """
    infinite, zero = spread(math.inf), spread(0.0)
    start, end, shift, allowed = load(state[START], 0), load(state[END], 0), load(state[SHIFT], 0), load(state[ALLOWED], 0)
    before, bottom, split, d = infinite, zero, start, zero
    for k in range(last + 1):
        at = k * WIDTH
        index, following = spread(float(k)), spread(k + 1.0)
        old_q, old_e = load(q, at), load(e, at)
        inside, ends = (start <= index) & (index < end), index == end
        d = select(index == start, old_q - shift, d)
        total = d + old_e
        ratio = load(q, at + WIDTH) / total
        new_e = old_e * ratio
        store(q_next, at, select(inside, total, select(ends, d, old_q)))
        store(e_next, at, select(inside, new_e, old_e))
        bottom = select(ends, d, bottom)
        splits = inside & (new_e <= allowed) & (following < end)
        split = select(splits, following, split)
        # A d that is negative or NaN has to be seen even where a split follows: shift and bottom are wrong then too.
        before = select(inside, select(before < d, select(splits & (zero <= before), infinite, before), d), before)
        d = fused(d, ratio, zero - shift)
    store(state[SPLIT], 0, split)
    store(state[LEAST_BEFORE], 0, before)
    store(state[BOTTOM], 0, bottom)


@kernel
def _settle(
    lane: int, least: float, q: Floats, e: Floats, shifted: Floats, found: Floats, state: Floats
) -> None:
    """Take the values that a lane's block gives up, go on to the next block where it is done, and choose the shift.

    ``least`` bounds the smallest eigenvalue of the block from above once its last entry is gone, or is infinite.
    """
    start, end, allowed = int(state[START, lane]), int(state[END, lane]), state[ALLOWED, lane]
    while end >= 0:
        at = end * WIDTH + lane
        above = at - WIDTH
        if start > end:
            start = end
            while start > 0 and e[(start - 1) * WIDTH + lane] > allowed:
                start -= 1
            least = math.inf
        elif start == end or e[above] <= allowed:
            found[at] = math.sqrt(q[at] + shifted[at])
            end -= 1
        elif start == end - 1:
            a, b, c = q[above], e[above], q[at]
            largest = 0.5 * ((a + b + c) + math.hypot(a + b - c, 2.0 * math.sqrt(b) * math.sqrt(c)))
            found[above] = math.sqrt(largest + shifted[above])
            found[at] = math.sqrt(c * (a / largest) + shifted[at])
            end -= 2
        else:
            break
    state[START, lane], state[END, lane] = start, end
    state[SHIFT, lane] = _next_shift(q, e, lane, start, end, least) if end >= 0 else 0.0


@kernel
def _next_shift(q: Floats, e: Floats, lane: int, start: int, end: int, least: float) -> float:
    """A shift near the smallest eigenvalue of a block, and seldom beyond: from the residual of its last entry.

    ``least`` bounds that eigenvalue from above, as the last entry does; a quarter of the bound is what is taken where
    the residual tells nothing.
    """
    at = end * WIDTH + lane
    last, coupling, above = q[at], e[at - WIDTH], q[at - WIDTH]
    least = min(least, last)
    beyond = math.sqrt(above * e[at - 2 * WIDTH]) if end - 2 >= start else 0.0
    gap = above + coupling - last - beyond
    guess = 0.25 * least
    if gap > 0.0 and last * coupling < gap * gap:
        guess = max(guess, last - last * (coupling / gap))
    return guess if guess < least else 0.25 * least


@kernel
def _retreat(lane: int, q: Floats, e: Floats, q_next: Floats, e_next: Floats, state: Floats) -> None:
    """Undo a lane's step whose shift was too large, and choose a smaller one."""
    for k in range(int(state[END, lane]) + 1):
        at = k * WIDTH + lane
        q_next[at], e_next[at] = q[at], e[at]
    shift, bottom = state[SHIFT, lane], state[BOTTOM, lane]
    state[TRIES, lane] += 1.0
    if state[TRIES, lane] == 1.0 and state[LEAST_BEFORE, lane] > 0.0 and -shift < bottom:
        # Only the last entry went negative, by about what the shift was too large.
        state[SHIFT, lane] = (shift + bottom) * (1.0 - 2.0**-51)
    else:
        state[SHIFT, lane] = 0.25 * shift if state[TRIES, lane] < 3.0 else 0.0


@kernel
def _converge(n: int, q: Floats, e: Floats, q_next: Floats, e_next: Floats, shifted: Floats, found: Floats) -> Floats:
    """Fill ``found`` with the singular values from the squares q and e; give the state, END −1 where all are found."""
    state = np.zeros((FIELDS, WIDTH))
    for lane in range(WIDTH):
        largest = 0.0
        for k in range(n):
            at = k * WIDTH + lane
            largest = max(largest, q[at], e[at])
            shifted[at] = 0.0
        # Leaving e out moves no singular value by more than √e.
        state[ALLOWED, lane] = largest * TOLERANCE * TOLERANCE
        state[START, lane], state[END, lane] = float(n), float(n - 1)
        _settle(lane, math.inf, q, e, shifted, found, state)
    for _ in range(PATIENCE * n):
        last = -1
        for lane in range(WIDTH):
            last = max(last, int(state[END, lane]))
        if last < 0:
            break
        _step(last, q, e, q_next, e_next, state)
        _account(last, shifted, state)
        for lane in range(WIDTH):
            if state[END, lane] < 0.0:
                continue
            if state[LEAST_BEFORE, lane] >= 0.0 and state[BOTTOM, lane] >= 0.0:
                state[START, lane], state[TRIES, lane] = state[SPLIT, lane], 0.0
                _settle(lane, state[LEAST_BEFORE, lane], q_next, e_next, shifted, found, state)
            else:
                _retreat(lane, q, e, q_next, e_next, state)
        q, q_next, e, e_next = q_next, q, e_next, e
    return state


@kernel
def _account(last: int, shifted: Floats, state: Floats) -> None:
    """Add the shifts of steps that went well to the entries of their blocks."""
    zero = spread(0.0)
    start, end = load(state[START], 0), load(state[END], 0)
    well = (zero <= load(state[LEAST_BEFORE], 0)) & (zero <= load(state[BOTTOM], 0))
    shift = select(well, load(state[SHIFT], 0), zero)
    for k in range(last + 1):
        index, at = spread(float(k)), k * WIDTH
        store(shifted, at, load(shifted, at) + select((start <= index) & (index <= end), shift, zero))


@kernel
def _power_of_two(exponent: int) -> float:
    return math.ldexp(1.0, exponent)


@kernel
def _fill_lane(matrix: Floats, transposed: bool, lane: int, A: Floats) -> int:
    """Copy a matrix, or its transpose, into a lane, over 2^e so that its largest entry lies in [½, 1); give e."""
    rows, columns = matrix.shape
    largest = 0.0
    for i in range(rows):
        for j in range(columns):
            largest = max(largest, abs(matrix[i, j]))
    exponent = math.frexp(largest)[1]
    # In two factors, because 1/2^e alone need not be a float64.
    half = -(exponent // 2)
    one, other = _power_of_two(half), _power_of_two(-exponent - half)
    for i in range(rows):
        for j in range(columns):
            at = j * rows + i if transposed else i * columns + j
            A[at * WIDTH + lane] = (matrix[i, j] * one) * other
    return exponent


@kernel
def small_values(matrices: Floats, values: Floats, exponents: Integers) -> int:
    """Singular values of matrices (batch, m, n), descending, over 2^exponents; NaN for a matrix that did not converge.

    ``values`` has shape (batch, min(m, n)), ``exponents`` (batch,). Gives the number of matrices left at NaN.
    """
    batch, m, n = matrices.shape
    transposed = m < n
    rows, columns = max(m, n), min(m, n)
    A = np.empty(rows * columns * WIDTH)
    w, u, p, shifted, found = (
        np.empty(columns * WIDTH),
        np.empty(columns * WIDTH),
        np.empty(columns * WIDTH),
        np.empty(columns * WIDTH),
        np.empty(columns * WIDTH),
    )
    q, e = np.zeros((columns + 1) * WIDTH), np.zeros((columns + 1) * WIDTH)
    q_next, e_next = np.zeros((columns + 1) * WIDTH), np.zeros((columns + 1) * WIDTH)
    left = 0
    for first in range(0, batch, WIDTH):
        several = min(WIDTH, batch - first)
        if several < WIDTH:
            A[:] = 0.0
        for lane in range(several):
            exponents[first + lane] = _fill_lane(matrices[first + lane], transposed, lane, A)
        _to_squares(A, rows, columns, w, u, p, q, e)
        for k in range((columns - 1) * WIDTH, (columns + 1) * WIDTH):
            e[k] = 0.0
        state = _converge(columns, q, e, q_next, e_next, shifted, found)
        for lane in range(several):
            if state[END, lane] >= 0.0:
                values[first + lane] = math.nan
                left += 1
                continue
            for k in range(columns):
                value = found[k * WIDTH + lane]
                at = k
                while at > 0 and values[first + lane, at - 1] < value:
                    values[first + lane, at] = values[first + lane, at - 1]
                    at -= 1
                values[first + lane, at] = value
    return left
