"""Singular values of many small matrices: eight at a time, one a lane.

Householder bidiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.8), then differential
quotient-difference steps with shifts (Fernando and Parlett, Numer. Math. 67 (1994) 191) on the squares of what is left.
A lane's operations are the same whatever its neighbours hold, so a matrix has the same bits in any batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core.kernels.compiling import Floats, Integers, kernel
from lowrank_core.kernels.lanes import WIDTH, fused, load, root, select, some, spread, store, turned

__all__ = ["small_values"]

# Squares of the matrices' unit below this are dropped: a reflector from them would not be orthogonal.
NEGLIGIBLE = 1e-280

# An off-diagonal entry under this share of the largest is left out: two ulp of σ₁.
TOLERANCE = 2.0**-51

# Where the state holds what is known of every lane: its block, the next shift, all shifts taken off the block so far,
# the square of what may be left out, and what is to be done about the block.
START, END, SHIFT, BASE, ALLOWED, SETTLES, STATE = range(0, 7 * WIDTH, WIDTH)

# Steps for each value, beyond which a matrix is left to LAPACK; spectra of every kind take two to six.
PATIENCE = 30


@kernel
def _reflector(alpha: Any, rest: Any) -> Any:
    """Give ‖x‖², v₀ and c for which I − c v vᵀ maps x to a multiple of e₁; v is x but for its first entry, v₀.

    x begins with α, and ``rest`` is the sum of the other entries' squares; c is 0 where x is negligible.
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
def _reflect_row(A: Floats, row: int, here: int, after: int, width: int, w: Floats, u: Floats, scale: Floats) -> Any:
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
def _step(
    first: int,
    latest: int,
    earliest: int,
    last: int,
    q: Floats,
    e: Floats,
    q_before: Floats,
    e_before: Floats,
    left: Floats,
    start: Any,
    end: Any,
    shift: Any,
    base: Any,
    allowed: Any,
) -> Any:
    """One differential quotient-difference step on the block start … end of each lane, with a shift of its own.

    What q and e held is kept in q_before and e_before. A block that falls apart leaves all but its last part behind,
    and in ``left`` at the end of each what has been taken off it. Gives where its last part starts, and for the choice
    of the next shift: the least d before the last, or the first that is negative; the last d; w = Σ x² over all but
    the last entry of the x = (…, 1) for which Bx is a multiple of the last unit vector, and the same for the block
    without its last entry; the entries above the last in q and e.
    """
    zero, one = spread(0.0), spread(1.0)
    least, above, coupling, weight, weight_above = spread(math.inf), zero, zero, zero, zero
    split, d = start, zero
    loose = allowed * (base + shift)
    for k in range(first, last + 1):
        at = k * WIDTH
        index = spread(float(k))
        old_q, old_e = load(q, at), load(e, at)
        store(q_before, at, old_q)
        store(e_before, at, old_e)
        if latest < k < earliest:
            least = select(zero <= least, select(least < d, least, d), least)
            total = d + old_e
            inverse = one / total
            ratio = load(q, at + WIDTH) * inverse
            new_e = old_e * ratio
            share = new_e * inverse
            weight_above, above, coupling = weight, total, new_e
            weight = fused(weight, share, share)
            store(q, at, total)
            apart = _negligible(new_e, total, allowed, loose)
            if some(apart):
                new_e, weight = select(apart, zero, new_e), select(apart, zero, weight)
                split = select(apart, index + one, split)
                store(left, at, select(apart, base + shift, load(left, at)))
            store(e, at, new_e)
            d = fused(d, ratio, zero - shift)
            continue
        # The same for lanes of which some are not within their block here.
        inside = (start <= index) & (index < end)
        d = select(index <= start, old_q - shift, d)
        least = select(inside & (zero <= least), select(least < d, least, d), least)
        total = d + old_e
        inverse = one / total
        ratio = load(q, at + WIDTH) * inverse
        new_e = old_e * ratio
        share = new_e * inverse
        weight_above = select(inside, weight, weight_above)
        weight = select(inside, fused(weight, share, share), weight)
        above, coupling = select(inside, total, above), select(inside, new_e, coupling)
        store(q, at, select(inside, total, select(index == end, d, old_q)))
        apart = inside & _negligible(new_e, total, allowed, loose) & (index + one < end)
        if some(apart):
            new_e, weight = select(apart, zero, new_e), select(apart, zero, weight)
            split = select(apart, index + one, split)
            store(left, at, select(apart, base + shift, load(left, at)))
        store(e, at, select(inside, new_e, old_e))
        d = select(inside, fused(d, ratio, zero - shift), d)
    return split, least, d, weight, weight_above, above, coupling


