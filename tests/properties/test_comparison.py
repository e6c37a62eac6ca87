"""Theorems on two updates: their cosine, the angles of their spaces, and what each holds of the other."""

import dataclasses

import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowrank_core import LowRankUpdate, compare, spectrum
from lowrank_core.testing import kronecker_updates, pairs_of_updates, stacks_of_updates
from tests import oracles

CLOSE = 1e-10
seeds = st.integers(0, 2**32 - 1)
pairs = pairs_of_updates(dtypes=["float32", "float64"])
wide = pairs_of_updates(max_side=40, max_rank=8, dtypes=["float32", "float64"])
nonzero = pairs_of_updates(dtypes=["float64"], kinds=["ordinary", "one start", "near"])


def figures(comparison):
    """All figures of a comparison by name; those of columns and rows apart."""
    yield from ((name, getattr(comparison, name)) for name in ("first_norm", "second_norm", "cosine", "sum_norm"))
    for side in ("columns", "rows"):
        space = getattr(comparison, side)
        yield from ((f"{side}.{field.name}", getattr(space, field.name)) for field in dataclasses.fields(space))


def assert_same(one, other, bound=CLOSE):
    for (name, actual), (_, expected) in zip(figures(one), figures(other), strict=True):
        size = other.orthogonal_norm if name.endswith("norm") else 1.0
        assert np.shape(actual) == np.shape(expected), name
        assert np.allclose(actual, expected, rtol=0.0, atol=bound * size, equal_nan=True), name


def are_apart(update):
    """Whether the values are far from each other and from rounding, so that each vector is well defined."""
    values = spectrum(update).values
    return np.all(values[:-1] - values[1:] > 1e-3 * values[0]) and (values[0] == 0 or values[-1] > 1e-3 * values[0])


@given(wide)
def test_it_is_the_dense_computation(pair):
    first, second = pair
    assume(are_apart(first) and are_apart(second))
    comparison, exact = compare(first, second), oracles.comparison(first.to_dense(), second.to_dense())
    assert comparison.columns.first_rank == len(exact["columns"]["second_captured"])
    assert comparison.columns.second_rank == len(exact["columns"]["first_captured"])
    assert abs(comparison.cosine - exact["cosine"]) <= CLOSE
    assert abs(comparison.sum_norm - exact["sum_norm"]) <= CLOSE * comparison.orthogonal_norm
    for side in ("columns", "rows"):
        space = getattr(comparison, side)
        for name, expected in exact[side].items():
            kept = tuple(slice(size) for size in expected.shape)
            assert np.allclose(getattr(space, name)[kept], expected, rtol=0.0, atol=CLOSE), name


@given(pairs)
def test_it_is_symmetric(pair):
    first, second = pair
    assume(are_apart(first) and are_apart(second))
    there, back = compare(first, second), compare(second, first)
    turned = {
        side: dataclasses.replace(
            getattr(back, side),
            first_rank=getattr(back, side).second_rank,
            second_rank=getattr(back, side).first_rank,
            overlap=getattr(back, side).overlap.swapaxes(-1, -2),
            first_captured=getattr(back, side).second_captured,
            second_captured=getattr(back, side).first_captured,
        )
        for side in ("columns", "rows")
    }
    assert_same(there, dataclasses.replace(back, first_norm=back.second_norm, second_norm=back.first_norm, **turned))


@given(pairs)
def test_the_transposes_have_columns_and_rows_exchanged(pair):
    assume(all(are_apart(update) for update in pair))
    comparison = compare(*pair)
    other = compare(*(LowRankUpdate(update.A.T, update.B.T, update.scaling) for update in pair))
    assert_same(comparison, dataclasses.replace(other, columns=other.rows, rows=other.columns))


@given(nonzero, seeds)
def test_the_inner_space_of_the_factors_does_not_matter(pair, seed):
    first, second = pair
    assume(are_apart(first) and are_apart(second))
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((first.rank, first.rank)))[0]
    assert_same(compare(LowRankUpdate(first.B @ Q, Q.T @ first.A, first.scaling), second), compare(first, second))


