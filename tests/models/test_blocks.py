import math

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
import pytest

from lowrank_core.models.norms import difference, difference_dtype, frobenius_norm, row_blocks, subtracted


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_norm_neither_overflows_nor_underflows(scale):
    assert frobenius_norm(np.full((4, 4), scale)) == pytest.approx(4 * scale, rel=1e-15)


def test_the_norm_of_half_precision_is_taken_in_float64():
    # The squares of these add up to beyond float16's 65504, and would stop growing at 2048 if they were added in it.
    assert frobenius_norm(np.ones((300, 300), np.float16)) == 300.0
    assert frobenius_norm(np.array(-3.0, np.float16)) == 3.0
    assert frobenius_norm(np.zeros((0, 3))) == 0.0


def test_row_blocks_cover_every_row_once():
    blocks = row_blocks((10, 7), entries=21)
    assert [list(range(10))[block] for block in blocks] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(row_blocks((3, 100), entries=10)) == 3


def test_the_norm_of_a_signalling_nan_is_nan_without_a_warning():
    assert math.isnan(frobenius_norm(np.array([[0x7FA00000, 0]], dtype=np.uint32).view(np.float32)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_difference_is_that_of_the_numbers_and_not_of_the_stored_dtype(rng, dtype):
    # Unrelated weights: where two are within a factor of two of each other, even a subtraction in bfloat16 is exact.
    base, tuned = (0.02 * rng.standard_normal((2, 64, 48))).astype(np.dtype(dtype))
    exact = tuned.astype(np.float64) - base.astype(np.float64)
    delta = difference(base, tuned)
    assert delta.dtype == np.float32
    assert np.all(np.abs(delta - exact) <= 2.0**-24 * np.abs(exact))
    if dtype != "float32":
        stored = (tuned - base).astype(np.float64)
        assert np.any(np.abs(stored - exact) > 1e-4 * np.abs(exact))


def test_the_difference_of_double_precision_is_in_double_precision(rng):
    base, tuned = rng.standard_normal((2, 3, 4))
    delta = difference(base, tuned.astype(np.float32))
    assert delta.dtype == np.float64
    assert np.array_equal(delta, tuned.astype(np.float32) - base)


def test_the_difference_does_not_depend_on_its_blocks(rng):
    base, tuned = rng.standard_normal((2, 1100, 1024)).astype(np.float32)
    assert np.array_equal(difference(base, tuned), (tuned.astype(float) - base.astype(float)).astype(np.float32))


def test_a_weight_that_is_not_finite_names_its_checkpoint():
    good, bad = np.ones((2, 2), np.float32), np.full((2, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"^the tuned checkpoint contains NaN or infinity in 4 of its 4 entries"):
        difference(good, bad)
    with pytest.raises(ValueError, match=r"^the base checkpoint"):
        difference(np.full((2, 2), np.inf, np.float32), np.full((2, 2), np.inf, np.float32))
    with pytest.raises(ValueError, match="does not fit float32"):
        difference(np.full((2, 2), -3e38, np.float32), np.full((2, 2), 3e38, np.float32))


@pytest.mark.parametrize("dtypes", [("bfloat16", "float16"), ("float32", "float32"), ("float16", "float64")])
@pytest.mark.parametrize("into", [False, True])
def test_rows_are_subtracted_block_by_block_whatever_memory_is_used_again(dtypes, into, rng):
    base, tuned = (rng.standard_normal((11, 3, 5)).astype(np.dtype(dtype)) for dtype in dtypes)
    dtype = difference_dtype(*dtypes)
    assert dtype == (np.float64 if "float64" in dtypes else np.float32)
    expected = tuned.astype(dtype) - base.astype(dtype)
    # Blocks of four rows, and what is left; one of them is not finite.
    tuned[5, 1, 2] = np.nan
    rows = [slice(start, min(start + 4, 11)) for start in range(0, 11, 4)]
    out = np.zeros(base.shape, dtype) if into else None
    found = subtracted(((base[each], tuned[each]) for each in rows), dtype, out)
    for each, (before, delta, is_finite) in zip(rows, found, strict=True):
        assert np.array_equal(before, base[each].astype(dtype))
        assert is_finite == (each.start != 4)
        assert np.array_equal(np.where(np.isnan(delta), expected[each], delta), expected[each])
        assert np.count_nonzero(np.isnan(delta)) == (not is_finite)
        assert out is None or np.shares_memory(delta, out[each])