@kernel
def _negligible(e: Any, above: Any, allowed: Any, loose: Any) -> Any:
    """Tell which entries of e may be left out below an entry of q.

    √e is then under the tolerance, or so is the change of a σ² once a shift has been taken off it (``loose``).
    """
    return (e <= allowed) | (e * select(above < e, e, above) <= loose)


@kernel
def _undo(first: int, last: int, failed: Any, q: Floats, e: Floats, q_before: Floats, e_before: Floats) -> None:
    """Take back the step of the lanes in which it failed."""
    for at in range(first * WIDTH, (last + 1) * WIDTH, WIDTH):
        store(q, at, select(failed, load(q_before, at), load(q, at)))
        store(e, at, select(failed, load(e_before, at), load(e, at)))


@kernel
def _smaller_shift(shift: Any, tries: Any, least: Any, bottom: Any) -> Any:
    """Choose another shift for a step that went negative, as ``tries`` did before it."""
    zero, quarter = spread(0.0), spread(0.25) * shift
    wrong = select(least < zero, least, bottom)
    nearer = fused(select(tries == zero, spread(2.0), spread(8.0)), wrong, shift)
    nearer = select(quarter < nearer, nearer, quarter)
    smaller = select(tries < spread(2.0), nearer, select(tries < spread(3.0), quarter, zero))
    # Where the last entry alone went negative, it says by how much the shift was too large.
    late = (tries == zero) & (zero <= least) & (zero < shift + bottom)
    return select(late, (shift + bottom) * spread(1.0 - 2.0**-50), smaller)


@kernel
def _next_shift(
    gone: Any,
    least: Any,
    bottom: Any,
    weight: Any,
    weight_above: Any,
    above: Any,
    trust: Any,
    allowed: Any,
    loose: Any,
) -> Any:
    """Choose a shift near the smallest eigenvalue of a block, seldom beyond; tell whether it is a mere guess.

    The Rayleigh quotient ρ of x leaves a residual of ρ√w: some eigenvalue is no further from it, and the smallest is
    within ρ²w over the distance to the next (Parlett, "The symmetric eigenvalue problem", §4.5, §11.7). ``gone`` marks
    blocks that lose their last entry now. Every d bounds the smallest eigenvalue from above; where the residual tells
    nothing, a share of the least d is tried, ``trust``, that grows while it succeeds. An eigenvalue as small as
    what may be left out is found, and a shift would only fail.
    """
    zero, one, much = spread(0.0), spread(1.0), spread(0.9)
    rho_above = above / (one + weight_above)
    w = select(gone, weight_above, weight)
    rho = select(gone, rho_above, bottom / (one + weight))
    lowest = select(gone | (least < bottom), least, bottom)
    shift = select(w < much, rho * (one - root(w)), zero)
    gap = rho_above * (one - root(weight_above)) - rho
    refined = rho - rho * rho * w / gap
    refines = (weight_above < much) & (zero < gap) & (shift < refined)
    shift = select(refines, select(gone, shift, refined), shift)
    guessed = (lowest < shift) | (shift <= spread(0.25) * rho)
    shift = select(guessed, trust * lowest, shift)
    smaller = select(rho < lowest, rho, lowest)
    return select((smaller <= allowed) | (smaller * smaller <= loose), zero, shift), guessed


@kernel
def _settle(lane: int, gone: bool, q: Floats, e: Floats, left: Floats, state: Floats) -> None:
    """Take the values that a lane's block gives up, and go on to the next block where it is done."""
    start, end, base = int(state[START + lane]), int(state[END + lane]), state[BASE + lane]
    if gone:
        q[end * WIDTH + lane] += base
        end -= 1
    while end >= 0:
        at = end * WIDTH + lane
        above = at - WIDTH
        if start > end:
            start = end
            while start > 0 and e[(start - 1) * WIDTH + lane] > 0.0:
                start -= 1
            base = left[at]
            state[SHIFT + lane] = 0.0
        elif start == end:
            q[at] += base
            end -= 1
        elif start == end - 1:
            a, b, c = q[above], e[above], q[at]
            largest = 0.5 * ((a + b + c) + math.sqrt((a + b - c) * (a + b - c) + 4.0 * b * c))
            q[above] = largest + base
            q[at] = c * (a / largest) + base
            end -= 2
        else:
            break
    state[START + lane], state[END + lane], state[BASE + lane] = float(start), float(end), base