@given(nonzero, seeds)
def test_a_common_orthogonal_change_of_basis_does_not_matter(pair, seed):
    assume(all(are_apart(update) for update in pair))
    rng = np.random.default_rng(seed)
    P, Q = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in pair[0].shape)
    moved = (LowRankUpdate(P @ update.B, update.A @ Q, update.scaling) for update in pair)
    assert_same(compare(*moved), compare(*pair))


@given(pairs_of_updates(max_side=40, max_rank=8, kinds=["equal", "opposite"], dtypes=["float32", "float64"]))
def test_an_update_has_overlap_one_with_itself_and_cancels_with_its_negative(pair):
    first, second = pair
    assume(first.dtype == second.dtype)
    assume(are_apart(first))
    comparison = compare(first, second)
    sign = 1 if np.array_equal(first.B, second.B) else -1
    assert abs(comparison.cosine - sign) <= CLOSE
    exact = comparison.first_norm * (1 + sign)
    assert abs(comparison.sum_norm - exact) <= CLOSE * comparison.first_norm
    for space in (comparison.columns, comparison.rows):
        rank = int(space.first_rank)
        assert np.allclose(np.diagonal(space.overlap)[:rank], 1.0, rtol=0, atol=CLOSE)
        assert abs(space.first_captured[-1] - 1.0) <= CLOSE
        assert np.all(space.angles[:rank] <= CLOSE)


@given(pairs_of_updates(kinds=["zero"]))
def test_a_zero_update_overlaps_with_nothing(pair):
    comparison = compare(*pair)
    assert comparison.cosine == 0
    assert abs(comparison.sum_norm - comparison.second_norm) <= CLOSE * comparison.second_norm
    for space in (comparison.columns, comparison.rows):
        assert space.first_rank == 0
        assert np.isnan(space.angles).all()
        for figure in ("overlap", "overlap_by_chance", "first_captured", "second_captured", "overlap_deviation"):
            assert not np.any(getattr(space, figure)), figure


@given(pairs, st.integers(-600, 600), st.integers(-300, 300))
@example((LowRankUpdate(np.eye(2), np.eye(2)), LowRankUpdate(np.eye(2), np.eye(2))), 700, 0)
def test_powers_of_two_change_no_bit(pair, power, other):
    first, second = pair
    doubles = [LowRankUpdate(*(factor.astype(np.float64) for factor in (u.B, u.A)), u.scaling) for u in pair]
    scaled = (
        LowRankUpdate(np.ldexp(doubles[0].B, power), doubles[0].A, first.scaling),
        LowRankUpdate(doubles[1].B, np.ldexp(doubles[1].A, other), second.scaling),
    )
    comparison, exact = compare(*scaled), compare(*doubles)
    assert comparison.cosine == exact.cosine
    assert comparison.first_norm == np.ldexp(exact.first_norm, power)
    assert comparison.second_norm == np.ldexp(exact.second_norm, other)
    for side in ("columns", "rows"):
        for figure in ("overlap", "angles", "first_captured", "second_captured"):
            one, two = (getattr(getattr(each, side), figure) for each in (comparison, exact))
            assert one.tobytes() == two.tobytes(), figure


@given(seeds, st.floats(-12, -0.5))
def test_small_angles_keep_their_digits(seed, exponent):
    angle = 10.0**exponent
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((30, 4)))[0]
    turned = np.cos(angle) * basis[:, :2] + np.sin(angle) * basis[:, 2:]
    A = np.linalg.qr(rng.standard_normal((20, 2)))[0].T * [[2.0], [1.0]]
    angles = compare(LowRankUpdate(basis[:, :2], A), LowRankUpdate(turned, A)).columns.angles
    assert np.all(np.abs(angles - angle) <= 1e-14)


