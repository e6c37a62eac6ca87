"""Rounding of stored weights: its size, its edge, and updates recovered from pairs of stored matrices."""

from dataclasses import FrozenInstanceError

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import Spectrum, spectrum
from lowrank_core.rounding_noise import NoiseLevel, rounding_noise, ulps

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORED = [np.float64, np.float32, np.float16, BFLOAT16]


def weights(rng, shape, kind):
    """Entries as networks have them: heavy-tailed; rows of very different size; a few columns 20 times the rest."""
    m, n = shape
    drawn = 0.02 * rng.standard_t(4, shape)
    if kind == "rows":
        drawn *= np.exp(rng.standard_normal((m, 1)))
    if kind == "outliers":
        drawn *= np.exp(0.5 * rng.standard_normal((m, 1))) * np.where(rng.random(n) < 0.02, 20.0, 1.0)
    return drawn


def step_sizes(stored):
    """Root mean square of the distance from each stored number to the next."""
    sizes = np.abs(stored)
    following = np.nextafter(sizes, np.asarray(np.inf, dtype=stored.dtype))
    return np.sqrt(np.mean((following.astype(np.float64) - sizes.astype(np.float64)) ** 2))


def low_rank(rng, shape, rank):
    product = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return product / np.sqrt(np.mean(product**2))


def difference(base, tuned):
    return spectrum(tuned.astype(np.float64) - base.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_noise_is_the_mean_of_the_squared_steps(dtype):
    base = np.array([[1.0, 3.0], [0.5, 96.0]]).astype(dtype)
    tuned = np.array([[1.5, 2.5], [0.75, 112.0]]).astype(dtype)
    noise = rounding_noise(base, tuned)
    squares = (np.array([1.0, 2.0, 0.5, 64.0]) * float(ml_dtypes.finfo(dtype).eps)) ** 2
    assert noise.one_side.std == pytest.approx(np.sqrt(squares.mean() / 12), rel=1e-12)
    assert noise.two_sides.std == pytest.approx(np.sqrt(2 * squares.mean() / 12), rel=1e-12)
    assert noise.unchanged == 0.0


def test_steps_far_below_the_largest_add_nothing():
    base = np.array([[1.0, 1e-20], [1e-20, 1.0]], dtype=np.float32)
    noise = rounding_noise(base, 1.5 * base)
    assert noise.one_side.std == pytest.approx(2.0**-23 * np.sqrt(0.5 / 12), rel=1e-12)


@pytest.mark.parametrize(("m", "n"), [(200, 100), (60, 300)])
def test_edge_of_weights_in_one_binade_is_the_formula(m, n):
    rng = np.random.default_rng(0)
    base, tuned = rng.uniform(1.0, 1.99, (2, m, n)).astype(BFLOAT16)
    noise = rounding_noise(base, tuned)
    std, a, b = 2.0**-7 / np.sqrt(12), np.sqrt(m), np.sqrt(n)
    edge = std * np.sqrt((a + b) ** 2 + 2.02 * (a + b) * (1 / a + 1 / b) ** (1 / 3))
    assert noise.one_side.std == pytest.approx(std, rel=1e-12)
    assert noise.one_side.edge == pytest.approx(edge, rel=1e-6)
    assert noise.two_sides.edge == pytest.approx(np.sqrt(2) * edge, rel=1e-6)


@pytest.mark.parametrize("kind", ["heavy", "rows", "outliers"])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_rounding_alone_has_no_rank(kind, dtype):
    rng = np.random.default_rng(1)
    none = exceeded_by_the_mean = 0
    for _ in range(100):
        base = weights(rng, (100, 80), kind).astype(np.float32)
        noise, s = rounding_noise(base, base.astype(dtype)), difference(base, base.astype(dtype))
        assert noise.applies
        none += noise.one_side.rank(s) == 0
        mean = noise.one_side.std * (np.sqrt(100) + np.sqrt(80)) * 1.05
        exceeded_by_the_mean += s.values[0] > mean
    assert none >= 95
    # The edge of equal variances is too low for such weights: rounding would pass for an update.
    assert exceeded_by_the_mean > 50


@pytest.mark.parametrize("kind", ["heavy", "rows", "outliers"])
@pytest.mark.parametrize("strength", [1.0, 2.0, 8.0])
def test_an_update_of_an_ulp_or_more_is_recovered(kind, strength):
    rng = np.random.default_rng(2)
    recovered = 0
    for _ in range(30):
        base = weights(rng, (240, 160), kind).astype(BFLOAT16)
        update = strength * step_sizes(base) * low_rank(rng, base.shape, 3)
        tuned = (base.astype(np.float64) + update).astype(BFLOAT16)
        noise = rounding_noise(base, tuned)
        assert noise.applies
        recovered += noise.one_side.rank(difference(base, tuned)) == 3
    assert recovered >= 0.95 * 30


@pytest.mark.parametrize("kind", ["heavy", "rows", "outliers"])
def test_two_sides_is_the_level_where_both_matrices_were_rounded(kind):
    rng = np.random.default_rng(3)
    none = recovered = 0
    for case in range(40):
        fine = weights(rng, (160, 120), kind)
        update = low_rank(rng, fine.shape, 2) * (0.0 if case % 2 else 2.0) * step_sizes(fine.astype(BFLOAT16))
        # The base in float16 was rounded too, about 8 times finer; and both in bfloat16 for the update.
        base = fine.astype(np.float16 if case % 2 else BFLOAT16)
        tuned = (fine + update).astype(BFLOAT16)
        rank = rounding_noise(base, tuned).two_sides.rank(difference(base, tuned))
        none += case % 2 and rank == 0
        recovered += not case % 2 and rank == 2
    assert none >= 19
    assert recovered >= 19


@pytest.mark.parametrize("kind", ["heavy", "rows", "outliers"])
def test_far_under_an_ulp_the_model_does_not_apply(kind):
    rng = np.random.default_rng(4)
    for _ in range(20):
        base = weights(rng, (120, 90), kind).astype(BFLOAT16)
        tuned = (base.astype(np.float64) + 0.05 * step_sizes(base) * low_rank(rng, base.shape, 3)).astype(BFLOAT16)
        noise = rounding_noise(base, tuned)
        assert not noise.applies
        assert noise.unchanged > 0.6


def test_rounding_exceeds_the_edge_only_where_the_model_does_not_apply():
    # Weights of one kind, where the edge is sharp: the threshold of one half is where it starts to give way.
    rng = np.random.default_rng(5)
    for strength in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0):
        base = (0.02 * rng.standard_normal((240, 160))).astype(BFLOAT16)
        update = strength * step_sizes(base) * low_rank(rng, base.shape, 4)
        tuned = (base.astype(np.float64) + update).astype(BFLOAT16)
        noise = rounding_noise(base, tuned)
        rounding = spectrum(tuned.astype(np.float64) - base.astype(np.float64) - update).values[0]
        assert noise.applies == (strength >= 0.7)
        assert not noise.applies or rounding < noise.one_side.edge


