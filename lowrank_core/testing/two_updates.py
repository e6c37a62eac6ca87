"""A strategy that draws two updates of one shape, for what compares updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from lowrank_core._dtypes import as_dtype
from lowrank_core.testing.strategies import DTYPES
from lowrank_core.updates import LowRankUpdate

__all__ = ["PAIR_KINDS", "pairs_of_updates"]

#: How two updates lie to each other. Those of one start have the same A, "near" ones differ by a drawn power of two,
#: and of "zero" ones at least the first is zero.
PAIR_KINDS = ("ordinary", "one start", "near", "equal", "opposite", "zero")


@st.composite
def pairs_of_updates(
    draw: st.DrawFn,
    *,
    max_side: int = 8,
    max_rank: int = 4,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[str] = PAIR_KINDS,
) -> tuple[LowRankUpdate, LowRankUpdate]:
    """Draw two updates in factored form, of one shape and of ranks up to min(m, n), with Gaussian factors.

    Parameters
    ----------
    max_side, max_rank : int
        Largest m and n, and largest r.
    dtypes, kinds : sequence of str
        From :data:`DTYPES` and :data:`PAIR_KINDS`; each update has a dtype of its own.

    Returns
    -------
    SearchStrategy of (LowRankUpdate, LowRankUpdate)

    See Also
    --------
    low_rank_updates : One update, with factors that are hard to decompose.

    Examples
    --------
    >>> from hypothesis import given
    >>> from lowrank_core import compare
    >>> from lowrank_core.testing import pairs_of_updates
    >>> @given(pairs_of_updates(kinds=["zero"]))
    ... def test_a_zero_update_overlaps_with_nothing(pair):
    ...     assert compare(*pair).cosine == 0
    >>> test_a_zero_update_overlaps_with_nothing()
    """
    m, n = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    ranks = [draw(st.integers(1, min(m, n, max_rank))) for _ in "12"]
    kind = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind in ("one start", "near", "equal", "opposite"):
        ranks[1] = ranks[0]
    (B, A), (other_B, other_A) = ((rng.standard_normal((m, r)), rng.standard_normal((r, n))) for r in ranks)
    if kind == "one start":
        other_A = A
    elif kind == "near":
        other_B, other_A = B + 2.0 ** -draw(st.integers(1, 40)) * other_B, A
    elif kind in ("equal", "opposite"):
        other_B, other_A = (B if kind == "equal" else -B), A
    elif kind == "zero":
        B, other_B = np.zeros_like(B), other_B * draw(st.sampled_from([0.0, 1.0]))
    types = [as_dtype(draw(st.sampled_from(dtypes))) for _ in "12"]
    scaling = draw(st.sampled_from([1.0, 0.25, -2.0, 16.0]))
    return (
        LowRankUpdate(B.astype(types[0]), A.astype(types[0]), scaling),
        LowRankUpdate(other_B.astype(types[1]), other_A.astype(types[1]), scaling),
    )
