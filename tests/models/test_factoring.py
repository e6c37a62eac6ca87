import math
import pickle

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import LowRankUpdate, Spectrum, spectrum, update_with_spectrum
from lowrank_core.models.formats.kohya import KOHYA
from lowrank_core.models.norms import residual_norm
from lowrank_core.models.operations.factoring import FactorEncoding, factor, unchanged
from lowrank_core.models.operations.rank_choice import check_rank, keep_all, rank_of
from tests.models.models_on_disk import naive_figures

ENCODINGS = [
    FactorEncoding("float64"),
    FactorEncoding("float32", alpha=3.0, rule="rslora"),
    FactorEncoding("bfloat16"),
    FactorEncoding("float16", uniform=True),
]


def dense(stored):
    return stored.scaling * stored.B.astype(np.float64) @ stored.A.astype(np.float64)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("rank", [1, 5, 9])
@pytest.mark.parametrize("kind", ["float64", "float32", "product"])
def test_figures_are_those_of_numpy(rng, encoding, rank, kind):
    B, A = rng.standard_normal((14, 9)), rng.standard_normal((9, 11)) * 0.5 ** np.arange(9)[:, None]
    update = LowRankUpdate(B, A, 0.7) if kind == "product" else (0.7 * B @ A).astype(kind)
    found = factor(update, rank, encoding)
    exact = update.to_dense() if kind == "product" else update.astype(np.float64)
    for name, figure in naive_figures(exact, dense(found.update), rank).items():
        # Of a float32 layer at a fixed rank only the leading values are known: √(N² − H) stops at about 3e-8.
        tolerance = 3e-8 if name == "best_error" and kind == "float32" else 2e-12
        assert getattr(found, name) == pytest.approx(figure, rel=1e-9, abs=tolerance), name
    assert found.norm == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert found.scaling == found.update.scaling == encoding.stored_scale(rank).scaling
    assert found.update.B.dtype == found.update.A.dtype == np.dtype(encoding.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_what_a_large_layer_misses_is_reported(dtype, tolerance):
    update = update_with_spectrum(0.9 ** np.arange(100.0), (1024, 1024), rng=0).astype(dtype)
    found = factor(update, 4, FactorEncoding("float64"))
    assert 0 < found.missed <= tolerance
    assert found.singular_values.size == 4
    full = factor(update, 4, FactorEncoding("float64"), tolerance=0.0)
    assert full.missed == 0
    # The squared error is at most 1 + missed times the least.
    assert found.error**2 <= (1 + found.missed) * full.error**2 * (1 + 1e-13)


def test_a_large_float32_layer_is_decomposed_in_part(rng):
    values = 0.5 ** np.arange(40.0)
    update = update_with_spectrum(values, (1024, 1024), rng=0).astype(np.float32)
    found = factor(update, 4, FactorEncoding())
    assert found.singular_values.size == 4
    assert found.singular_values == pytest.approx(values[:4], rel=1e-4)
    best = np.sqrt(np.sum(values[4:] ** 2) / np.sum(values**2))
    # What a partial method owes, and what the float32 of the update itself loses.
    assert found.best_error == pytest.approx(best, rel=5e-5)
    assert found.error == pytest.approx(best, rel=5e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
@pytest.mark.parametrize("kind", ["dense", "product"])
def test_any_size_that_the_stored_dtype_can_hold(rng, scale, kind):
    B, A = rng.standard_normal((6, 3)), rng.standard_normal((3, 5))
    update = LowRankUpdate(scale * B, A) if kind == "product" else scale * B @ A
    found = factor(update, 2, FactorEncoding("float64"))
    values = np.linalg.svd(B @ A)[1]
    error = np.linalg.norm(values[2:]) / np.linalg.norm(values)
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.norm == pytest.approx(scale * np.linalg.norm(values), rel=1e-12)


def test_unbalanced_factors_of_a_product(rng):
    B, A = rng.standard_normal((6, 3)), rng.standard_normal((3, 5))
    found = factor(LowRankUpdate(1e200 * B, 1e-200 * A), 3, FactorEncoding("float32"))
    assert found.rank == 3
    assert found.error < 1e-6


@pytest.mark.parametrize(
    "update", [np.zeros((4, 3)), np.zeros((4, 3), "f4"), LowRankUpdate(np.ones((4, 2)), np.zeros((2, 3)))]
)
def test_a_zero_update(update):
    found = factor(update, 2, FactorEncoding())
    assert (found.rank, found.norm, found.error, found.best_error, found.variance_captured) == (0, 0.0, 0.0, 0.0, 1.0)
    assert found.update is None
    kept = factor(update, 2, FactorEncoding(), min_rank=1)
    assert (kept.rank, kept.error) == (1, 0.0)
    assert np.all(dense(kept.update) == 0)


def test_rank_0():
    found = factor(np.eye(3), 0, FactorEncoding())
    assert (found.rank, found.error, found.best_error, found.variance_captured, found.scaling) == (
        0,
        1.0,
        1.0,
        0.0,
        0.0,
    )


def test_rounding_is_not_a_component(rng):
    B, A = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    near = LowRankUpdate(np.hstack([B, B]), np.vstack([A, -A * (1 + 1e-9)]))
    same = LowRankUpdate(np.hstack([B, B]), np.vstack([A, -A]))
    padded = LowRankUpdate(np.hstack([B, B[:, :2], 0 * B]), np.vstack([A, A[:2], A]))
    assert factor(near, 8, FactorEncoding("float64")).rank == 4
    assert factor(same, 8, FactorEncoding("float64")).rank == 0
    found = factor(padded, keep_all, FactorEncoding("float64"))
    assert (found.rank, found.requested_rank) == (4, 4)
    assert found.error < 1e-12


def test_small_components_of_a_graded_product_are_kept(rng):
    U, V = (np.linalg.qr(rng.standard_normal((20, 6)))[0] for _ in range(2))
    sizes = 10.0 ** -np.arange(0, 12, 2)
    found = factor(LowRankUpdate(U * sizes, V.T), keep_all, FactorEncoding("float64"))
    assert found.rank == 6
    assert found.singular_values == pytest.approx(sizes, rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite(bad):
    with pytest.raises(ValueError, match=r"contains (nan|inf) at row 0"):
        factor(np.array([[1.0, bad]]), 1, FactorEncoding())
    with pytest.raises(ValueError, match=r"contains (nan|inf) at row 0"):
        factor(LowRankUpdate(np.array([[bad]]), np.ones((1, 2))), 1, FactorEncoding())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_factors_beyond_single_precision(dtype):
    with pytest.raises(ValueError, match=f"do not fit {dtype}: store them in float64"):
        factor(np.diag([1e100, 1.0]), 1, FactorEncoding(dtype))


def test_factors_beyond_their_dtype():
    with pytest.raises(ValueError, match="do not fit float16: store them in bfloat16 or float32"):
        factor(np.diag([1e12, 1.0]), 1, FactorEncoding("float16"))


@pytest.mark.parametrize(
    ("encoding", "rank", "alpha", "scaling"),
    [
        (FactorEncoding(), 8, 16.0, 2.0),
        (FactorEncoding(rule="rslora"), 4, 16.0, 8.0),
        (FactorEncoding(alpha=5.0), 2, 5.0, 2.5),
        (FactorEncoding(uniform=True), 3, 3.0, 1.0),
        (FactorEncoding(scale=KOHYA.scale, rule="rslora", dtype="float64"), 4, 32.0, 8.0),
        # bfloat16 has no 257: alpha is what can be stored, and the factors take up the rest.
        (FactorEncoding(scale=KOHYA.scale, alpha=257.0, dtype="bfloat16"), 2, 256.0, 128.0),
    ],
)
def test_alpha_and_scaling(encoding, rank, alpha, scaling):
    assert (encoding.stored_scale(rank).alpha, encoding.stored_scale(rank).scaling) == (alpha, scaling)


@pytest.mark.parametrize("rank", [2, 3, 7])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_an_alpha_that_was_rounded_does_not_change_the_update(rng, rank, dtype):
    update = rng.standard_normal((9, 8))
    encoding = FactorEncoding(dtype, alpha=257.3, rule="rslora", scale=KOHYA.scale)
    found = factor(update, rank, encoding)
    read = float(np.asarray(encoding.stored_scale(rank).alpha, dtype=np.dtype(dtype))) / rank
    product = read * found.update.B.astype(float) @ found.update.A.astype(float)
    assert np.linalg.norm(product - update) / np.linalg.norm(update) == pytest.approx(found.error, rel=1e-12)
    assert found.storage_error <= 2 * float(ml_dtypes.finfo(dtype).eps) * rank**0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unsupported dtype 'int8': float64"),
        ({"dtype": "float8_e5m2"}, "float64, float32, float16, bfloat16 are written"),
        ({"rule": "unscaled"}, "unsupported rule 'unscaled': an adapter can name"),
        ({"alpha": math.nan}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"uniform": True, "alpha": 1.0}, "uniform sets alpha"),
        ({"uniform": True, "rule": "rslora"}, "uniform sets alpha"),
    ],
)
def test_encodings_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FactorEncoding(**options)


