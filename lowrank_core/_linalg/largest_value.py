"""The largest singular value of a large matrix, to within a proven fraction."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.certificate import ENERGY_ROUNDING, outside_bound
from lowrank_core._linalg.krylov import BLOCK, FAILURE_PROBABILITY
from lowrank_core._linalg.narrow_products import tall_matrix
from lowrank_core._linalg.search_space import SearchSpace, orthonormalised
from lowrank_core._linalg.threads import Team, blas_threads

__all__ = ["largest_singular_value"]

# The fraction by which the value may be too small. Of Gaussian entries, which have no gap, seven blocks show this at
# 2,048²; a smaller one costs more blocks than the two or three digits of a report are worth.
TOLERANCE = 0.05

# Blocks that a search space is made for at first.
USUAL_BLOCKS = 8


def largest_singular_value(matrix: NDArray[Any], workers: int) -> float:
    r"""Compute the largest singular value of a matrix, from below.

    The square root of the largest Ritz value of XᵀX in a Krylov space from a Gaussian block. The space grows until the
    bound of :func:`outside_bound`, for a space that nothing is deflated from, shows that the value is at most
    `TOLERANCE` too small, except with probability `FAILURE_PROBABILITY`.
    """
    rng = np.random.default_rng(0)
    with blas_threads(1), Team(workers) as team:
        X, energy = tall_matrix(matrix, team)
        rounding = ENERGY_ROUNDING * X.eps * energy
        space = SearchSpace(X, USUAL_BLOCKS * BLOCK)
        block = orthonormalised(rng.standard_normal((min(BLOCK, X.columns), X.columns)))[0]
        for blocks in itertools.count(1):
            space.extend(block)
            square = max(float(np.linalg.eigvalsh(space.projection)[-1]), 0.0)
            if space.is_full:
                break
            # One block alone shows nothing.
            if blocks > 1:
                bound = outside_bound(square + rounding, energy + rounding, BLOCK, blocks, FAILURE_PROBABILITY)
                if bound <= (1 + TOLERANCE) ** 2 * square + rounding:
                    break
            block = space.gram_block
    return math.ldexp(math.sqrt(square), X.exponent)
