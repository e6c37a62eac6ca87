"""The dqds algorithm with shifts, for eight matrices at a time: from bidiagonal matrices to their singular values.

Fernando and Parlett, Numer. Math. 67 (1994) 191; the names are those of LAPACK's xLASQ2 … xLASQ6, the choice of shifts
is our own. No lane changes another, so that a matrix has the same bits in any batch.
"""

from __future__ import annotations

import math
from typing import Any

from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, any_of, broadcast, fma, load, select, sqrt, store

__all__ = ["N0", "STATE", "dqds", "write_values"]

# An off-diagonal entry below this fraction of the largest is negligible: two ulp of σ₁.
TOL = 2.0**-51

# Rows of the state, which has a number a lane: the first and last row of its block, the next shift and the sum of those
# before, the square of what is negligible, and whether the block's last entry has converged (1), or it may be done (½).
I0, N0, TAU, SIGMA, TOL2, DEFLATE, STATE = range(0, 7 * WIDTH, WIDTH)

# Steps for each value beyond which a matrix is left to LAPACK, which has the same limit; spectra of every kind take two
# to ten.
NBIG = 30


@kernel
def _step(rows: Any, arrays: Any, block: Any) -> Any:
    """Take one dqds step on the block i0 … n0 of each lane, with a shift of its own; q_old and e_old keep q and e.

    All lanes have the rows after the latest i0 and before the earliest n0 − 1. A block that splits leaves all but its
    last part behind, with its shifts' sum in ``sigmas`` at the end of each. Returns where the last part starts, and for
    the next shift: the least d before the last, or the first that is negative; the last d; a2 = Σ x² over all but the
    last entry of the x = (…, 1) for which B x is a multiple of the last unit vector, and the same for the block without
    its last entry; q and e above the last.
    """
    first, latest, earliest, last = rows
    q, e, q_old, e_old, sigmas = arrays
    i0, n0, tau, sigma, tol2, shifted_tol2 = block
    zero = broadcast(0.0)
    bounds, start = (i0, n0), i0
    found = broadcast(math.inf), zero, zero, zero, zero, zero
    for k in range(first, last + 1):
        at = k * WIDTH
        q_row, e_row = load(q, at), load(e, at)
        store(q_old, at, q_row)
        store(e_old, at, e_row)
        if latest < k < earliest:
            found, q_row, e_row, e_inside = _row(k, q_row, e_row, load(q, at + WIDTH), tau, None, found)
        else:
            found, q_row, e_row, e_inside = _row(k, q_row, e_row, load(q, at + WIDTH), tau, bounds, found)
        store(q, at, q_row)
        splits = _negligible(e_inside, q_row, tol2, shifted_tol2)
        if any_of(splits):
            dmin, d, a2, a2_above, q_above, e_above = found
            found = dmin, d, select(splits, 0.0, a2), a2_above, q_above, e_above
            e_row, start = select(splits, 0.0, e_row), select(splits, float(k + 1), start)
            store(sigmas, at, select(splits, sigma + tau, load(sigmas, at)))
        store(e, at, e_row)
    return start, *found


@kernel
def _row(k: int, q_row: Any, e_row: Any, q_next: Any, tau: Any, bounds: Any, found: Any) -> Any:
    """Transform a row of blocks, which have the ``bounds`` i0 and n0.

    Where all lanes have the row, bounds are None: Numba compiles that by itself, and every mask drops out.
    """
    dmin, d, a2, a2_above, q_above, e_above = found
    inside = splittable = ends = broadcast(0.0) == 0.0
    if bounds is not None:
        (i0, n0), row = bounds, float(k)
        inside, ends = (i0 <= row) & (row < n0), row == n0
        splittable = inside & (row + 1.0 < n0)
        d = select(row <= i0, q_row - tau, d)
    dmin = select(inside & (dmin >= 0.0), select(dmin < d, dmin, d), dmin)
    new_q = d + e_row
    inverse = 1.0 / new_q
    ratio = q_next * inverse
    new_e = e_row * ratio
    fraction = new_e * inverse
    a2_above = select(inside, a2, a2_above)
    a2 = select(inside, fma(a2, fraction, fraction), a2)
    q_above, e_above = select(inside, new_q, q_above), select(inside, new_e, e_above)
    q_row, e_row = select(inside, new_q, select(ends, d, q_row)), select(inside, new_e, e_row)
    d = select(inside, fma(d, ratio, 0.0 - tau), d)
    return (dmin, d, a2, a2_above, q_above, e_above), q_row, e_row, select(splittable, new_e, math.inf)