@given(seeds)
def test_every_angle_up_to_the_smaller_rank_is_finite(seed):
    # One angle of 45°, whose cosine and sine are one number to rounding, and five right angles.
    rng = np.random.default_rng(seed)
    for _ in range(20):
        basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
        turned = np.column_stack([(basis[:, 0] + basis[:, 6]) / np.sqrt(2), basis[:, 7:]])
        B = turned @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
        A = np.linalg.qr(rng.standard_normal((9, 6)))[0].T * np.geomspace(1.0, 0.1, 6)[:, np.newaxis]
        space = compare(LowRankUpdate(basis[:, :6], A), LowRankUpdate(B, A)).columns
        assert np.all(np.abs(space.angles - [np.pi / 4, *[np.pi / 2] * 5]) <= 1e-12)


@given(seeds, st.sampled_from([(20, 15), (15, 20), (20, 20)]), st.sampled_from(["rank 2", "orthogonal"]))
def test_leading_vectors_of_equal_and_of_vanishing_values_are_compared(seed, shape, kind):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal(shape)
    U, values, Vt = np.linalg.svd(matrix, full_matrices=False)
    first = (U[:, :2] * values[:2]) @ Vt[:2] if kind == "rank 2" else U @ Vt
    space = compare(first, matrix, rank=8).columns
    assert space.first_rank == (2 if kind == "rank 2" else 8)
    assert np.isfinite(space.angles[: space.first_rank]).all()


@given(seeds, st.floats(-14, -1), st.integers(1, 8))
def test_leading_spaces_of_a_dense_update_are_their_own(seed, exponent, rank):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, 10)))[0] for size in (20, 15))
    X = (U * np.geomspace(1.0, 10.0**exponent, 10)) @ V.T
    comparison = compare(X, X, rank=rank)
    for space in (comparison.columns, comparison.rows):
        assert np.all(space.angles[: space.first_rank] <= 1e-12)


@given(stacks_of_updates(), stacks_of_updates(), st.sampled_from([None, 0, 1]), st.sampled_from([None, 1, 3]))
def test_a_pair_in_a_batch_is_that_pair(stack, other, rank, workers):
    second = np.zeros_like(stack, dtype=np.float64)
    second[..., : other.shape[-2], : other.shape[-1]] = other.ravel()[0] * 2.0**-20
    whole = compare(stack, second, rank=rank, workers=workers)
    for index in np.ndindex(stack.shape[:-2]):
        single = compare(stack[index], second[index], rank=rank)
        for (name, batched), (_, alone) in zip(figures(whole), figures(single), strict=True):
            if not name.endswith("dimension"):
                assert np.asarray(batched[index]).tobytes() == np.asarray(alone).tobytes(), name


@given(kronecker_updates(dtypes=["float64"]), seeds)
def test_a_kronecker_product_is_its_dense_matrix(update, seed):
    m, n = update.shape
    rng = np.random.default_rng(seed)
    other = LowRankUpdate(rng.standard_normal((m, 1)), rng.standard_normal((1, n)))
    structured, dense = compare(update, other), compare(update.to_dense(), other)
    assert abs(structured.cosine - dense.cosine) <= CLOSE
    assert abs(structured.sum_norm - dense.sum_norm) <= CLOSE * dense.orthogonal_norm


@given(seeds, st.integers(0, 6), st.sampled_from(["float32", "float64"]))
def test_leading_vectors_of_dense_updates_are_those_of_all(seed, rank, dtype):
    rng = np.random.default_rng(seed)
    dense = [(rng.standard_normal((12, 7)) * 2.0 ** -np.arange(7)).astype(dtype) for _ in "12"]
    product = LowRankUpdate(rng.standard_normal((12, 3)) * [4, 2, 1], rng.standard_normal((3, 7)))
    for pair in (dense, [dense[0], product], [product, dense[1]]):
        assume(all(are_apart(update) for update in pair))
        leading, whole = compare(*pair, rank=rank), compare(*pair)
        assert abs(leading.cosine - whole.cosine) <= CLOSE
        assert abs(leading.sum_norm - whole.sum_norm) <= CLOSE * whole.orthogonal_norm
        for side in ("columns", "rows"):
            some, every = getattr(leading, side), getattr(whole, side)
            for name in ("overlap", "first_captured", "second_captured"):
                kept = tuple(slice(size) for size in getattr(some, name).shape)
                assert np.allclose(getattr(some, name), getattr(every, name)[kept], rtol=0, atol=1e-7), name
