"""Numbers rounded once: the nearest of the dtype's own, ties to the even one, however near a tie they are."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.rounding import includes, rounded, ulps_in

BITS = {"bfloat16": np.uint16, "float16": np.uint16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}


def all_numbers(dtype):
    """Every finite number of a dtype, ascending, as float64."""
    bits = np.arange(2 ** (8 * np.dtype(BITS[dtype]).itemsize), dtype=BITS[dtype])
    with np.errstate(invalid="ignore"):  # some are signalling NaN
        numbers = bits.view(getattr(ml_dtypes, dtype, dtype)).astype(np.float64)
    return np.unique(numbers[np.isfinite(numbers)])


@pytest.mark.parametrize("dtype", BITS)
def test_both_sides_of_every_tie(dtype):
    numbers = all_numbers(dtype)
    below, above = numbers[:-1], numbers[1:]
    ties = (below + above) / 2
    for side, expected in ((1, above), (-1, below)):
        beside = ties + side * np.abs(ties) * 2.0**-50
        assert np.array_equal(rounded(beside, dtype).astype(np.float64), expected)
    even = rounded(ties, dtype)
    assert (even.view(BITS[dtype]) % 2 == 0).all()
    assert np.all((even.astype(np.float64) == below) | (even.astype(np.float64) == above))
    assert np.array_equal(rounded(numbers, dtype).astype(np.float64), numbers)


@pytest.mark.parametrize("dtype", BITS)
def test_a_unit_in_the_last_place_is_the_distance_to_the_next_number(dtype):
    numbers = all_numbers(dtype)
    positive = numbers[numbers >= 0][:, np.newaxis]
    assert np.array_equal(ulps_in(positive[:-1], dtype), np.diff(positive, axis=0))
    assert np.array_equal(ulps_in(-positive, dtype), ulps_in(positive, dtype))


def test_infinity_and_nan_stay_what_they_are():
    special = rounded(np.array([np.inf, -np.inf, np.nan, 1e39, -1e300]), "bfloat16").astype(np.float64)
    assert np.array_equal(special, [np.inf, -np.inf, np.nan, np.inf, -np.inf], equal_nan=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", *BITS])
@pytest.mark.parametrize("other", BITS)
def test_a_dtype_that_includes_another_has_all_its_numbers(dtype, other):
    numbers = all_numbers(other)
    if includes(dtype, other):
        assert np.array_equal(rounded(numbers, dtype).astype(np.float64), numbers)
    else:
        assert dtype in BITS
