"""Eigenvalues of one large tridiagonal matrix by bisection: many shifts together, several of them one a lane.

How many eigenvalues lie below a shift says on which side of it each one lies (Givens; Barth, Martin and Wilkinson,
Numer. Math. 9 (1967) 386). Each is found by itself, so that threads share them out, and to within the rounding of one
Sturm sequence. A quotient-difference step would leave seven lanes of a lone matrix empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast, broadcast_entry, fma, load, select, store

__all__ = ["NEGLIGIBLE", "SHIFTS", "bisect"]

# Shifts taken together: of four sequences one goes on while the others wait for their last operation.
SHIFTS = 4 * WIDTH

# From [0, highest] down to 2⁻⁵⁴ of it, which is under half the rounding of the largest eigenvalue.
HALVINGS = 54

# Entries beside the diagonal under this share of `highest` are left out, which moves eigenvalues by twice as much.
NEGLIGIBLE = 2.0**-55

# Determinants between looks at their size. They never grow: each is at most the sum of two that are neighbours, both
# times the determinant of a part of T − x, whose norm is below 1. Of two that follow each other the larger is at least
# 2⁻¹¹³ of the larger of the two before, since couplings are from 2⁻¹¹² on: four cannot bring it from SMALLEST to 0.
STRIDE = 4
SMALLEST = 2.0**-500


@kernel
def _rescaling(p: Any, before: Any) -> Any:
    """Give what brings two determinants that follow each other back near 1, by the sum of their squares."""
    small = fma(p, p, before * before) < broadcast(SMALLEST * SMALLEST)
    return select(small, broadcast(1.0 / SMALLEST), broadcast(1.0))


@kernel
def _counts_below(diagonal: Floats, couplings: Floats, shifts: Floats, counts: Floats) -> None:
    """Count the eigenvalues below each of SHIFTS shifts: the changes of sign of det(T₁ − x), det(T₂ − x), ….

    Those determinants of leading parts follow from one another without a division, and are those of a matrix whose
    entries are a few roundings away (Wilkinson, "The algebraic eigenvalue problem", 1965, ch. 5, §38), if none
    underflows. A coupling of zero begins a matrix of its own. A determinant of zero counts as positive: the next one's
    sign is then opposite to that before, and one change is counted either way.
    """
    zero, one = broadcast(0.0), broadcast(1.0)
    x0, x1, x2, x3 = load(shifts, 0), load(shifts, WIDTH), load(shifts, 2 * WIDTH), load(shifts, 3 * WIDTH)
    p0, p1, p2, p3 = one, one, one, one
    b0, b1, b2, b3 = zero, zero, zero, zero
    c0, c1, c2, c3 = zero, zero, zero, zero
    for first in range(0, diagonal.size, STRIDE):
        for k in range(first, min(first + STRIDE, diagonal.size)):
            if couplings[k] == 0.0:
                p0, p1, p2, p3 = one, one, one, one
            d, minus = broadcast_entry(diagonal, k), broadcast(-couplings[k])
            n0, n1 = fma(d - x0, p0, minus * b0), fma(d - x1, p1, minus * b1)
            n2, n3 = fma(d - x2, p2, minus * b2), fma(d - x3, p3, minus * b3)
            c0 = select((n0 < zero) ^ (p0 < zero), c0 + one, c0)
            c1 = select((n1 < zero) ^ (p1 < zero), c1 + one, c1)
            c2 = select((n2 < zero) ^ (p2 < zero), c2 + one, c2)
            c3 = select((n3 < zero) ^ (p3 < zero), c3 + one, c3)
            b0, b1, b2, b3 = p0, p1, p2, p3
            p0, p1, p2, p3 = n0, n1, n2, n3
        f0, f1, f2, f3 = _rescaling(p0, b0), _rescaling(p1, b1), _rescaling(p2, b2), _rescaling(p3, b3)
        p0, p1, p2, p3 = f0 * p0, f1 * p1, f2 * p2, f3 * p3
        b0, b1, b2, b3 = f0 * b0, f1 * b1, f2 * b2, f3 * b3
    store(counts, 0, c0)
    store(counts, WIDTH, c1)
    store(counts, 2 * WIDTH, c2)
    store(counts, 3 * WIDTH, c3)


@kernel
def bisect(diagonal: Floats, couplings: Floats, highest: float, first: int, eigenvalues: Floats) -> None:
    """Find the eigenvalues number ``first`` and following, SHIFTS of them, ascending from 0; all lie in 0 … highest.

    Of a matrix T with T[k, k] = diagonal[k] and T[k, k − 1]² = couplings[k], zero or at least NEGLIGIBLE² · highest²,
    where ``highest`` is from ½ to 1, or 0. Rounded down, so that an eigenvalue of zero is exactly that.
    """
    above, middle, counts = np.empty(SHIFTS), np.empty(SHIFTS), np.empty(SHIFTS)
    eigenvalues[:] = 0.0
    above[:] = highest
    for _ in range(HALVINGS):
        for i in range(SHIFTS):
            middle[i] = 0.5 * (eigenvalues[i] + above[i])
        _counts_below(diagonal, couplings, middle, counts)
        for i in range(SHIFTS):
            if counts[i] <= first + i:
                eigenvalues[i] = middle[i]
            else:
                above[i] = middle[i]