@kernel
def _negligible(e: Any, q: Any, tol2: Any, shifted_tol2: Any) -> Any:
    """Whether √e below q is within the tolerance, or the change of a σ² by it within that of a shifted block."""
    return (e <= tol2) | (e * select(q < e, e, q) <= shifted_tol2)


@kernel
def _restore(first: int, last: int, failed: Any, q: Floats, e: Floats, q_old: Floats, e_old: Floats) -> None:
    """Undo the step of the lanes in which it failed."""
    for at in range(first * WIDTH, (last + 1) * WIDTH, WIDTH):
        store(q, at, select(failed, load(q_old, at), load(q, at)))
        store(e, at, select(failed, load(e_old, at), load(e, at)))


@kernel
def _smaller_shift(tau: Any, nfail: Any, dmin: Any, dn: Any) -> Any:
    """Return another shift for a step in which a d became negative, as in ``nfail`` steps before it."""
    quarter = 0.25 * tau
    negative = select(dmin < 0.0, dmin, dn)
    nearer = fma(select(nfail == 0.0, 2.0, 8.0), negative, tau)
    nearer = select(quarter < nearer, nearer, quarter)
    smaller = select(nfail < 2.0, nearer, select(nfail < 3.0, quarter, 0.0))
    # Where the last d alone became negative, it says by how much the shift was too large.
    late = (nfail == 0.0) & (dmin >= 0.0) & (tau + dn > 0.0)
    return select(late, (tau + dn) * (1.0 - 2.0**-50), smaller)


@kernel
def _next_shift(
    deflated: Any, dmin: Any, dn: Any, a2: Any, a2_above: Any, q_above: Any, g: Any, tol2: Any, shifted_tol2: Any
) -> Any:
    """Return a shift near the smallest eigenvalue of a block, seldom beyond, and whether it is a mere guess.

    The Rayleigh quotient ρ of x leaves a residual of ρ√a2: some eigenvalue is no further from it, and the smallest is
    within ρ²a2 over the distance to the next (Parlett, "The symmetric eigenvalue problem", §4.5, §11.7). Every d bounds
    it from above; where the residual says nothing, the fraction ``g`` of the least d is tried, which grows while it
    succeeds. An eigenvalue as small as what is negligible has converged, and a shift would only fail.
    """
    rho_above = q_above / (1.0 + a2_above)
    ratio2 = select(deflated, a2_above, a2)
    rho = select(deflated, rho_above, dn / (1.0 + a2))
    lowest = select(deflated | (dmin < dn), dmin, dn)
    tau = select(ratio2 < 0.9, rho * (1.0 - sqrt(ratio2)), 0.0)
    gap = rho_above * (1.0 - sqrt(a2_above)) - rho
    refined = rho - rho * rho * ratio2 / gap
    refines = (a2_above < 0.9) & (gap > 0.0) & (tau < refined)
    tau = select(refines, select(deflated, tau, refined), tau)
    guessed = (lowest < tau) | (tau <= 0.25 * rho)
    tau = select(guessed, g * lowest, tau)
    smaller = select(rho < lowest, rho, lowest)
    return select((smaller <= tol2) | (smaller * smaller <= shifted_tol2), 0.0, tau), guessed


@kernel
def _deflate(lane: int, q: Floats, e: Floats, sigmas: Floats, state: Floats) -> None:
    """Deflate a lane's block by the values that have converged, and go on to the next block where it is done."""
    i0, n0, sigma = int(state[I0 + lane]), int(state[N0 + lane]), state[SIGMA + lane]
    if state[DEFLATE + lane] == 1.0:
        q[n0 * WIDTH + lane] += sigma
        n0 -= 1
    while n0 >= 0:
        at = n0 * WIDTH + lane
        above = at - WIDTH
        if i0 > n0:
            i0 = n0
            while i0 > 0 and e[(i0 - 1) * WIDTH + lane] > 0.0:
                i0 -= 1
            sigma = sigmas[at]
            state[TAU + lane] = 0.0
        elif i0 == n0:
            q[at] += sigma
            n0 -= 1
        elif i0 == n0 - 1:
            a, b, c = q[above], e[above], q[at]
            largest = 0.5 * ((a + b + c) + math.sqrt((a + b - c) * (a + b - c) + 4.0 * b * c))
            q[above] = largest + sigma
            q[at] = c * (a / largest) + sigma
            n0 -= 2
        else:
            break
    state[I0 + lane], state[N0 + lane], state[SIGMA + lane] = float(i0), float(n0), sigma


