"""Differential quotient-difference steps with shifts, eight matrices at a time: from bidiagonal to singular values.

Fernando and Parlett, Numer. Math. 67 (1994) 191; the shifts are of our own making. A lane's operations are the same
whatever its neighbours hold, so a matrix has the same bits in any batch.
"""

from __future__ import annotations

import math
from typing import Any

from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, any_of, broadcast, fma, load, select, sqrt, store

__all__ = ["END", "STATE", "descending_sqrt", "dqds"]

# An off-diagonal entry under this share of the largest is left out: two ulp of σ₁.
TOLERANCE = 2.0**-51

# Where the state holds what is known of every lane: its block, the next shift, all shifts taken off the block so far,
# the square of what may be left out, and what is to be done about the block: nothing, 1 to take its last entry off, or
# ½ only to see whether it is done.
START, END, SHIFT, BASE, ALLOWED, SETTLES, STATE = range(0, 7 * WIDTH, WIDTH)

# Steps for each value, beyond which a matrix is left to LAPACK; spectra of every kind take two to ten.
PATIENCE = 30


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
    loose: Any,
) -> Any:
    """One differential quotient-difference step on the block start … end of each lane, with a shift of its own.

    What q and e held is kept in q_before and e_before. A block that falls apart leaves all but its last part behind,
    and in ``left`` at the end of each what has been taken off it. Gives where its last part starts, and for the choice
    of the next shift: the least d before the last, or the first that is negative; the last d; w = Σ x² over all but
    the last entry of the x = (…, 1) for which Bx is a multiple of the last unit vector, and the same for the block
    without its last entry; the entries above the last in q and e.
    """
    zero, one = broadcast(0.0), broadcast(1.0)
    least, above, coupling, weight, weight_above = broadcast(math.inf), zero, zero, zero, zero
    split, d = start, zero
    for k in range(first, last + 1):
        at = k * WIDTH
        index = broadcast(float(k))
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
            weight = fma(weight, share, share)
            store(q, at, total)
            apart = _negligible(new_e, total, allowed, loose)
            if any_of(apart):
                new_e, weight = select(apart, zero, new_e), select(apart, zero, weight)
                split = select(apart, index + one, split)
                store(left, at, select(apart, base + shift, load(left, at)))
            store(e, at, new_e)
            d = fma(d, ratio, zero - shift)
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
        weight = select(inside, fma(weight, share, share), weight)
        above, coupling = select(inside, total, above), select(inside, new_e, coupling)
        store(q, at, select(inside, total, select(index == end, d, old_q)))
        apart = inside & _negligible(new_e, total, allowed, loose) & (index + one < end)
        if any_of(apart):
            new_e, weight = select(apart, zero, new_e), select(apart, zero, weight)
            split = select(apart, index + one, split)
            store(left, at, select(apart, base + shift, load(left, at)))
        store(e, at, select(inside, new_e, old_e))
        d = select(inside, fma(d, ratio, zero - shift), d)
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
    zero, quarter = broadcast(0.0), broadcast(0.25) * shift
    wrong = select(least < zero, least, bottom)
    nearer = fma(select(tries == zero, broadcast(2.0), broadcast(8.0)), wrong, shift)
    nearer = select(quarter < nearer, nearer, quarter)
    smaller = select(tries < broadcast(2.0), nearer, select(tries < broadcast(3.0), quarter, zero))
    # Where the last entry alone went negative, it says by how much the shift was too large.
    late = (tries == zero) & (zero <= least) & (zero < shift + bottom)
    return select(late, (shift + bottom) * broadcast(1.0 - 2.0**-50), smaller)


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
    zero, one, much = broadcast(0.0), broadcast(1.0), broadcast(0.9)
    rho_above = above / (one + weight_above)
    w = select(gone, weight_above, weight)
    rho = select(gone, rho_above, bottom / (one + weight))
    lowest = select(gone | (least < bottom), least, bottom)
    shift = select(w < much, rho * (one - sqrt(w)), zero)
    gap = rho_above * (one - sqrt(weight_above)) - rho
    refined = rho - rho * rho * w / gap
    refines = (weight_above < much) & (zero < gap) & (shift < refined)
    shift = select(refines, select(gone, shift, refined), shift)
    guessed = (lowest < shift) | (shift <= broadcast(0.25) * rho)
    shift = select(guessed, trust * lowest, shift)
    smaller = select(rho < lowest, rho, lowest)
    return select((smaller <= allowed) | (smaller * smaller <= loose), zero, shift), guessed


