"""Theorems on low-rank updates in factored form."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core import LowRankUpdate, spectrum
from lowrank_core.testing import assert_same_update, low_rank_updates, stacks_of_updates
from tests import bounds

products = low_rank_updates(max_dims=2)
doubles = low_rank_updates(max_dims=2, dtypes=["float64"])


def size(update):
    """|γ| |B| |A|, entry by entry: what the rounding of a product is relative to."""
    return abs(update.scaling) * np.abs(update.B.astype(float)) @ np.abs(update.A.astype(float))


@given(products)
def test_to_dense_is_the_product(update):
    dense = update.to_dense()
    assert dense.shape == update.shape
    assert dense.dtype == np.float64
    for index in np.ndindex(update.shape[:-2]):
        B = np.broadcast_to(update.B, (*update.shape[:-1], update.rank))[index].astype(float)
        A = np.broadcast_to(update.A, (*update.shape[:-2], update.rank, update.shape[-1]))[index].astype(float)
        # As a sum of rank-one updates.
        naive = sum(update.scaling * np.outer(B[:, i], A[i]) for i in range(update.rank))
        tolerance = (update.rank + 2) * bounds.EPS64 * size(LowRankUpdate(B, A, update.scaling))
        assert np.all(np.abs(dense[index] - naive) <= tolerance)


@given(products, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_apply_is_the_dense_update_times_x(update, seed, count):
    x = np.random.default_rng(seed).standard_normal((count, *(1,) * (len(update.shape) - 2), update.shape[-1]))
    exact = np.einsum("...mn,...n->...m", update.to_dense(), x)
    result = update.apply(x)
    assert result.shape == exact.shape
    tolerance = (
        8 * (update.rank + update.shape[-1]) * bounds.EPS64 * np.einsum("...mn,...n->...m", size(update), np.abs(x))
    )
    assert np.all(np.abs(result - exact) <= tolerance)


@given(doubles, st.integers(0, 2**32 - 1))
def test_apply_is_linear(update, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, update.shape[-1]))
    tolerance = 40 * (update.rank + update.shape[-1]) * bounds.EPS64 * (size(update) @ (np.abs(x) + np.abs(y)))
    assert np.all(np.abs(update.apply(x + 2 * y) - update.apply(x) - 2 * update.apply(y)) <= tolerance)


@given(products)
def test_balancing_keeps_the_product_and_makes_the_norms_equal(update):
    balanced = update.balanced()
    assert balanced.scaling == update.scaling
    tolerance = 8 * bounds.EPS64 * size(update) * (update.rank + 2)
    assert np.all(np.abs(balanced.to_dense() - update.to_dense()) <= tolerance)
    left, right = np.linalg.norm(balanced.B, axis=-2), np.linalg.norm(balanced.A, axis=-1)
    assert np.all(np.abs(left - right) <= 8 * bounds.EPS64 * max(update.shape) * left)


@given(doubles, st.lists(st.integers(-300, 300), min_size=4, max_size=4))
def test_balancing_does_not_depend_on_which_factor_is_large(update, powers):
    powers = np.array(powers[: update.rank])
    moved = LowRankUpdate(np.ldexp(update.B, powers), np.ldexp(update.A, -powers[:, np.newaxis]), update.scaling)
    tolerance = 8 * bounds.EPS64 * size(update) * (update.rank + 2)
    assert np.all(np.abs(moved.balanced().to_dense() - update.to_dense()) <= tolerance)


@given(doubles)
def test_the_transpose_has_the_factors_swapped(update):
    swapped = LowRankUpdate(np.swapaxes(update.A, -1, -2), np.swapaxes(update.B, -1, -2), update.scaling)
    assert_same_update(swapped, np.swapaxes(update.to_dense(), -1, -2), c=1000)
    first, second = spectrum(swapped), spectrum(update)
    tolerance = 2 * bounds.of_product(update, second.norm[..., np.newaxis])
    assert np.all(np.abs(first.values - second.values) <= tolerance)


@given(stacks_of_updates(dtypes=["float64", "float32"]))
def test_an_update_times_the_identity_is_itself(stack):
    product = LowRankUpdate(stack, np.eye(stack.shape[-1], dtype=stack.dtype))
    assert np.array_equal(product.to_dense(), stack)
    assert product.dtype == stack.dtype.name


def close(update, first, second):
    """Whether the values of two products that ought to be `update` agree."""
    tolerance = 3 * bounds.of_product(update, np.max(spectrum(update).norm, initial=0.0)[..., np.newaxis])
    p = max(first.values.shape[-1], second.values.shape[-1])
    padded = (
        np.concatenate([s.values, np.zeros((*s.norm.shape, p - s.values.shape[-1]))], axis=-1) for s in (first, second)
    )
    return np.all(np.abs(np.subtract(*padded)) <= tolerance)


@given(doubles, st.integers(0, 2**32 - 1))
def test_components_can_be_rotated_among_themselves(update, seed):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((update.rank, update.rank)))[0]
    rotated = LowRankUpdate(update.B @ Q, Q.T @ update.A, update.scaling)
    # The rotation's own rounding is relative to the largest components, which it mixes with all others.
    norms = np.linalg.norm(update.B, axis=(-2, -1)) * np.linalg.norm(update.A, axis=(-2, -1))
    tolerance = 30 * max(*update.shape[-2:], update.rank) * bounds.EPS64 * abs(update.scaling) * norms
    assert np.all(np.abs(spectrum(rotated).values - spectrum(update).values) <= tolerance[..., np.newaxis])


@given(products, st.randoms(use_true_random=False))
def test_the_order_of_components_does_not_matter(update, shuffler):
    order = list(range(update.rank))
    shuffler.shuffle(order)
    moved = LowRankUpdate(update.B[..., order], update.A[..., order, :], update.scaling)
    assert np.all(np.abs(moved.to_dense() - update.to_dense()) <= 2 * update.rank * bounds.EPS64 * size(update))
    if update.dtype == "float64":
        assert close(update, spectrum(moved), spectrum(update))


@given(doubles)
def test_a_component_can_be_split_in_two(update):
    # γ B A = γ (½B)A + γ (½B)A, as an adapter of twice the rank.
    halves = LowRankUpdate(
        np.concatenate([update.B / 2, update.B / 2], axis=-1),
        np.concatenate([update.A, update.A], axis=-2),
        update.scaling,
    )
    assert halves.rank == 2 * update.rank
    assert close(update, spectrum(halves), spectrum(update))