@pytest.mark.parametrize(("first_row", "first_column"), [(200, 10), (200, 0), (0, 40)])
def test_unchanged_rows_and_columns_are_left_out(first_row, first_column):
    rng = np.random.default_rng(6)
    base = rng.standard_normal((300, 100)).astype(BFLOAT16)
    # Had they been rounded, the edge would be theirs.
    base[:first_row] *= 64
    base[:, :first_column] *= 64
    tuned, touched = base.copy(), np.s_[first_row:, first_column:]
    update = 0.05 * low_rank(rng, base[touched].shape, 2)
    tuned[touched] = (base[touched].astype(np.float64) + update).astype(BFLOAT16)
    noise, part = rounding_noise(base, tuned), rounding_noise(base[touched], tuned[touched])
    assert noise.unchanged > part.unchanged
    assert noise.applies
    assert part.applies
    assert noise.one_side.edge == pytest.approx(part.one_side.edge, rel=1e-6)
    assert noise.one_side.rank(difference(base, tuned)) == 2


def test_equal_matrices_have_a_noise_level_and_rank_0():
    base = np.random.default_rng(7).standard_normal((30, 20)).astype(np.float16)
    noise = rounding_noise(base, base)
    s = difference(base, base)
    assert (noise.unchanged, noise.applies) == (1.0, True)
    assert (noise.one_side.rank(s), noise.one_side.variance_below(s)) == (0, 0.0)
    assert noise.one_side.edge > 0


@pytest.mark.parametrize("power", [-600, 600])
def test_noise_levels_scale_with_the_weights(power):
    base, tuned = np.random.default_rng(8).standard_normal((2, 20, 30))
    plain = rounding_noise(base, tuned).one_side
    scaled = rounding_noise(np.ldexp(base, power), np.ldexp(tuned, power)).one_side
    assert np.ldexp(scaled.std, -power) == plain.std
    assert np.ldexp(scaled.edge, -power) == plain.edge


def test_zeros_and_single_entries():
    noise = rounding_noise(np.zeros((3, 4), dtype=np.float16), np.zeros((3, 4), dtype=np.float16))
    assert noise.one_side.std == pytest.approx(2.0**-24 / np.sqrt(12), rel=1e-12)
    one = rounding_noise(np.ones((1, 1), dtype=BFLOAT16), np.full((1, 1), 1.5, dtype=BFLOAT16))
    assert one.one_side.edge > 2.0**-8


def test_noise_levels_are_frozen():
    noise = rounding_noise(np.eye(3), np.ones((3, 3)))
    for value, name in ((noise, "applies"), (noise.one_side, "edge")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 0.0)


