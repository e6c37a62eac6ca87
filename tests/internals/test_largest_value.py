"""The largest singular value of a large matrix: from below, and no further below than is proven."""

from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.repeated import rotated, stepped_values
from lowrank_core._linalg.largest_value import TOLERANCE, largest_singular_value
from lowrank_core._linalg.narrow_products import TallMatrix
from lowrank_core.models import norms

COUNT = 192


@given(stepped_values(COUNT), st.sampled_from(["float64", "float32"]), st.integers(0, 2**32))
def test_the_value_is_from_below_and_within_its_tolerance(values, dtype, seed):
    matrix = rotated(values, seed, dtype)
    largest = np.linalg.norm(matrix.astype(np.float64), 2)
    rounding = 10 * COUNT * np.finfo(dtype).eps
    assert largest / (1 + TOLERANCE) <= largest_singular_value(matrix, 1) <= largest * (1 + rounding)


def test_of_gaussian_entries_it_is_within_its_tolerance_in_every_dtype_and_orientation():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((700, 520))
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        stored = matrix.astype(dtype)
        largest = np.linalg.norm(stored.astype(np.float64), 2)
        for each in (stored, stored.T, np.asfortranarray(stored)):
            assert largest / (1 + TOLERANCE) <= largest_singular_value(each, 2) <= largest * (1 + 1e-6)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_no_square_leaves_the_range_of_float64(size):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((90, 64))
    value = size * largest_singular_value(matrix, 1)
    assert largest_singular_value(size * matrix, 1) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (50, 32), (33, 33)])
def test_few_columns_are_taken_as_a_whole(shape):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal(shape)
    assert largest_singular_value(matrix, 1) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-13)
    assert largest_singular_value(np.zeros(shape), 1) == 0.0


def test_an_isolated_value_takes_fewer_products_than_one_without_a_gap():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((1200, 1024)).astype(np.float32)
    isolated = flat + 0.5 * np.ones(flat.shape, np.float32)
    counts = []
    for matrix in (flat, isolated):
        with patch.object(TallMatrix, "apply_gram", autospec=True, side_effect=TallMatrix.apply_gram) as products:
            largest_singular_value(matrix, 1)
        # Those with the matrix, and not with a basis.
        counts.append(sum(call.args[0].rows == 1200 for call in products.call_args_list))
    assert counts[1] < counts[0] <= 8


def test_a_weight_has_its_norm_in_either_way():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((530, 520)).astype(np.float32)
    largest = np.linalg.norm(weight.astype(np.float64), 2)
    assert norms.spectral_norm(weight[:300]) == pytest.approx(np.linalg.norm(weight[:300].astype(float), 2), rel=1e-6)
    assert largest / (1 + TOLERANCE) <= norms.spectral_norm(weight) <= largest * (1 + 1e-6)
