"""The norm of a product is right wherever its parts cancel, and however large or small they are."""

import numpy as np
import pytest

from lowrank_core import LowRankUpdate
from lowrank_core.models.norms import product_norm
from lowrank_core.models.operations.factoring import FactorEncoding, factor


def product(seed=0, m=30, r=5, n=40):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, r)), rng.standard_normal((r, n))


@pytest.mark.parametrize("digits", range(13))
def test_what_is_left_when_two_products_cancel(digits):
    B, A = product()
    moved = 10.0**-digits * product(1)[0]
    difference = LowRankUpdate(np.hstack([B + moved, -B]), np.vstack([A, A]), 2.0)
    # The difference that float64 holds, exactly taken, times A.
    left = ((B + moved) - B).astype(np.longdouble) @ A.astype(np.longdouble)
    expected = 2 * np.sqrt(float(np.sum(left**2)))
    assert product_norm(difference) == pytest.approx(expected, rel=1e-9 + 1e-14 * 10.0**digits, abs=0)


# Of the last two pairs the squares of one factor are subnormal, and have lost most of their digits.
POWERS = (-800, -510, -340, -160, 0, 160, 340, 510, 800)
PAIRS = [(a, b) for a in POWERS for b in (-a, 0, a) if abs(a + b) < 1000] + [(-530, 400), (-530, 100)]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_factors_of_any_size(left, right):
    B, A = product()
    found = product_norm(LowRankUpdate(np.ldexp(B, left), np.ldexp(A, right)))
    assert found == pytest.approx(np.ldexp(np.linalg.norm(B @ A), left + right), rel=1e-13, abs=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_storage_error_is_what_rounding_moved(dtype):
    B, A = product()
    update = LowRankUpdate(B.astype(np.float32), A.astype(np.float32), 0.5)
    factored = factor(update, 3, FactorEncoding(dtype=dtype))
    dense = update.to_dense().astype(np.float64)
    U, values, Vt = np.linalg.svd(dense, full_matrices=False)
    moved = factored.update.to_dense().astype(np.float64) - (U[:, :3] * values[:3]) @ Vt[:3]
    assert factored.storage_error == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(dense), rel=1e-5)
