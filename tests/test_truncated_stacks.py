"""Stacks that truncate() decomposes by a kernel, in parts and in threads: each matrix as by itself, and to the best."""

import numpy as np
import pytest

from lowrank_core import truncate, update_with_spectrum
from lowrank_core.testing import assert_eckart_young

SHAPES = [(40, 60), (60, 40), (48, 48)]


def stack_of(shape, dtype):
    """Return 24 matrices: drawn, with a zero one and a deficient one among them."""
    stack = np.random.default_rng(0).standard_normal((24, *shape))
    stack[5] = 0.0
    stack[9] = update_with_spectrum([3.0, 1.0, 1e-3], shape, rng=0)
    return stack.astype(dtype)


def assert_identical(update, expected):
    assert update.B.tobytes() == expected.B.tobytes()
    assert update.A.tobytes() == expected.A.tobytes()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_neither_workers_nor_memory_layout_change_a_bit(shape, dtype):
    stack = stack_of(shape, dtype)
    whole = truncate(stack, 7, workers=1)
    frozen = stack.copy(order="F")
    frozen.flags.writeable = False
    strided = np.repeat(np.repeat(stack, 2, axis=1), 3, axis=2)[:, ::2, ::3]
    for again in (
        truncate(stack, 7, workers=3),
        truncate(frozen, 7, workers=2),
        truncate(strided, 7, workers=2),
        truncate(stack, lambda _: 7, workers=2),
    ):
        assert_identical(again, whole)
    for i in (0, 5, 9, 23):
        alone = truncate(stack[i], 7)
        assert alone.B.tobytes() == whole.B[i].tobytes()
        assert alone.A.tobytes() == whole.A[i].tobytes()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_matrix_has_the_best_factors_and_orthonormal_rows(shape, dtype):
    stack = stack_of(shape, dtype)
    for rank in (0, 1, 7, min(shape)):
        best = truncate(stack, rank)
        assert best.B.shape == (24, shape[0], rank)
        assert_eckart_young(stack, best, rank)
        off = best.A @ best.A.swapaxes(-1, -2) - np.eye(rank)
        assert np.all(np.abs(off) <= 10 * max(shape) * 2.0**-52)


@pytest.mark.parametrize("power", [-660, 660])
def test_powers_of_two_of_a_stack_come_out_exactly(power):
    stack = stack_of((40, 60), "float64")
    best, scaled = truncate(stack, 5), truncate(np.ldexp(stack, power), 5)
    assert np.array_equal(scaled.A, best.A)
    assert np.array_equal(scaled.B, np.ldexp(best.B, power))


def test_the_first_matrix_that_is_not_finite_is_named():
    stack = stack_of((40, 60), "float32").reshape(4, 6, 40, 60)
    stack[2, 1, 3, 3], stack[3, 0, 0, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        truncate(stack, 2)
