"""Theorems on singular values."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowrank_core import LowRankUpdate, spectrum, update_with_spectrum
from lowrank_core.testing import assert_spectrum, low_rank_updates, ranks_for, updates
from tests import bounds, oracles

MODERATE = ("ordinary", "zero", "repeated", "clustered", "deficient")
doubles = updates(dtypes=["float64"])
moderate = updates(dtypes=["float64"], kinds=MODERATE)


def leading(values):
    return float(values[0]) if len(values) else 0.0


def assert_close(result, exact, bound):
    assert result.shape == exact.shape
    assert np.all(np.abs(result - exact) <= bound)


@given(updates(max_side=6))
def test_values_and_norm_agree_with_mpmath(update):
    result, exact = spectrum(update), oracles.singular_values(update)
    assert_close(result.values, exact, bounds.of_values(update.shape, result.dtype, exact[0]))
    assert abs(result.norm - oracles.norm(update)) <= bounds.of_values(update.shape, result.dtype, oracles.norm(update))


@pytest.mark.parametrize("method", ["lapack", "direct"])
@given(update=updates(max_side=6, dtypes=["float32", "float16", "bfloat16"]))
def test_an_svd_of_narrow_dtypes_has_the_accuracy_of_float64(method, update):
    result, exact = spectrum(update, method=method), oracles.singular_values(update)
    assert_close(result.values, exact, bounds.of_values(update.shape, "float64", exact[0]))


@given(updates(max_side=6))
def test_gram_loses_half_the_digits_of_the_small_values_and_no_more(update):
    result, exact = spectrum(update, method="gram"), oracles.singular_values(update)
    assert_close(result.values, exact, bounds.EPS32 * exact[0] + bounds.SPACING)


@given(updates())
def test_the_verifier_agrees(update):
    result = spectrum(update)
    assert_spectrum(update, result, eps=bounds.EPS64 if result.dtype == "float64" else bounds.EPS32, c=10)


@given(updates())
def test_values_descend_and_their_squares_sum_to_the_norm(update):
    result = spectrum(update)
    assert result.complete
    assert result.values.shape == (min(update.shape),)
    assert result.shape == update.shape
    assert np.all(result.values[1:] <= result.values[:-1])
    assert np.all(result.values >= 0)
    assert abs(oracles.norm(result.values) - result.norm) <= 1e-6 * result.norm + bounds.SPACING


@given(updates())
def test_the_transpose_has_the_same_values(update):
    result, other = spectrum(update), spectrum(update.T)
    assert_close(other.values, result.values, 2 * bounds.of_values(update.shape, result.dtype, leading(result.values)))
    assert other.shape == result.shape[::-1]


@given(moderate, st.integers(0, 2**32 - 1))
def test_rotations_change_no_value(update, seed):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in update.shape)
    exact = spectrum(update).values
    assert_close(spectrum(left @ update @ right).values, exact, 4 * bounds.of_values(update.shape, "float64", exact[0]))


@given(updates(), st.integers(0, 2**32 - 1))
def test_permutations_and_signs_change_no_value(update, seed):
    rng = np.random.default_rng(seed)
    moved = -update[rng.permutation(update.shape[0])][:, rng.permutation(update.shape[1])]
    result = spectrum(update)
    bound = 2 * bounds.of_values(update.shape, result.dtype, leading(result.values))
    assert_close(spectrum(moved).values, result.values, bound)


@given(moderate, st.integers(-300, 300), st.sampled_from(["lapack", "direct", "gram"]))
def test_powers_of_two_come_out_exactly(update, power, method):
    result, scaled = spectrum(update, method=method), spectrum(np.ldexp(update, power), method=method)
    assert np.array_equal(scaled.values, np.ldexp(result.values, power))
    assert scaled.norm == np.ldexp(result.norm, power)


@given(moderate, st.integers(-300, 300))
def test_powers_of_two_come_out_exactly_by_krylov(update, power):
    rank = min(update.shape)
    result = spectrum(update, rank=rank, method="krylov")
    scaled = spectrum(np.ldexp(update, power), rank=rank, method="krylov")
    assert np.array_equal(scaled.values, np.ldexp(result.values, power))


@given(moderate, st.floats(1e-3, 1e3))
def test_homogeneity(update, factor):
    exact = factor * spectrum(update).values
    assert_close(spectrum(factor * update).values, exact, 3 * bounds.of_values(update.shape, "float64", exact[0]))


@given(st.data(), doubles, st.integers(0, 60))
def test_weyl_and_mirsky_bound_a_perturbation(data, update, smallness):
    noise = data.draw(hnp.arrays(np.float64, update.shape, elements=st.floats(-1.0, 1.0, width=32)))
    size = np.abs(update).max()
    assume(size < 1e300)
    noise = np.ldexp(noise * size, -smallness)
    sigma, moved, change = (spectrum(matrix).values for matrix in (update, update + noise, noise))
    slack = 6 * bounds.of_values(update.shape, "float64", leading(sigma) + leading(change))
    assert np.max(np.abs(moved - sigma)) <= leading(change) + slack
    assert oracles.norm(moved - sigma) <= oracles.norm(change) + len(sigma) * slack


@given(st.data(), updates())
def test_interlacing_when_a_row_is_deleted(data, update):
    assume(update.shape[0] > 1)
    kept = np.delete(update, data.draw(st.integers(0, update.shape[0] - 1)), axis=0)
    whole, part = spectrum(update), spectrum(kept)
    slack = 2 * bounds.of_values(update.shape, whole.dtype, leading(whole.values))
    upper = whole.values[: len(part.values)]
    assert np.all(part.values <= upper + slack)
    lower = whole.values[1 : len(part.values) + 1]
    assert np.all(part.values[: len(lower)] >= lower - slack)


@given(doubles, st.integers(0, 3), st.integers(0, 3))
def test_zero_rows_and_columns_add_zeros(update, rows, columns):
    padded = np.pad(update, ((0, rows), (0, columns)))
    values, more = spectrum(update).values, spectrum(padded).values
    bound = 2 * bounds.of_values(padded.shape, "float64", values[0])
    assert_close(more, np.pad(values, (0, len(more) - len(values))), bound)


# How much rounding leaves where rows cancel depends on how often a row is repeated: several numbers for each update.
@pytest.mark.parametrize("method", ["direct", "gram"])
@given(
    tile=updates(max_side=2, kinds=MODERATE),
    down=st.lists(st.integers(1, 100), min_size=4, max_size=4),
    across=st.integers(1, 8),
)
@example(tile=np.ones((1, 1), np.float32), down=[600], across=7)
def test_copies_multiply_values_by_the_root_of_their_number(method, tile, down, across):
    of_tile = spectrum(tile, method="direct").values
    for copies in down:
        tiled = np.tile(tile, (copies, across))
        exact, result = np.sqrt(copies * across) * of_tile, spectrum(tiled, method=method).values
        bound = 2 * bounds.of_values(tiled.shape, "float64" if method == "direct" else "float32", exact[0])
        assert_close(result, np.pad(exact, (0, len(result) - len(exact))), bound)


@given(doubles, updates(dtypes=["float64"], max_side=4))
def test_a_direct_sum_has_the_values_of_its_parts(first, second):
    whole = np.zeros(np.add(first.shape, second.shape))
    whole[: first.shape[0], : first.shape[1]] = first
    whole[first.shape[0] :, first.shape[1] :] = second
    parts = np.concatenate([spectrum(first).values, spectrum(second).values])
    exact = np.pad(np.sort(parts)[::-1], (0, min(whole.shape) - len(parts)))
    assert_close(spectrum(whole).values, exact, 2 * bounds.of_values(whole.shape, "float64", exact[0]))


@given(st.data(), updates(), st.sampled_from(["auto", "lapack", "direct", "gram"]))
def test_leading_values_are_the_first_of_all(data, update, method):
    rank = data.draw(ranks_for(update))
    whole, part = spectrum(update, method=method), spectrum(update, rank=rank, method=method)
    assert np.array_equal(part.values, whole.values[:rank])
    assert part.norm == whole.norm
    assert part.complete == (rank == min(update.shape))


@given(st.data(), updates())
def test_krylov_overstates_nothing_and_misses_at_most_its_tolerance(data, update):
    assert_within_tolerance_of_krylov(update, data.draw(ranks_for(update)))


@st.composite
def updates_wider_than_a_block(draw):
    """Many copies of few values, which a Krylov space cannot tell apart, and values that fall slowly or fast.

    A block has 32 vectors, and spans all of a matrix that is no larger.
    """
    side = draw(st.integers(33, 96))
    copies, smallness = draw(st.integers(1, side)), draw(st.integers(0, 30))
    index = np.arange(side)
    values = draw(
        st.sampled_from(
            [
                np.where(index < copies, 1.0, 2.0**-smallness),
                np.where(index < copies, 1.0, 0.0),
                np.where(index < copies // 2, 1.0, np.where(index < copies, 2.0**-smallness, 0.0)),
                (index + 1.0) ** (-smallness / 10),
                2.0 ** (-index * smallness / 30),
            ]
        )
    )
    shape = draw(st.permutations([side, side + draw(st.integers(0, 40))]))
    update = update_with_spectrum(values, tuple(shape), rng=draw(st.integers(0, 2**32 - 1)))
    return update.astype(draw(st.sampled_from(["float64", "float32"])))


@given(st.data(), updates_wider_than_a_block())
def test_krylov_misses_at_most_its_tolerance_where_one_block_does_not_span_everything(data, update):
    assert_within_tolerance_of_krylov(update, data.draw(st.integers(1, min(update.shape))))


def assert_within_tolerance_of_krylov(update, rank):
    result = spectrum(update, rank=rank, method="krylov")
    scale = -np.frexp(result.norm)[1]
    exact = np.ldexp(spectrum(update, method="direct").values, scale)
    head, whole = np.cumsum(np.ldexp(result.values, scale) ** 2), np.cumsum(exact**2)
    # Subnormal results are rounded to float64's spacing, which in these units is no longer small.
    rounding = 20 * max(update.shape) * bounds.EPS64 * (1 if result.norm else 0) + np.ldexp(bounds.SPACING, scale) * 8
    assert np.all(head <= whole[:rank] + rounding)
    if rank:
        tolerance = 1e-6 * max(whole[-1] - whole[rank - 1], 1e-6 * whole[-1])
        assert whole[rank - 1] - head[-1] <= tolerance + rounding


@pytest.mark.parametrize("method", ["auto", "lapack"])
@given(update=low_rank_updates(max_side=6))
def test_values_of_a_product_are_those_of_the_dense_product(method, update):
    exact = oracles.product_singular_values(update.B, update.A, update.scaling)
    result = spectrum(update, method=method)
    assert result.complete
    assert result.shape == update.shape
    assert_close(result.values, exact, bounds.of_product(update, leading(exact)))


@given(update=low_rank_updates(max_side=6, dtypes=["float32", "float16", "bfloat16"]))
def test_values_of_narrow_products_by_gram(update):
    exact = oracles.product_singular_values(update.B, update.A, update.scaling)
    assert_close(spectrum(update, method="gram").values, exact, bounds.of_product(update, leading(exact)))


@given(low_rank_updates(), st.integers(-200, 200))
def test_a_products_scaling_is_a_factor(update, power):
    result = spectrum(LowRankUpdate(update.B, update.A, 1.0))
    for scaling in (2.0**power, -(2.0**power)):
        scaled = spectrum(LowRankUpdate(update.B, update.A, scaling))
        assert np.array_equal(scaled.values, np.ldexp(result.values, power))
        assert scaled.norm == np.ldexp(result.norm, power)


@given(low_rank_updates(dtypes=["float64"]), st.integers(-300, 300), st.integers(-300, 300))
def test_a_factors_power_of_two_comes_out_exactly(update, left, right):
    scaled = LowRankUpdate(np.ldexp(update.B, left), np.ldexp(update.A, right))
    result = spectrum(LowRankUpdate(update.B, update.A)).values
    assert np.array_equal(spectrum(scaled).values, np.ldexp(result, left + right))