@kernel
def _initialise(n: int, q: Floats, e: Floats, sigmas: Floats, state: Floats) -> None:
    """Set to zero what is negligible from the outset, and find the last block of each lane."""
    for lane in range(WIDTH):
        largest = 0.0
        for at in range(lane, n * WIDTH, WIDTH):
            largest = max(largest, q[at], e[at])
            sigmas[at] = 0.0
        # Without √e no singular value moves by more than that: two ulp of σ₁.
        tol2 = largest * TOL * TOL
        for at in range(lane, n * WIDTH, WIDTH):
            if e[at] <= tol2:
                e[at] = 0.0
        state[TOL2 + lane], state[DEFLATE + lane] = tol2, 0.5
        # An empty block, from which to go on to the first.
        state[I0 + lane], state[N0 + lane] = float(n), float(n - 1)
        _deflate(lane, q, e, sigmas, state)


@kernel
def dqds(
    n: int, q: Floats, e: Floats, q_old: Floats, e_old: Floats, sigmas: Floats, state: Floats, blur: float
) -> None:
    """Replace q, the squares of a bidiagonal matrix's diagonal (e: those above it), by those of its singular values.

    All are (rows, lanes), flattened. The squares are known to 2⁻⁵¹·√blur of the largest only; N0 is −1 where all
    converged.
    """
    _initialise(n, q, e, sigmas, state)
    tol2, nfail, g = load(state, TOL2), broadcast(0.0), broadcast(0.25)
    blurred, arrays = tol2 * (blur / (TOL * TOL)), (q, e, q_old, e_old, sigmas)
    for _ in range(NBIG * n):
        # −n stands for none: Numba would compile a step once for −1 as a number of its own, and once more for any.
        first, latest, earliest, last = n, -n, n, -n
        for lane in range(WIDTH):
            starts, ends = int(state[I0 + lane]), int(state[N0 + lane])
            latest, earliest, last = max(latest, starts), min(earliest, ends - 1), max(last, ends)
            if ends >= 0:
                first = min(first, starts)
        if last < 0:
            break
        i0, n0, tau, sigma = load(state, I0), load(state, N0), load(state, TAU), load(state, SIGMA)
        block = i0, n0, tau, sigma, tol2, tol2 * (sigma + tau + blurred)
        start, dmin, dn, a2, a2_above, q_above, e_above = _step((first, latest, earliest, last), arrays, block)
        succeeded = (n0 >= 0.0) & (dmin >= 0.0) & (dn >= 0.0)
        failed, sigma = (n0 >= 0.0) ^ succeeded, sigma + select(succeeded, tau, 0.0)
        shifted_tol2 = tol2 * (sigma + blurred)
        deflated = succeeded & _negligible(e_above, q_above, tol2, shifted_tol2)
        tau_next, guessed = _next_shift(deflated, dmin, dn, a2, a2_above, q_above, g, tol2, shifted_tol2)
        if any_of(failed):
            _restore(first, last, failed, q, e, q_old, e_old)
            tau_next = select(failed, _smaller_shift(tau, nfail, dmin, dn), tau_next)
            g = select(failed, 0.25, g)
        g = select(succeeded & guessed, fma(0.25, g, 0.75), g)
        nfail, i0 = select(failed, nfail + 1.0, 0.0), select(succeeded, start, i0)
        store(state, I0, i0)
        store(state, TAU, tau_next)
        store(state, SIGMA, sigma)
        done = succeeded & (n0 - i0 <= 1.0)
        if any_of(deflated | done):
            store(state, DEFLATE, select(deflated, 1.0, select(done, 0.5, 0.0)))
            for lane in range(WIDTH):
                if state[DEFLATE + lane] > 0.0:
                    _deflate(lane, q, e, sigmas, state)


@kernel
def write_values(first: int, q: Floats, state: Floats, values: Floats) -> int:
    """Write the lanes' square roots, descending, to rows from ``first`` on; return how many did not converge: NaN."""
    unfinished = 0
    for lane in range(min(WIDTH, values.shape[0] - first)):
        row = values[first + lane]
        if state[N0 + lane] >= 0.0:
            row[:] = math.nan
            unfinished += 1
            continue
        for k in range(row.size):
            value, at = math.sqrt(q[k * WIDTH + lane]), k
            while at > 0 and row[at - 1] < value:
                row[at] = row[at - 1]
                at -= 1
            row[at] = value
    return unfinished