def test_rank_and_variance_below_the_edge():
    s = Spectrum([4.0, 2.0, 1.0], np.sqrt(21.0), (9, 3), complete=True)
    assert NoiseLevel(0.1, 2.0).rank(s) == 1
    assert NoiseLevel(0.1, 2.0).variance_below(s) == pytest.approx(5 / 21, rel=1e-15)
    part = Spectrum([4.0, 2.0], np.sqrt(21.0), (9, 3), complete=False)
    assert NoiseLevel(0.1, 2.0).rank(part) == 1
    with pytest.raises(ValueError, match=r"edge 1\.5.*all 2 leading values.*spectrum\(update, rank=\.\.\.\), up to 3"):
        NoiseLevel(0.1, 1.5).variance_below(part)


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"^base has shape \(2, 3\) and tuned \(3, 2\)"),
        (np.ones((2, 2, 3)), np.ones((2, 2, 3)), "matrices of a stack one by one"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), "^tuned contains nan at row 0, column 0"),
        (np.full((2, 3), np.inf), np.ones((2, 3)), "^base contains inf at row 0, column 0"),
        (np.ones((2, 3), dtype=complex), np.ones((2, 3)), "^base has unsupported dtype complex128"),
        (np.ones((2, 3)), np.ones((2, 3), dtype=complex), "^tuned has unsupported dtype complex128"),
    ],
)
def test_pairs_that_do_not_match_are_refused(base, tuned, message):
    with pytest.raises(ValueError, match=message):
        rounding_noise(base, tuned)


@pytest.mark.parametrize("question", [NoiseLevel(1.0, 2.0).rank, NoiseLevel(1.0, 2.0).variance_below])
def test_a_noise_level_refuses_what_is_not_the_spectrum_of_one_update(question):
    with pytest.raises(ValueError, match=r"spectrum is a ndarray; a Spectrum is needed"):
        question(np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"spectrum is a batch of spectra, of shape \(2, 3\); that of one update"):
        question(spectrum(np.ones((2, 3, 3))))


@pytest.mark.parametrize("step", [0.5, np.full((2, 1), 0.5), np.full((2, 3), 0.5, np.float32)])
def test_steps_that_are_given_take_the_place_of_the_dtypes(step):
    base, tuned = np.zeros((2, 3)), np.ones((2, 3))
    noise = rounding_noise(base, tuned, base_step=step, tuned_step=2 * np.asarray(step))
    assert noise.one_side.std == pytest.approx(1.0 / np.sqrt(12), rel=1e-6)
    assert noise.two_sides.std == pytest.approx(np.sqrt(1.25 / 12), rel=1e-6)
    assert not noise.base_is_coarser
    assert rounding_noise(base, tuned, base_step=step).base_is_coarser


def test_steps_of_a_dtype_that_are_given_change_nothing():
    base, tuned = np.random.default_rng(10).standard_normal((2, 40, 30)).astype(BFLOAT16)
    tuned[:25] = base[:25]
    given = rounding_noise(base, tuned, base_step=ulps(base), tuned_step=ulps(tuned))
    plain = rounding_noise(base, tuned)
    assert (given.unchanged, given.applies) == (plain.unchanged, plain.applies)
    for first, second in ((given.one_side, plain.one_side), (given.two_sides, plain.two_sides)):
        assert first.std == pytest.approx(second.std, rel=1e-6)
        assert first.edge == pytest.approx(second.edge, rel=1e-6)


def test_an_entry_is_unchanged_where_the_multiple_of_its_step_is_the_same():
    base = np.array([[8.0, 9.0, 0.0, 15.0]])
    tuned = 1.01 * np.array([[8.0, 10.0, 0.0, 15.0]])
    assert rounding_noise(base, tuned, base_step=1.0, tuned_step=1.01).unchanged == 0.75
    # Twice the multiple of half the step is another number.
    assert rounding_noise(base, base / 2, base_step=1.0, tuned_step=0.5).unchanged == 0.25


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (-1.0, "^tuned_step contains what is not a step"),
        (np.nan, "^tuned_step contains what is not a step"),
        ("1", "^tuned_step contains what is not a step"),
        (np.ones((3, 2)), r"^tuned_step has shape \(3, 2\), which does not broadcast to the matrices' \(2, 3\)"),
    ],
)
def test_steps_that_do_not_fit_are_refused(step, message):
    with pytest.raises(ValueError, match=message):
        rounding_noise(np.zeros((2, 3)), np.ones((2, 3)), tuned_step=step)


def test_steps_of_zero_have_no_noise():
    noise = rounding_noise(np.zeros((2, 3)), np.ones((2, 3)), base_step=0.0, tuned_step=0.0)
    assert (noise.one_side.std, noise.two_sides.std) == (0.0, 0.0)
