"""Comparisons on sizes that take the routes of large factors, chance, and what is refused."""

import numpy as np
import pytest

from lowrank_core import LowRankUpdate, compare
from tests import oracles

ONES = LowRankUpdate(np.ones((4, 1)), np.ones((1, 3)))


def with_condition(rng, shape, condition):
    """Gaussian columns mixed so that their condition number is about this."""
    mix = np.linalg.qr(rng.standard_normal((shape[1],) * 2))[0] * np.geomspace(1.0, 1.0 / condition, shape[1])
    return rng.standard_normal(shape) @ mix @ np.linalg.qr(rng.standard_normal((shape[1],) * 2))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("condition", [1.0, 30.0, 1e3, 2e4])
def test_long_factors_are_compared_as_dense_matrices_are(dtype, condition):
    rng = np.random.default_rng(0)
    B, A = with_condition(rng, (520, 6), condition), with_condition(rng, (30, 6), 2.0).T
    first = LowRankUpdate(B.astype(dtype), A.astype(dtype))
    second = LowRankUpdate((B + 1e-5 * rng.standard_normal(B.shape)).astype(dtype), A.astype(dtype), -0.5)
    exact = oracles.comparison(first.to_dense(), second.to_dense())
    comparison = compare(first, second)
    # The vectors of values near rounding are known no better than rounding over those values.
    bound = max(1e-10, 1e-15 * condition)
    assert abs(comparison.cosine - exact["cosine"]) <= 1e-13
    assert abs(comparison.sum_norm - exact["sum_norm"]) <= 1e-13 * comparison.orthogonal_norm
    for side in ("columns", "rows"):
        for name, expected in exact[side].items():
            kept = tuple(slice(size) for size in expected.shape)
            assert np.allclose(getattr(getattr(comparison, side), name)[kept], expected, rtol=0, atol=bound), name


def figures(comparison):
    yield from (comparison.first_norm, comparison.second_norm, comparison.cosine, comparison.sum_norm)
    for space in (comparison.columns, comparison.rows):
        yield from (space.first_rank, space.angles, space.overlap, space.first_captured, space.second_captured)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("shape", "ranks"), [((520, 30), (6, 6)), ((300, 280), (150, 20)), ((40, 30), (3, 5))])
@pytest.mark.parametrize("near", [False, True])
def test_a_pair_has_the_bits_that_it_has_in_a_stack(dtype, shape, ranks, near):
    count = 100 if max(shape) < 100 else 9
    rng = np.random.default_rng(0)
    (B, A), (B2, A2) = (
        (rng.standard_normal((count, shape[0], rank)), rng.standard_normal((count, rank, shape[1]))) for rank in ranks
    )
    if near:
        common = slice(min(ranks))
        B2[..., common] = B[..., common] + 0.02 * B2[..., common]
        A2[:, common] = A[:, common] + 0.02 * A2[:, common]
    # Not by Gram matrices: one pair is ill conditioned, one zero.
    B[1] *= np.geomspace(1.0, 1e-9, ranks[0])
    B[2] = 0.0
    one, other = LowRankUpdate(B.astype(dtype), A.astype(dtype), 0.5), LowRankUpdate(B2.astype(dtype), A2.astype(dtype))
    for rank in (None, 2):
        whole = compare(one, other, rank=rank, workers=2)
        for i in range(count):
            alone = compare(
                LowRankUpdate(one.B[i], one.A[i], 0.5), LowRankUpdate(other.B[i], other.A[i]), rank=rank, workers=1
            )
            for batched, single in zip(figures(whole), figures(alone), strict=True):
                assert np.asarray(batched[i]).tobytes() == np.asarray(single).tobytes()


def test_the_norm_of_a_lone_sum_is_rounded_as_in_a_stack():
    # Two of a thousand numbers whose square by NumPy's power differs from that of an entry of an array.
    one, other = (LowRankUpdate(np.full((8, 1, 1), x / 2**20), np.ones((8, 1, 1))) for x in (786449.0, 762838.0))
    alone = compare(*(LowRankUpdate(update.B[0], update.A[0]) for update in (one, other))).sum_norm
    assert np.all(compare(one, other).sum_norm == alone)