@kernel
def _settle(lane: int, q: Floats, e: Floats, left: Floats, state: Floats) -> None:
    """Take the values that a lane's block gives up, and go on to the next block where it is done."""
    start, end, base = int(state[START + lane]), int(state[END + lane]), state[BASE + lane]
    if state[SETTLES + lane] == 1.0:
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
        state[START + lane], state[END + lane], state[SETTLES + lane] = float(n), float(n - 1), 0.5
        _settle(lane, q, e, left, state)


@kernel
def dqds(
    n: int, q: Floats, e: Floats, q_before: Floats, e_before: Floats, left: Floats, state: Floats, blur: float
) -> None:
    """Turn q, the squares of a bidiagonal matrix's diagonal (e: above it), into those of its singular values.

    The squares are known to 2⁻⁵¹·√blur of the largest only. The state's END is −1 for a lane of which all are found.
    """
    _begin(n, q, e, left, state)
    zero, one, half = broadcast(0.0), broadcast(1.0), broadcast(0.5)
    allowed, tries, trust = load(state, ALLOWED), zero, broadcast(0.25)
    blurred = allowed * broadcast(blur / (TOLERANCE * TOLERANCE))
    for _ in range(PATIENCE * n):
        # −n stands for none: Numba would compile a step once for −1 as a number of its own, and once more for any.
        first, latest, earliest, last = n, -n, n, -n
        for lane in range(WIDTH):
            begins, ends = int(state[START + lane]), int(state[END + lane])
            latest, earliest, last = max(latest, begins), min(earliest, ends - 1), max(last, ends)
            if ends >= 0:
                first = min(first, begins)
        if last < 0:
            break
        start, end, shift, base = load(state, START), load(state, END), load(state, SHIFT), load(state, BASE)
        split, least, bottom, weight, weight_above, above, coupling = _step(
            first,
            latest,
            earliest,
            last,
            q,
            e,
            q_before,
            e_before,
            left,
            start,
            end,
            shift,
            base,
            allowed,
            allowed * (base + shift + blurred),
        )
        live = zero <= end
        well = live & (zero <= least) & (zero <= bottom)
        failed = live & (select(well, one, zero) < half)
        taken = base + select(well, shift, zero)
        loose = allowed * (taken + blurred)
        gone = well & _negligible(coupling, above, allowed, loose)
        following, guessed = _next_shift(gone, least, bottom, weight, weight_above, above, trust, allowed, loose)
        if any_of(failed):
            _undo(first, last, failed, q, e, q_before, e_before)
            following = select(failed, _smaller_shift(shift, tries, least, bottom), following)
            trust = select(failed, broadcast(0.25), trust)
        trust = select(well & guessed, fma(broadcast(0.25), trust, broadcast(0.75)), trust)
        tries = select(failed, tries + one, zero)
        start = select(well, split, start)
        store(state, START, start)
        store(state, SHIFT, following)
        store(state, BASE, taken)
        if any_of(gone | (well & (end - start <= one))):
            settles = select(gone, one, select(well & (end - start <= one), half, zero))
            store(state, SETTLES, settles)
            for lane in range(WIDTH):
                if state[SETTLES + lane] > 0.0:
                    _settle(lane, q, e, left, state)


@kernel
def descending_sqrt(lane: int, q: Floats, values: Floats) -> None:
    """Take a lane's square roots in descending order."""
    for k in range(values.size):
        value = math.sqrt(q[k * WIDTH + lane])
        at = k
        while at > 0 and values[at - 1] < value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value