@pytest.mark.parametrize("rank", [-1, 1.5, True, {"a": -1}, {"a": 2.5}, {}])
def test_invalid_ranks(rank):
    with pytest.raises(ValueError, match=r"a rank is a whole number|none for 1 of the layers"):
        check_rank(rank, ["a"])


def test_ranks_by_name_number_and_function():
    ranks = {"a": 3, "another": 1}
    check_rank(ranks, ["a"])
    assert rank_of(ranks, "a") == 3
    assert rank_of(7, "a") == 7
    assert rank_of(keep_all, "a") is keep_all


def test_a_function_that_returns_no_rank(rng):
    with pytest.raises(ValueError, match=r"^a rank is a whole number of at least 0; got 1\.5"):
        factor(rng.standard_normal((3, 3)), lambda _: 1.5, FactorEncoding())


def test_a_function_sees_the_whole_spectrum_of_a_large_layer():
    seen = []
    update = update_with_spectrum(0.5 ** np.arange(40.0), (1024, 1024), rng=0).astype(np.float32)
    factor(update, lambda found: seen.append(found) or 3, FactorEncoding())
    assert isinstance(seen[0], Spectrum)
    assert seen[0].complete


def test_residual_norm_does_not_cancel(rng):
    B, A = rng.standard_normal((30, 3)), rng.standard_normal((3, 20))
    exact = LowRankUpdate(B, A)
    off = LowRankUpdate(B, A * (1 + 1e-10))
    expected = 1e-10 * np.linalg.norm(B @ A)
    assert residual_norm(exact.to_dense(), off) == pytest.approx(expected, rel=1e-4)
    assert residual_norm(exact, off) == pytest.approx(expected, rel=1e-4)