@pytest.mark.parametrize("seed", range(3))
def test_random_spaces_have_the_level_and_the_deviation_of_chance(seed):
    count, m, n = 300, 24, 30
    rng = np.random.default_rng(seed)
    one, other = (LowRankUpdate(rng.standard_normal((count, m, r)), rng.standard_normal((count, r, n))) for r in (3, 5))
    comparison = compare(one, other)
    # Five and a half standard errors, of a hundred figures.
    assert abs(comparison.cosine.mean()) <= 5.5 * comparison.cosine_deviation / np.sqrt(count)
    assert abs(comparison.cosine.std() / comparison.cosine_deviation - 1) <= 0.3
    for space in (comparison.columns, comparison.rows):
        expected, deviation = space.overlap_by_chance[0], space.overlap_deviation[0]
        assert np.all(np.abs(space.overlap.mean(axis=0) - expected) <= 5.5 * deviation / np.sqrt(count))
        assert np.all(np.abs(space.overlap.std(axis=0) / deviation - 1) <= 0.5)
        assert np.allclose(space.first_captured.mean(axis=0), space.first_captured_by_chance[0], atol=0.05)
        assert np.allclose(space.second_captured.mean(axis=0), space.second_captured_by_chance[0], atol=0.05)


def test_a_rank_keeps_so_many_vectors_and_the_energies_of_whole_updates():
    rng = np.random.default_rng(0)
    one, other = (LowRankUpdate(rng.standard_normal((9, 4)), rng.standard_normal((4, 7))) for _ in "12")
    whole, leading = compare(one, other), compare(one, other, rank=2)
    assert leading.cosine == whole.cosine
    assert np.allclose(leading.rows.overlap, whole.rows.overlap[:2, :2], rtol=0, atol=1e-14)
    assert np.allclose(leading.rows.first_captured, whole.rows.first_captured[:2], rtol=0, atol=1e-14)
    assert leading.rows.angles.shape == (2,)
    assert compare(one, other, rank=0).columns.overlap.shape == (0, 0)


def test_a_cosine_of_updates_with_themselves_is_never_beyond_one():
    rng = np.random.default_rng(0)
    update = LowRankUpdate(rng.standard_normal((500, 9, 4)), rng.standard_normal((500, 4, 7)))
    cosines = compare(update, update).cosine
    assert np.all(cosines <= 1.0)
    assert np.all(compare(update, LowRankUpdate(-update.B, update.A)).cosine == -cosines)


@pytest.mark.parametrize("ranks", [(0, 2), (2, 0), (0, 0)])
def test_factors_of_no_column_are_a_zero_update(ranks):
    one, other = (LowRankUpdate(np.ones((9, r)), np.ones((r, 7))) for r in ranks)
    comparison = compare(one, other)
    assert (comparison.cosine, comparison.sum_norm) == (0.0, np.hypot(comparison.first_norm, comparison.second_norm))
    assert comparison.columns.overlap.size == 0


def test_an_update_whose_norm_underflows_is_compared_as_larger_ones_are():
    tiny = LowRankUpdate(np.full((4, 1), 1e-200), np.full((1, 3), 1e-200))
    for second in (tiny, ONES):
        comparison = compare(tiny, second)
        assert comparison.first_norm == 0.0
        assert (comparison.columns.first_rank, comparison.columns.angles[0]) == (1, 0.0)
        assert abs(comparison.cosine - 1.0) <= 1e-15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONES, np.ones((3, 4))), r"first has shape \(4, 3\) and second \(3, 4\); two updates of one shape"),
        ((np.ones((2, 4, 3)), np.ones((3, 4, 3))), r"batch axes of first \(2,\) and second \(3,\) do not broadcast"),
        ((np.full((4, 3), np.nan), ONES), "first contains nan at row 0, column 0"),
        ((ONES, LowRankUpdate(np.full((4, 1), np.inf), np.ones((1, 3)))), "B of second contains inf"),
        ((ONES, LowRankUpdate(np.ones((4, 1), "f4"), np.full((1, 3), np.nan, "f4"))), "A of second contains nan"),
        ((np.full((2, 2), 8e307), np.full((2, 2), 8e307)), "the norm of the sum does not fit float64"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(*arguments)


def test_a_rank_beyond_both_sides_is_refused():
    with pytest.raises(ValueError, match="rank 4 is beyond"):
        compare(ONES, ONES, rank=4)
