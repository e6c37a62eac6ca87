"""Hypothesis strategies and verifiers for spectra and low-rank updates, for use in other projects' tests too.

The strategies build matrices from drawn singular values, so that they include what breaks a decomposition: zero,
repeated, clustered, deficient and steeply graded spectra, subnormal numbers and numbers near overflow, in each dtype
and memory layout. The verifiers bound residuals as LAPACK's own tests do, by c·max(m, n)·eps·‖Δ‖.

Examples
--------
A property of your own routine takes three lines:

>>> import numpy as np
>>> from hypothesis import given
>>> from lowrank_core.testing import assert_spectrum, updates
>>> @given(updates(dtypes=["float64"]))
... def test_my_svd(update):
...     assert_spectrum(update, np.linalg.svd(update, compute_uv=False))
>>> test_my_svd()
"""

from lowrank_core.testing.strategies import (
    DTYPES,
    FACTOR_KINDS,
    KINDS,
    LAYOUTS,
    kronecker_updates,
    low_rank_updates,
    ranks_for,
    spectra,
    stacks_of_updates,
    updates,
)
from lowrank_core.testing.two_updates import PAIR_KINDS, pairs_of_updates
from lowrank_core.testing.verifiers import assert_eckart_young, assert_same_update, assert_spectrum

__all__ = [
    "DTYPES",
    "FACTOR_KINDS",
    "KINDS",
    "LAYOUTS",
    "PAIR_KINDS",
    "assert_eckart_young",
    "assert_same_update",
    "assert_spectrum",
    "kronecker_updates",
    "low_rank_updates",
    "pairs_of_updates",
    "ranks_for",
    "spectra",
    "stacks_of_updates",
    "updates",
]
