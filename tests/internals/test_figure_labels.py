"""Labels at the end of a figure's lines, and the ranks named on an axis: none overlaps another."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from lowrank_core._figures import _apart, _spread


@given(st.lists(st.floats(0, 100), max_size=8).map(sorted))
@example([75.0, 91.0, 99.0, 100.0])
@example([0.0, 1.0, 14.0])
def test_labels_are_spread_in_order_and_within_the_panel(heights):
    placed = _spread(np.array(heights), 10.0, 0.0, 100.0)
    assert np.all(np.diff(placed) >= 10.0 - 1e-9)
    assert np.all((placed >= -1e-9) & (placed <= 100.0 + 1e-9))


def test_labels_that_do_not_touch_stay_where_they_are():
    np.testing.assert_array_equal(_spread(np.array([10.0, 30.0, 90.0]), 10.0, 0.0, 100.0), [10.0, 30.0, 90.0])
    np.testing.assert_allclose(_spread(np.array([50.0, 52.0]), 10.0, 0.0, 100.0), [46.0, 56.0])


def test_ranks_too_near_to_read_are_left_out_and_the_last_stays():
    assert sorted(_apart([2, 4, 8, 16, 32, 48, 64])) == [2, 4, 8, 16, 32, 64]
