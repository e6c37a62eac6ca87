"""Messages about pairs and combinations of updates, whole: what was given, what is wrong with it, what to do."""

import numpy as np
import pytest

from lowrank_core import (
    KroneckerUpdate,
    LowRankUpdate,
    compare,
    low_rank_hadamard,
    low_rank_sum,
    low_rank_tucker,
    spectrum,
    style_update,
)

ONES = LowRankUpdate(np.ones((4, 1)), np.ones((1, 3)))
HUGE = LowRankUpdate(np.full((4, 1), 1e300), np.full((1, 3), 1e300))
UP, MID, DOWN = np.ones((4, 2)), np.ones((2, 3, 5)), np.ones((3, 3))

FACTORS = "a LowRankUpdate is accepted. Give its two factors, or its best update of a rank, truncate(update, rank)."
NOT_FINITE = (
    "contains nan at row 0, column 0; every entry must be finite. Look for a diverged layer or an overflow of the "
    "stored dtype."
)
A_MATRIX = "a matrix (m, n) or a stack (..., m, n) is needed. Reshape a vector to one row or one column."
DTYPES = "accepted are float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, integers and booleans."

MESSAGES = {
    f"first is a ndarray; {FACTORS}": lambda: low_rank_hadamard(np.ones((4, 3)), ONES),
    f"second is a ndarray; {FACTORS}": lambda: low_rank_hadamard(ONES, np.ones((4, 3))),
    f"updates[1] is a float; {FACTORS}": lambda: low_rank_sum([ONES, 1.0]),
    "mid has shape (2, 3, 5); with up of shape (4, 2) and down of shape (2, 3) it is (..., r, s, k), r = 2 and s = 2. "
    "Flatten the axes of its kernel to one, for example with mid.reshape(2, 2, -1).": lambda: low_rank_tucker(
        UP, MID, np.ones((2, 3))
    ),
    f"up {NOT_FINITE}": lambda: low_rank_tucker(UP * np.nan, MID, DOWN),
    f"mid {NOT_FINITE}": lambda: low_rank_tucker(UP, MID * np.nan, DOWN),
    f"down {NOT_FINITE}": lambda: low_rank_tucker(UP, MID, DOWN * np.nan),
    f"up has shape (4,); {A_MATRIX}": lambda: low_rank_tucker(np.ones(4), MID, DOWN),
    f"down has shape (3,); {A_MATRIX}": lambda: low_rank_tucker(UP, MID, np.ones(3)),
    f"mid has unsupported dtype complex128; {DTYPES} Pass its .real or its .imag.": lambda: low_rank_tucker(
        UP, MID.astype(complex), DOWN
    ),
    "the batch axes of up (2,) and mid (3,) and down (5,) do not broadcast; pass all with the same.": (
        lambda: low_rank_tucker(np.ones((2, 4, 2)), np.ones((3, 2, 3, 5)), np.ones((5, 3, 3)))
    ),
    "first has shape (4, 3) and second (3, 4); two updates of one shape (m, n) are needed, as two adapters have for "
    "one module. Pass the transpose of one that is stored transposed.": lambda: compare(ONES, np.ones((3, 4))),
    f"first {NOT_FINITE}": lambda: compare(np.full((4, 3), np.nan), ONES),
    f"second {NOT_FINITE}": lambda: compare(ONES, np.full((4, 3), np.nan)),
    "the Hadamard product does not fit float64 (beyond 1.8e308); divide an update by a power of two first.": (
        lambda: low_rank_hadamard(HUGE, HUGE)
    ),
    "the product does not fit float64 (beyond 1.8e308); divide a factor by a power of two first.": (
        lambda: low_rank_tucker(1e300 * UP, 1e300 * MID, 1e300 * DOWN)
    ),
    "the weighted sum does not fit float64 (beyond 1.8e308); take smaller weights.": (
        lambda: low_rank_sum([HUGE, HUGE], [1e300, 1.0])
    ),
    "a singular value of the update does not fit float64 (beyond 1.8e308); divide the update by a power of two "
    "first.": lambda: spectrum(np.full((2, 2), 1e308)),
    f"B of first {NOT_FINITE}": lambda: compare(LowRankUpdate(np.full((4, 1), np.nan), np.ones((1, 3))), ONES),
    f"x has unsupported dtype complex128; {DTYPES} Pass its .real or its .imag.": (
        lambda: KroneckerUpdate(UP, DOWN).apply(np.ones(6, complex))
    ),
    "scaling is one number for all updates of the stack; got [1, 2].": lambda: KroneckerUpdate(UP, DOWN, [1, 2]),
    "scaling must be finite; got nan.": lambda: KroneckerUpdate(UP, DOWN, np.nan),
    f"left has shape (4,); {A_MATRIX}": lambda: KroneckerUpdate(np.ones(4), DOWN),
    f"right has shape (4,); {A_MATRIX}": lambda: KroneckerUpdate(UP, np.ones(4)),
    "noise is one standard deviation for all entries; got [1, 2].": lambda: style_update(4, 4, noise=[1, 2], rng=0),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_this(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        MESSAGES[message]()
    assert str(error.value) == message
