"""Theorems on Kronecker products: their spectra and their truncations are those of their two sides."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from lowrank_core import KroneckerUpdate, LowRankUpdate, rank_for_variance, spectrum, truncate
from lowrank_core.testing import (
    assert_eckart_young,
    kronecker_updates,
    low_rank_updates,
    ranks_for,
    stacks_of_updates,
    updates,
)
from tests import bounds, oracles

doubles = kronecker_updates(dtypes=["float64"])
matrices = updates(max_side=3, dtypes=["float64"], kinds=["ordinary", "repeated", "clustered", "deficient"])
methods = st.sampled_from(["auto", "lapack", "direct", "gram"])


def dense(side):
    return side.to_dense() if isinstance(side, LowRankUpdate) else side.astype(np.float64)


def size_of(side):
    """What the rounding of a side is relative to: |γ| |B| |A|, or its entries."""
    if isinstance(side, LowRankUpdate):
        return abs(side.scaling) * np.abs(side.B.astype(float)) @ np.abs(side.A.astype(float))
    return np.abs(side.astype(float))


def factors_of(side):
    return [side.scaling * side.B.astype(float), side.A.astype(float)] if isinstance(side, LowRankUpdate) else [side]


def size(update):
    return abs(update.scaling) * np.kron(size_of(update.left), size_of(update.right))


@given(kronecker_updates())
def test_to_dense_is_the_kronecker_product(update):
    exact = update.scaling * np.kron(dense(update.left), dense(update.right))
    assert update.to_dense().shape == update.shape
    assert np.all(np.abs(update.to_dense() - exact) <= 4 * bounds.EPS64 * np.abs(exact) + bounds.SPACING)


@given(kronecker_updates(), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_apply_is_the_dense_update_times_x(update, seed, count):
    x = np.random.default_rng(seed).standard_normal((count, update.shape[1]))
    tolerance = 40 * sum(update.shape) * bounds.EPS64 * (np.abs(x) @ size(update).T) + bounds.SPACING
    assert np.all(np.abs(update.apply(x) - x @ update.to_dense().T) <= tolerance)


@given(kronecker_updates(max_side=2))
def test_values_are_those_of_the_kronecker_product(update):
    exact = oracles.kronecker_singular_values(factors_of(update.left), factors_of(update.right), update.scaling)
    result = spectrum(update)
    count = result.values.shape[-1]
    assert result.complete
    assert result.shape == update.shape
    assert result.dtype == update.dtype
    assert count <= min(update.shape)
    tolerance = bounds.of_kronecker(update)
    assert np.all(np.abs(result.values - exact[:count]) <= tolerance)
    assert np.all(exact[count:] <= tolerance)


@given(updates(max_side=3, kinds=["ordinary", "repeated", "deficient"]), methods, st.data())
def test_every_method_is_within_the_bound_of_a_dense_matrix(left, method, data):
    dtype = left.dtype.name
    assume(method != "gram" or dtype != "float64")
    right = data.draw(updates(max_side=3, dtypes=[dtype], kinds=["ordinary", "repeated", "deficient"]))
    exact = oracles.kronecker_singular_values([left], [right])
    values = spectrum(KroneckerUpdate(left, right), method=method).values
    missing = np.zeros(len(exact) - len(values))
    bound = bounds.of_values((left.size, right.size), dtype, exact[0])
    assert np.all(np.abs(np.concatenate([values, missing]) - exact) <= bound)


@given(kronecker_updates(), st.data())
def test_leading_values_are_the_first_of_all(update, data):
    rank = data.draw(ranks_for(update))
    whole, leading = spectrum(update), spectrum(update, rank=rank)
    assert np.array_equal(leading.values, whole.values[:rank])
    assert leading.norm == whole.norm
    assert leading.complete == (rank >= len(whole.values))


@given(matrices, matrices, st.integers(-400, 400), st.integers(-400, 400), st.integers(-100, 100))
def test_powers_of_two_come_out_exactly(left, right, first, second, third):
    result = spectrum(KroneckerUpdate(left, right))
    scaled = spectrum(KroneckerUpdate(np.ldexp(left, first), np.ldexp(right, second), -(2.0**third)))
    assert np.array_equal(scaled.values, np.ldexp(result.values, first + second + third))
    assert scaled.norm == np.ldexp(result.norm, first + second + third)


@given(matrices, matrices, st.integers(600, 900))
def test_sides_beyond_the_range_of_float64_cancel(left, right, power):
    # σ of the sides alone, and products of their entries in any order, would overflow and underflow.
    far = KroneckerUpdate(np.ldexp(left, power), np.ldexp(right, power), 2.0 ** (-power) * 2.0 ** (-100))
    near = KroneckerUpdate(left, right, 2.0 ** (power - 100))
    assert np.array_equal(spectrum(far).values, spectrum(near).values)
    best, expected = truncate(far, 1), truncate(near, 1)
    assert np.array_equal(best.B, expected.B)
    assert np.array_equal(best.A, expected.A)


@given(doubles)
def test_the_order_of_the_sides_does_not_matter(update):
    swapped = KroneckerUpdate(update.right, update.left, update.scaling)
    assert np.array_equal(spectrum(swapped).values, spectrum(update).values)


@given(matrices, low_rank_updates(max_side=3, dtypes=["float64"]))
def test_a_product_as_a_side_is_the_kronecker_product_of_factors(left, right):
    # L ⊗ γBA = γ (L ⊗ B)(I ⊗ A).
    as_product = LowRankUpdate(
        np.kron(left, right.B), np.kron(np.eye(left.shape[1]), right.A.astype(float)), right.scaling
    )
    update = KroneckerUpdate(left, right)
    assert np.all(np.abs(update.to_dense() - as_product.to_dense()) <= 40 * bounds.EPS64 * size(update))
    tolerance = 2 * (bounds.of_kronecker(update) + bounds.of_product(as_product, 0.0))
    leading = spectrum(as_product).values[: len(spectrum(update).values)]
    assert np.all(np.abs(spectrum(update).values - leading) <= tolerance)


@given(st.data(), kronecker_updates(dtypes=["float64"]))
def test_a_truncation_is_the_best(data, update):
    rank = data.draw(ranks_for(update))
    best, whole = truncate(update, rank), update.to_dense()
    assume(np.any(whole))
    assert best.rank == min(rank, len(spectrum(update).values))
    c = 20 * max(1.0, np.linalg.norm(size(update)) / np.linalg.norm(whole))
    assert_eckart_young(whole, best, rank, c=c)


@given(kronecker_updates(dtypes=["float32", "float16", "bfloat16"]), st.data())
def test_a_truncation_in_low_precision_is_the_best_within_single_precision(update, data):
    rank = data.draw(ranks_for(update))
    whole = update.to_dense()
    assume(np.any(whole))
    c = 5 * max(1.0, np.linalg.norm(size(update)) / np.linalg.norm(whole))
    assert_eckart_young(whole, truncate(update, rank), rank, c=c, eps=bounds.EPS32)


@given(kronecker_updates(), st.floats(0.0, 1.0))
def test_a_function_of_the_spectrum_has_all_of_it(update, fraction):
    seen = []
    best = truncate(update, lambda s: seen.append(s) or rank_for_variance(s, fraction))
    result = spectrum(update)
    assert seen[0].shape == update.shape
    assert seen[0].complete
    assert seen[0].dtype == update.dtype
    assert np.all(np.abs(seen[0].values - result.values) <= 2 * bounds.of_kronecker(update))
    assert best.rank == rank_for_variance(seen[0], fraction)


@given(stacks_of_updates(max_side=3, kinds=["ordinary", "zero", "deficient"]), matrices, methods)
def test_a_batch_of_sides_is_the_kronecker_products_one_by_one(left, right, method):
    whole = KroneckerUpdate(left, right, 2.0)
    result, best = spectrum(whole, method=method), truncate(whole, 1, method=method)
    x = np.arange(1.0, whole.shape[-1] + 1)
    for index in np.ndindex(left.shape[:-2]):
        single = KroneckerUpdate(left[index], right, 2.0)
        assert np.array_equal(result.values[index], spectrum(single, method=method).values)
        assert np.array_equal(best.B[index], truncate(single, 1, method=method).B)
        assert np.array_equal(whole.to_dense()[index], single.to_dense())
        assert np.allclose(whole.apply(x)[index], single.apply(x), rtol=1e-13, atol=1e-300)
