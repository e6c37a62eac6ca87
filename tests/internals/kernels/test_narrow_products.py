"""Products of a matrix with narrow blocks: to the bit, on either side of every tile."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import krylov
from tests.compiled import both

SHAPES = [(1, 1), (3, 5), (8, 2), (20, 33), (33, 17), (33, 1), (34, 1)]
# Beyond a stretch of columns, and a group of rows.
LONG_SHAPES = [(70, krylov.STRETCH + 3), (2 * krylov.GROUP + 9, 40), (2 * krylov.GROUP, 129)]


@both(krylov.multiply)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_narrow_blocks_are_the_exact_ones_of_whole_numbers(kernel, shape):
    assert_narrow_products(kernel, shape, np.float32)


@both(krylov.multiply_doubles)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_doubles_are_the_exact_ones_of_whole_numbers(kernel, shape):
    assert_narrow_products(kernel, shape, np.float64)


@pytest.mark.parametrize(("kernel", "dtype"), [(krylov.multiply, np.float32), (krylov.multiply_doubles, np.float64)])
@pytest.mark.parametrize("shape", LONG_SHAPES)
def test_products_beyond_a_stretch_of_columns_and_a_group_of_rows(kernel, dtype, shape):
    assert_narrow_products(kernel, shape, dtype)


def assert_narrow_products(kernel, shape, dtype):
    rng, (m, n) = np.random.default_rng(shape), shape
    rows, columns = (-(-length // krylov.ROWS) * krylov.ROWS for length in shape)
    # Every sum of products of such numbers has a float32 of its own, so that no order of summation shows.
    X, given, before = (rng.integers(-2, 3, size).astype(dtype) for size in (shape, (columns, 32), (columns, 32)))
    images, sums = np.zeros((rows, 32), dtype), before.copy()
    product = X @ given[:n]
    kernel(X, given.ravel(), images.ravel(), sums.ravel(), krylov.BOTH)
    assert np.array_equal(images[:m], product)
    assert not images[m:].any()
    assert np.array_equal(sums[:n], before[:n] + X.T @ product)
    applied, pulled = np.zeros_like(images), before.copy()
    kernel(X, given.ravel(), applied.ravel(), pulled.ravel(), krylov.PLAIN)
    assert np.array_equal(applied, images)
    assert np.array_equal(pulled, before)
    kernel(X, given.ravel(), applied.ravel(), pulled.ravel(), krylov.TRANSPOSED)
    assert np.array_equal(applied, images)
    assert np.array_equal(pulled[:n], sums[:n])


def test_a_tile_that_goes_on_in_the_next_row_takes_nothing_from_it():
    X = np.zeros((40, 33))
    X[:, 0] = np.inf
    X[:, 32] = 1.0
    given, images, sums = np.zeros((40, 32)), np.zeros((40, 32)), np.zeros((40, 32))
    images[:] = 1.0
    krylov.multiply_doubles(X, given.ravel(), images.ravel(), sums.ravel(), krylov.TRANSPOSED)
    assert np.array_equal(sums[32], np.full(32, 40.0))
    assert np.array_equal(sums[1:32], np.zeros((31, 32)))


@both(krylov.multiply_in_float64)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (20, 33), (33, 17)])
@pytest.mark.parametrize("panels", [1, 3])
def test_images_in_float64_are_the_exact_ones_of_whole_numbers(kernel, shape, panels):
    assert_exact_images(kernel, shape, panels)


@pytest.mark.parametrize("shape", [(11, 2 * krylov.CONVERTED + 21), (2 * krylov.GROUP + 9, 40)])
def test_images_beyond_a_stretch_of_columns_and_a_group_of_rows(shape):
    assert_exact_images(krylov.multiply_in_float64, shape, 2)


def assert_exact_images(kernel, shape, panels):
    rng, (m, n) = np.random.default_rng(shape), shape
    # Products of 20 bits by 20 and their sums, which float64 holds and float32 does not.
    X = rng.integers(-(2**19), 2**19, shape).astype(np.float32)
    basis = rng.integers(-(2**19), 2**19, (panels, n, krylov.FLOAT64_COLUMNS)).astype(np.float64)
    before = rng.integers(-9, 9, (panels, -(-m // krylov.ROWS) * krylov.ROWS, krylov.FLOAT64_COLUMNS)).astype(
        np.float64
    )
    images = before.copy()
    energy = kernel(X, basis.ravel(), images.ravel())
    exact = X.astype(np.float64)
    assert np.array_equal(images[:, :m], before[:, :m] + exact @ basis)
    assert energy == np.sum(exact**2)
