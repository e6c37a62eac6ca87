"""Least ranks and measures of rank by example."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import (
    LowRankUpdate,
    Spectrum,
    effective_rank,
    numerical_rank,
    rank_above_noise,
    rank_for_error,
    rank_for_ratio,
    rank_for_variance,
    spectrum,
    stable_rank,
    update_with_spectrum,
)

PLAIN = Spectrum([4.0, 3.0, 0.1, 0.0], np.sqrt(25.01), (10, 4), complete=True)
STACK = Spectrum([[4.0, 3.0], [5.0, 0.0], [0.0, 0.0]], [5.0, 5.0, 0.0], (2, 2), complete=True)
RULES = [rank_for_variance, rank_for_error, rank_for_ratio]
MEASURES = [effective_rank, stable_rank, numerical_rank]


@pytest.mark.parametrize(
    ("rule", "target", "rank"),
    [
        (rank_for_variance, 0.0, 1),
        (rank_for_variance, 0.5, 1),
        (rank_for_variance, 0.64, 2),  # 16/25.01 is a little less
        (rank_for_variance, 0.99, 2),
        (rank_for_variance, 0.9999, 3),
        (rank_for_variance, 1.0, 3),
        (rank_for_error, 1.0, 1),
        (rank_for_error, 0.61, 1),
        (rank_for_error, 0.1, 2),
        (rank_for_error, 0.019, 3),
        (rank_for_error, 0.0, 3),
        (rank_for_ratio, 1.0, 1),
        (rank_for_ratio, 0.75, 2),
        (rank_for_ratio, 0.76, 1),
        (rank_for_ratio, 0.025, 3),
        (rank_for_ratio, 1e-300, 3),
        (rank_for_ratio, 0.0, 4),
    ],
)
def test_rules_by_hand(rule, target, rank):
    assert rule(PLAIN, target) == rank
    assert isinstance(rule(PLAIN, target), np.int64)


def test_ranks_at_exactly_the_target_count():
    s = Spectrum([4.0, 3.0], 5.0, (2, 2), complete=True)
    assert rank_for_variance(s, 0.64) == 1
    assert rank_for_error(s, 0.6) == 1
    assert rank_for_ratio(Spectrum([2.0, 2.0, 1.0], 3.0, (3, 3), complete=True), 0.5) == 3


def test_targets_broadcast_against_the_batch():
    assert rank_for_variance(STACK, 0.9).tolist() == [2, 1, 0]
    assert rank_for_variance(STACK, [0.5, 0.5, 0.5]).tolist() == [1, 1, 0]
    assert rank_for_error(STACK, [0.9, 0.1, 0.0]).tolist() == [1, 1, 0]
    assert rank_for_ratio(STACK, [[0.1], [0.0]]).tolist() == [[2, 1, 0], [2, 2, 0]]
    assert rank_for_variance(PLAIN, [0.1, 0.99]).tolist() == [1, 2]


def test_a_zero_update_has_no_rank():
    for s in (spectrum(np.zeros((3, 4))), spectrum(LowRankUpdate(np.zeros((3, 0)), np.zeros((0, 4))))):
        for rule in RULES:
            for target in (0.0, 0.5, 1.0):
                assert rule(s, target) == 0
        for measure in MEASURES:
            assert measure(s) == 0


@pytest.mark.parametrize(
    ("rule", "target"), [(rank_for_variance, 0.9), (rank_for_error, 0.3), (rank_for_ratio, 0.1), (rank_for_ratio, 0.0)]
)
def test_an_incomplete_spectrum_short_of_the_target_is_refused(rule, target):
    s = spectrum(np.diag([4.0, 3.0, 2.0, 1.0]), rank=2)
    with pytest.raises(ValueError, match=r"2 leading values.*spectrum\(update, rank=\.\.\.\), up to 4"):
        rule(s, target)


def test_an_incomplete_spectrum_that_reaches_the_target_gives_the_rank_of_the_whole():
    update = np.diag([4.0, 3.0, 2.0, 1.0])
    s, whole = spectrum(update, rank=3), spectrum(update)
    for rule, target in ((rank_for_variance, 0.8), (rank_for_error, 0.5), (rank_for_ratio, 0.6)):
        assert rule(s, target) == rule(whole, target)
    assert stable_rank(s) == stable_rank(whole)
    assert rank_for_variance(spectrum(np.zeros((3, 3)), rank=1), 0.5) == 0


def test_measures_by_hand():
    s = Spectrum([2.0, 1.0, 1.0], np.sqrt(6), (3, 5), complete=True)
    assert stable_rank(s) == pytest.approx(1.5, rel=1e-15)
    assert effective_rank(s) == pytest.approx(2 * np.sqrt(2), rel=1e-15)
    assert numerical_rank(s) == 3
    assert effective_rank(spectrum(np.eye(3))) == pytest.approx(3, rel=1e-14)
    assert stable_rank(STACK).tolist() == pytest.approx([25 / 16, 1, 0])
    assert effective_rank(STACK)[1:].tolist() == [1, 0]
    assert numerical_rank(STACK).tolist() == [2, 1, 0]
    for measure in MEASURES:
        assert measure(s).shape == ()


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-310, 5e-324])
def test_measures_do_not_depend_on_size(size):
    s = spectrum(np.ones((5, 4)) * size)
    for measure in MEASURES:
        assert measure(s) == pytest.approx(1, rel=1e-12)
    # Its second value is below half the first even where neither has more than a few bits.
    assert rank_for_ratio(Spectrum([size, 0.0], size, (2, 2), complete=True), 0.5) == 1


def test_measures_that_need_every_value_refuse_an_incomplete_spectrum():
    s = spectrum(np.diag([4.0, 3.0, 2.0]), rank=2)
    with pytest.raises(
        ValueError, match=r"the effective rank needs every singular value.*leading 2.*spectrum\(update\)"
    ):
        effective_rank(s)
    with pytest.raises(ValueError, match=r"the rounding threshold is passed by all 2 leading values.*up to 3"):
        numerical_rank(s)
    assert stable_rank(s) == pytest.approx(29 / 16, rel=1e-15)
    deep = spectrum(np.diag([4.0, 1e-20, 1e-20]), rank=2)
    assert numerical_rank(deep) == 1
    none = spectrum(np.eye(3), rank=0)
    for ask in (stable_rank, numerical_rank, lambda s: rank_for_ratio(s, 0.5)):
        with pytest.raises(ValueError, match=r"has no values; ask for them with spectrum\(update, rank=1\)"):
            ask(none)


@pytest.mark.parametrize(
    ("dtype", "relative"),
    [
        ("float64", 10 * 2.0**-52),
        ("float32", 10 * 2.0**-23),
        ("float16", 2.0**-11),
        ("bfloat16", 2.0**-8),
        ("float8_e4m3fn", 2.0**-4),
        ("float8_e5m2", 2.0**-3),
    ],
)
def test_the_numerical_ranks_threshold_is_that_of_the_stored_dtype(dtype, relative):
    for factor, rank in ((1.01, 2), (0.99, 1)):
        values = [1.0, factor * relative]
        assert numerical_rank(Spectrum(values, np.linalg.norm(values), (10, 2), complete=True, dtype=dtype)) == rank


def test_half_an_ulp_of_the_norm_counts_where_there_are_many_values():
    # ½·eps·N with N = 4 σ₁.
    values = np.r_[np.ones(16), 0.99 * 2 * 2.0**-7]
    assert numerical_rank(Spectrum(values, np.linalg.norm(values), (20, 17), complete=True, dtype="bfloat16")) == 16
    values[-1] = 1.01 * 2 * 2.0**-7
    assert numerical_rank(Spectrum(values, np.linalg.norm(values), (20, 17), complete=True, dtype="bfloat16")) == 17


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_stored_product_has_its_numerical_rank(dtype, rank):
    # Small integers make products that every dtype holds exactly.
    rng = np.random.default_rng(rank)
    update = (rng.integers(-1, 2, (40, rank)) @ rng.integers(-1, 2, (rank, 30))).astype(dtype)
    assert numerical_rank(spectrum(update)) == rank
    assert numerical_rank(spectrum(update, method="direct")) == rank


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("target", [-1e-9, 1.0 + 1e-9, 90, np.nan, [0.5, 2.0], "0.9", None, True])
def test_targets_lie_between_0_and_1(rule, target):
    with pytest.raises(ValueError, match=r"(fraction|error|ratio) must lie between 0 and 1; got .*95 % as 0.95"):
        rule(PLAIN, target)


def test_a_synthetic_update_has_the_ranks_of_its_spectrum():
    s = spectrum(update_with_spectrum(np.r_[np.full(8, 2.0), np.zeros(4)], (20, 12), rng=0))
    assert numerical_rank(s) == 8
    assert stable_rank(s) == pytest.approx(8, rel=1e-13)
    assert effective_rank(s) == pytest.approx(8, rel=1e-12)
    assert rank_for_variance(s, 0.99) == 8


def test_a_single_spectrum_is_measured_as_in_a_batch():
    # A hundredth of a per cent of numbers have a square that NumPy's ** rounds otherwise alone than in an array.
    values = np.sort(np.random.default_rng(0).random((20_000, 2)))[:, ::-1]
    s = Spectrum(values, np.linalg.norm(values, axis=-1), (2, 2), complete=True)
    single = [stable_rank(Spectrum(row, norm, (2, 2), complete=True)) for row, norm in zip(values, s.norm, strict=True)]
    assert np.array_equal(stable_rank(s), single)


@pytest.mark.parametrize("size", [1e-200, 1e-3, 1e200])
def test_an_incomplete_spectrum_is_refused_at_any_size_unless_it_is_zero(size):
    for ask in (numerical_rank, lambda s: rank_for_ratio(s, 0.1)):
        with pytest.raises(ValueError, match=r"passed by all 2 leading values"):
            ask(spectrum(np.diag([4.0, 3.0, 2.0]) * size, rank=2))
        assert ask(spectrum(np.zeros((3, 3)), rank=2)) == 0


def test_rank_above_noise_by_hand():
    # β = 1: τ = 4/√3 · s · √3 = 4s; unknown: 4/√3 over the root of the median 0.652776 … of the law.
    s = Spectrum([9.0, 1.0, 0.5], np.sqrt(82.25), (3, 3), complete=True)
    assert [rank_above_noise(s, noise) for noise in (0.1, 0.249, 0.251, 2.2, 2.3)] == [3, 2, 1, 1, 0]
    assert rank_above_noise(s, 0.0) == 3
    assert rank_above_noise(s) == 1
    assert rank_above_noise(Spectrum([2.86, 1.0, 0.5], np.sqrt(2.86**2 + 1.25), (3, 3), complete=True)) == 1
    assert rank_above_noise(Spectrum([2.85, 1.0, 0.5], np.sqrt(2.85**2 + 1.25), (3, 3), complete=True)) == 0
    # The values that a complete spectrum leaves out are zeros of the median: here the mean of 1 and 0.
    half = Spectrum([2.0, 1.0], np.sqrt(5.0), (4, 4), complete=True)
    assert rank_above_noise(half, 0.0) == 2
    assert rank_above_noise(half) == 1
    assert isinstance(rank_above_noise(s), np.int64)


def test_rank_above_noise_broadcasts_and_is_0_for_zero_updates():
    assert rank_above_noise(STACK, 0.0).tolist() == [2, 1, 0]
    assert rank_above_noise(STACK, [[0.9], [10.0]]).tolist() == [[2, 1, 0], [0, 0, 0]]
    assert rank_above_noise(spectrum(np.zeros((3, 4)))) == 0
    assert rank_above_noise(spectrum(np.zeros((3, 4))), 0.0) == 0


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200])
def test_rank_above_noise_does_not_depend_on_size(size):
    s = spectrum(np.diag([9.0, 1.0, 0.5]) * size)
    assert rank_above_noise(s) == 1
    assert rank_above_noise(s, 0.25 * size) in {1, 2}
    assert rank_above_noise(s, 1e308) == 0


def test_rank_above_noise_refuses_what_it_cannot_estimate():
    with pytest.raises(ValueError, match=r"unknown noise needs every singular value.*leading 2.*or give the noise"):
        rank_above_noise(spectrum(np.eye(5), rank=2))
    with pytest.raises(ValueError, match=r"median singular value is 0.*numerical_rank, or give the noise"):
        rank_above_noise(spectrum(LowRankUpdate(np.ones((5, 2)), np.ones((2, 6)))))
    with pytest.raises(ValueError, match=r"passed by all 2 leading values"):
        rank_above_noise(spectrum(np.eye(5), rank=2), 0.1)
    assert rank_above_noise(spectrum(np.diag([5.0, 1.0, 1.0, 1.0, 1.0]), rank=2), 0.3) == 1
    for noise in (-1.0, np.nan, np.inf, "0.1", True):
        with pytest.raises(ValueError, match=r"noise must be finite and at least 0"):
            rank_above_noise(PLAIN, noise)


@pytest.mark.parametrize("shape", [(200, 2000), (2000, 200), (500, 500)])
def test_planted_ranks_are_recovered_from_noise(shape):
    """In 95 of 100 draws at 1.5 times the threshold, the noise's size known or not."""
    rng, planted, noise = np.random.default_rng(0), 5, 0.01
    beta = min(shape) / max(shape)
    known = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    signal = 1.5 * known * noise * np.sqrt(max(shape))
    counts = []
    for _ in range(5):
        # Noise looks the same in every basis, so that of the signal may be the coordinates.
        stack = noise * rng.standard_normal((20, *shape), dtype=np.float32)
        stack[:, np.arange(planted), np.arange(planted)] += np.float32(signal)
        s = spectrum(stack)
        counts.append([rank_above_noise(s, noise), rank_above_noise(s)])
    right = np.sum(np.array(counts) == planted, axis=(0, 2))
    assert np.all(right >= 95)