def test_keep_all_ignores_rounding_and_padding():
    assert keep_all(spectrum(np.diag([1.0, 1e-3, 1e-20, 0.0]))) == 2
    assert keep_all(spectrum(np.zeros((3, 3)))) == 0


def test_what_goes_to_a_worker_and_back_is_picklable(rng):
    found = pickle.loads(pickle.dumps(factor(rng.standard_normal((4, 4)), 2, FactorEncoding("bfloat16"))))
    assert found.update.B.dtype == ml_dtypes.bfloat16
    assert pickle.loads(pickle.dumps(FactorEncoding("bfloat16"))) == FactorEncoding("bfloat16")


def test_factors_are_rounded_once():
    """Just above a tie of bfloat16, which float32 on the way would make a tie, and round to even below it."""
    above = 1 + 2.0**-8 + 2.0**-40
    update = LowRankUpdate(np.array([[above], [1.0]]), np.array([[1.0, above]]), 1.0)
    stored = unchanged(update, FactorEncoding("bfloat16", alpha=1.0))
    assert stored.update.B[0, 0] == stored.update.A[0, 1] == 1 + 2.0**-7


def test_what_factors_lose_in_another_dtype_is_relative_to_the_update(rng):
    update = LowRankUpdate(50 * rng.standard_normal((14, 3)), rng.standard_normal((3, 11)), 0.5)
    kept = unchanged(update, FactorEncoding("float16"))
    lost = np.linalg.norm(update.to_dense() - dense(kept.update)) / np.linalg.norm(update.to_dense())
    assert kept.error == kept.storage_error == pytest.approx(lost, rel=1e-9)
    assert 1e-5 < lost < 1e-3
