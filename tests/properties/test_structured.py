"""Theorems on sums, Hadamard products and Tucker factors: each is a product of two factors, and no dense matrix."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core import LowRankUpdate, low_rank_hadamard, low_rank_sum, low_rank_tucker, spectrum
from lowrank_core.testing import low_rank_updates
from tests import bounds

doubles = low_rank_updates(max_dims=2, dtypes=["float64"])
seeds = st.integers(0, 2**32 - 1)
weights = st.floats(-4.0, 4.0)


def size(update):
    """|γ| |B| |A|, entry by entry: what the rounding of a product is relative to."""
    return abs(update.scaling) * np.abs(update.B.astype(float)) @ np.abs(update.A.astype(float))


def of_the_same_shape(update, seed, rank=2):
    """An update of the same m and n, without batch axes."""
    rng = np.random.default_rng(seed)
    m, n = update.shape[-2:]
    return LowRankUpdate(rng.standard_normal((m, rank)), rng.standard_normal((rank, n)), 0.5)


@given(low_rank_updates(max_dims=2), seeds, st.lists(weights, min_size=2, max_size=2))
def test_a_sum_is_the_sum_of_the_dense_updates(first, seed, weights):
    second = of_the_same_shape(first, seed)
    whole = low_rank_sum([first, second], weights)
    assert (whole.rank, whole.scaling, whole.dtype) == (first.rank + second.rank, 1.0, "float64")
    assert whole.shape == first.shape
    exact = weights[0] * first.to_dense() + weights[1] * second.to_dense()
    rounding = abs(weights[0]) * size(first) + abs(weights[1]) * size(second)
    assert np.all(np.abs(whole.to_dense() - exact) <= 4 * whole.rank * bounds.EPS64 * rounding + bounds.SPACING)


@given(doubles)
def test_an_update_less_itself_is_zero(update):
    rest = low_rank_sum([update, update], [1.0, -1.0])
    assert np.all(np.abs(rest.to_dense()) <= 2 * rest.rank * bounds.EPS64 * size(update))


@given(doubles, st.integers(-600, 600))
def test_the_weight_of_a_sum_is_a_factor_of_its_spectrum(update, power):
    # Beyond 2^500 powers of two move from B to A.
    weighted = spectrum(low_rank_sum([update], [2.0**power]))
    assert np.array_equal(weighted.values, np.ldexp(spectrum(low_rank_sum([update])).values, power))


@given(low_rank_updates(max_dims=2), seeds)
def test_a_hadamard_product_is_that_of_the_dense_updates(first, seed):
    second = of_the_same_shape(first, seed)
    product = low_rank_hadamard(first, second)
    assert product.rank == first.rank * second.rank
    assert product.shape == first.shape
    tolerance = 8 * (product.rank + 4) * bounds.EPS64 * size(first) * size(second) + bounds.SPACING
    assert np.all(np.abs(product.to_dense() - first.to_dense() * second.to_dense()) <= tolerance)


@given(doubles)
def test_ones_are_the_unit_of_hadamard_products(update):
    ones = LowRankUpdate(np.ones((update.shape[-2], 1)), np.ones((1, update.shape[-1])))
    for product in (low_rank_hadamard(update, ones), low_rank_hadamard(ones, update)):
        assert product.rank == update.rank
        assert np.all(np.abs(product.to_dense() - update.to_dense()) <= 4 * update.rank * bounds.EPS64 * size(update))


@given(doubles, seeds, st.integers(-900, 900))
def test_scales_of_a_hadamard_product_may_cancel(first, seed, power):
    second = of_the_same_shape(first, seed)
    far = low_rank_hadamard(
        LowRankUpdate(np.ldexp(first.B, power), first.A, first.scaling),
        LowRankUpdate(second.B, second.A, second.scaling * 2.0**-power),
    )
    near = low_rank_hadamard(first, second)
    assert np.array_equal(far.to_dense(), near.to_dense())


@given(doubles, seeds)
def test_sums_and_hadamard_products_distribute(first, seed):
    second, third = of_the_same_shape(first, seed), of_the_same_shape(first, seed + 1, rank=1)
    whole = low_rank_hadamard(low_rank_sum([first, second]), third)
    parts = low_rank_sum([low_rank_hadamard(first, third), low_rank_hadamard(second, third)])
    tolerance = 16 * (whole.rank + 4) * bounds.EPS64 * (size(first) + size(second)) * size(third)
    assert np.all(np.abs(whole.to_dense() - parts.to_dense()) <= tolerance)


@st.composite
def tucker_factors(draw):
    m, r, s, n, *kernel = draw(st.lists(st.integers(1, 3), min_size=5, max_size=6))
    rng = np.random.default_rng(draw(seeds))
    return rng.standard_normal((m, r)), rng.standard_normal((r, s, *kernel)), rng.standard_normal((s, n))


@given(tucker_factors(), st.sampled_from([1.0, -0.5]))
def test_a_tucker_core_is_multiplied_on_both_sides(factors, scaling):
    up, mid, down = factors
    update = low_rank_tucker(up, mid.reshape(*mid.shape[:2], -1), down, scaling)
    weight = scaling * np.einsum("pi,ij...,jq->pq...", up, mid, down)
    sizes = np.einsum("pi,ij...,jq->pq...", *(np.abs(factor) for factor in factors))
    assert update.rank == up.shape[1]
    assert update.shape == (len(up), weight[0].size)
    assert np.all(np.abs(update.to_dense().reshape(weight.shape) - weight) <= 40 * bounds.EPS64 * sizes)


@given(tucker_factors(), st.integers(-900, 900))
def test_scales_of_tucker_factors_may_cancel(factors, power):
    up, mid, down = factors
    core = mid.reshape(*mid.shape[:2], -1)
    far = low_rank_tucker(np.ldexp(up, -power), np.ldexp(core, power // 2), np.ldexp(down, power - power // 2))
    assert np.array_equal(far.to_dense(), low_rank_tucker(up, core, down).to_dense())
