"""Eigenvalues of one large tridiagonal matrix by bisection: many shifts together, each in a lane.

How many eigenvalues are below a shift says on which side of it each one is (Givens; Barth, Martin and Wilkinson, Numer.
Math. 9 (1967) 386). Each is found by itself, so that threads share them, and to within the rounding of one Sturm
sequence. dqds would leave seven lanes of a lone matrix empty.
"""

from __future__ import annotations

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast, fma, load_entry, load_rows, select, store_rows

__all__ = ["NEGLIGIBLE", "SHIFTS", "bisect"]

# Shifts taken together, as a tile of four rows: of four sequences one goes on while the others wait for their last
# operation.
ROWS = 4
SHIFTS = ROWS * WIDTH

# From [0, highest] down to 2⁻⁵⁴ of it, which is below half the rounding of the largest eigenvalue.
HALVINGS = 54

# Entries beside the diagonal below this fraction of `highest` are left out: eigenvalues move by twice as much.
NEGLIGIBLE = 2.0**-55

# Determinants between tests of their size. They never grow: each is at most the sum of two that are neighbours, both
# times the determinant of a part of T − x, whose norm is below 1. Of two that follow each other the larger is at least
# 2⁻¹¹³ of the larger of the two before, since couplings are from 2⁻¹¹² on: four cannot bring it from SMALLEST to 0.
STRIDE = 4
SMALLEST = 2.0**-500


@kernel
def _counts_below(diagonal: Floats, couplings: Floats, shifts: Floats, counts: Floats) -> None:
    """Count the eigenvalues below each of SHIFTS shifts: the changes of sign of det(T₁ − x), det(T₂ − x), ….

    Those determinants of leading parts follow from one another without a division, and are those of a matrix whose
    entries are a few roundings away (Wilkinson, "The algebraic eigenvalue problem", 1965, ch. 5, §38), if none
    underflows. A coupling of zero begins a matrix of its own. A determinant of zero counts as positive: the next one's
    sign is then opposite to that before, and one change is counted either way.
    """
    one, zero = broadcast(1.0, WIDTH, ROWS), broadcast(0.0, WIDTH, ROWS)
    x, p, before, count = load_rows(shifts, 0, WIDTH, ROWS), one, zero, zero
    for start in range(0, diagonal.size, STRIDE):
        for k in range(start, min(start + STRIDE, diagonal.size)):
            coupling = load_entry(couplings, k)
            if coupling == 0.0:
                p = one
            following = fma(load_entry(diagonal, k) - x, p, -coupling * before)
            count = select((following < 0.0) ^ (p < 0.0), count + 1.0, count)
            before, p = p, following
        small = fma(p, p, before * before) < SMALLEST * SMALLEST
        factor = select(small, 1.0 / SMALLEST, 1.0)
        p, before = factor * p, factor * before
    store_rows(counts, 0, WIDTH, count)


@kernel
def bisect(diagonal: Floats, couplings: Floats, highest: float, first: int, eigenvalues: Floats) -> None:
    """Find the eigenvalues number ``first`` and following, SHIFTS of them, ascending from 0; all are in 0 … highest.

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
