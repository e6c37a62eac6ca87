"""Pairs of updates lie to each other as they are drawn to, and reach the limits given without passing them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core.testing import DTYPES, PAIR_KINDS, pairs_of_updates
from tests.drawing import drawn


def same(first, second):
    return first.shape == second.shape and np.array_equal(first, second)


def apart(one, other):
    return np.abs(one.B - other.B).max()


HOLDS = {
    "ordinary": lambda one, other: one.B.all() and not same(one.A, other.A) and not same(one.B, other.B),
    "one start": lambda one, other: same(one.A, other.A) and apart(one, other) > 1e-6,
    "near": lambda one, other: same(one.A, other.A) and 0 < apart(one, other) < 3,
    "equal": lambda one, other: same(one.A, other.A) and same(one.B, other.B) and one.B.all(),
    "opposite": lambda one, other: same(one.A, other.A) and same(one.B, -other.B) and one.B.all(),
    "zero": lambda one, other: one.A.all() and not one.B.any() and other.A.all() and not same(one.A, other.A),
}


def pair_drawn(condition, **limits):
    """Check that a pair is drawn that meets a condition."""
    drawn(pairs_of_updates(**{"dtypes": ["float64"]} | limits), lambda pair: condition(*pair))


def test_the_kinds_have_their_names():
    assert tuple(HOLDS) == PAIR_KINDS


@pytest.mark.parametrize("kind", HOLDS)
def test_pairs_lie_to_each_other_as_their_kind_says(kind):
    @given(pairs_of_updates(kinds=[kind], dtypes=["float64"]))
    def holds(pair):
        assert HOLDS[kind](*pair)

    holds()
    pair_drawn(HOLDS[kind])


def test_near_pairs_are_as_near_as_rounding_and_as_far_as_half():
    pair_drawn(lambda one, other: apart(one, other) < 1e-11, kinds=["near"])
    pair_drawn(lambda one, other: apart(one, other) > 0.5, kinds=["near"])


def test_of_a_zero_pair_one_is_zero_or_both_are():
    pair_drawn(lambda _, other: not other.B.any(), kinds=["zero"])
    pair_drawn(lambda _, other: other.B.all(), kinds=["zero"])


@given(pairs_of_updates(max_side=5, max_rank=3), st.sampled_from([0, 1]))
def test_pairs_stay_within_their_limits(pair, which):
    update, other = pair[which], pair[1 - which]
    assert update.shape == other.shape
    assert max(update.shape) <= 5
    assert update.rank <= min(*update.shape, 3)
    assert update.A.dtype == update.B.dtype
    assert update.dtype in DTYPES
    assert update.scaling == other.scaling


@given(pairs_of_updates())
def test_pairs_are_small_unless_asked_otherwise(pair):
    assert max(pair[0].shape) <= 8
    assert max(update.rank for update in pair) <= 4


@pytest.mark.parametrize("ranks", [(4, 1), (1, 4), (4, 4)])
def test_each_update_reaches_the_largest_rank(ranks):
    pair_drawn(lambda one, other: (one.rank, other.rank) == ranks, kinds=["ordinary"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (8, 8)])
def test_the_smallest_and_the_largest_sides_are_drawn(shape):
    pair_drawn(lambda one, _: one.shape == shape)


@pytest.mark.parametrize("scaling", [1.0, 0.25, -2.0, 16.0])
def test_each_scaling_is_drawn(scaling):
    pair_drawn(lambda one, _: one.scaling == scaling)


def test_each_update_has_a_dtype_of_its_own():
    pair_drawn(lambda one, other: (one.dtype, other.dtype) == ("bfloat16", "float32"), dtypes=["float32", "bfloat16"])
    pair_drawn(lambda one, other: (one.dtype, other.dtype) == ("float32", "bfloat16"), dtypes=["float32", "bfloat16"])