@kernel
def _begin(n: int, q: Floats, e: Floats, left: Floats, state: Floats) -> None:
    """Leave out what is negligible from the outset, and find the last block of each lane."""
    for lane in range(WIDTH):
        largest = 0.0
        for at in range(lane, n * WIDTH, WIDTH):
            largest = max(largest, q[at], e[at])
            left[at] = 0.0
        # Leaving √e out moves no singular value by more than that: two ulp of σ₁.
        allowed = largest * TOLERANCE * TOLERANCE
        for at in range(lane, n * WIDTH, WIDTH):
            if e[at] <= allowed:
                e[at] = 0.0
        state[ALLOWED + lane], state[SHIFT + lane], state[BASE + lane] = allowed, 0.0, 0.0
        state[START + lane], state[END + lane] = float(n), float(n - 1)
        _settle(lane, False, q, e, left, state)


@kernel
def _converge(n: int, q: Floats, e: Floats, q_before: Floats, e_before: Floats, left: Floats, state: Floats) -> None:
    """Turn q, the squares of a bidiagonal matrix's diagonal (e: above it), into those of its singular values.

    The state's END is −1 for a lane of which all are found.
    """
    _begin(n, q, e, left, state)
    zero, one, half = spread(0.0), spread(1.0), spread(0.5)
    allowed, tries, trust = load(state, ALLOWED), zero, spread(0.25)
    for _ in range(PATIENCE * n):
        first, latest, earliest, last = n, -1, n, -1
        for lane in range(WIDTH):
            begins, ends = int(state[START + lane]), int(state[END + lane])
            latest, earliest, last = max(latest, begins), min(earliest, ends - 1), max(last, ends)
            if ends >= 0:
                first = min(first, begins)
        if last < 0:
            break
        start, end, shift, base = load(state, START), load(state, END), load(state, SHIFT), load(state, BASE)
        split, least, bottom, weight, weight_above, above, coupling = _step(
            first, latest, earliest, last, q, e, q_before, e_before, left, start, end, shift, base, allowed
        )
        live = zero <= end
        well = live & (zero <= least) & (zero <= bottom)
        failed = live & (select(well, one, zero) < half)
        taken = base + select(well, shift, zero)
        loose = allowed * taken
        gone = well & _negligible(coupling, above, allowed, loose)
        following, guessed = _next_shift(gone, least, bottom, weight, weight_above, above, trust, allowed, loose)
        if some(failed):
            _undo(first, last, failed, q, e, q_before, e_before)
            following = select(failed, _smaller_shift(shift, tries, least, bottom), following)
            trust = select(failed, spread(0.25), trust)
        trust = select(well & guessed, fused(spread(0.25), trust, spread(0.75)), trust)
        tries = select(failed, tries + one, zero)
        start = select(well, split, start)
        store(state, START, start)
        store(state, SHIFT, following)
        store(state, BASE, taken)
        if some(gone | (well & (end - start <= one))):
            settles = select(gone, one, select(well & (end - start <= one), half, zero))
            store(state, SETTLES, settles)
            for lane in range(WIDTH):
                if state[SETTLES + lane] > 0.0:
                    _settle(lane, state[SETTLES + lane] == 1.0, q, e, left, state)


@kernel
def _power_of_two(exponent: int) -> float:
    return math.ldexp(1.0, exponent)


@kernel
def _exponent_of(entries: Floats) -> int:
    """Give the e for which the largest entry over 2^e lies in [½, 1)."""
    zero = spread(0.0)
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
        rows = turned(
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
    A = np.empty(rows * columns * WIDTH)
    w, u = np.empty(columns * WIDTH), np.empty(columns * WIDTH)
    p, left = np.empty(columns * WIDTH), np.empty(columns * WIDTH)
    q, e = np.zeros((columns + 1) * WIDTH), np.zeros((columns + 1) * WIDTH)
    q_before, e_before = np.empty((columns + 1) * WIDTH), np.empty((columns + 1) * WIDTH)
    state, scale, flat = np.empty(STATE), np.empty(2 * WIDTH), matrices.reshape(matrices.size)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        several = min(WIDTH, batch - first)
        _fill(flat, first, several, m, n, A, scale, exponents)
        e[(columns - 1) * WIDTH :] = 0.0
        _to_squares(A, rows, columns, w, u, p, q, e)
        _converge(columns, q, e, q_before, e_before, left, state)
        for lane in range(several):
            if state[END + lane] >= 0.0:
                values[first + lane] = math.nan
                unfinished += 1
            else:
                _descending_roots(lane, q, values[first + lane])
    return unfinished


@kernel
def _descending_roots(lane: int, q: Floats, values: Floats) -> None:
    """Take a lane's square roots in descending order."""
    for k in range(values.size):
        value = math.sqrt(q[k * WIDTH + lane])
        at = k
        while at > 0 and values[at - 1] < value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value
