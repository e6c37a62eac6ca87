"""Calls of truncate(): ranks, functions of the spectrum, and products."""

import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

from lowrank_core import (
    LowRankUpdate,
    numerical_rank,
    rank_for_ratio,
    rank_for_variance,
    spectrum,
    truncate,
    update_with_spectrum,
)
from lowrank_core.testing import assert_eckart_young
from tests import bounds

UPDATE = update_with_spectrum([4.0, 3.0, 2.0, 1.0], (6, 5), rng=0)
PRODUCT = LowRankUpdate(UPDATE[:, :3], np.eye(3, 7), -0.5)


@pytest.mark.parametrize("rank", range(6))
@pytest.mark.parametrize("method", ["auto", "lapack", "direct", "gram", "krylov"])
@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2],
)
def test_each_rank_by_each_method(rank, method, dtype):
    update = UPDATE.astype(dtype)
    best = truncate(update, rank, method=method)
    assert best.B.shape == (6, rank)
    assert best.A.shape == (rank, 5)
    assert best.B.dtype == best.A.dtype == np.float64
    assert (best.dtype, best.scaling) == ("float64", 1.0)
    assert_eckart_young(update, best, rank, eps=bounds.EPS64 if method in {"lapack", "direct"} else bounds.EPS32)


def test_factors_of_wide_and_tall_matrices_have_orthonormal_rows():
    for update in (UPDATE, UPDATE.T):
        for method in ("direct", "gram"):
            best = truncate(update, 3, method=method)
            assert np.allclose(best.A @ best.A.T, np.eye(3), atol=1e-8)
            assert np.allclose(np.linalg.norm(best.B, axis=0), [4.0, 3.0, 2.0], rtol=1e-8)


@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (200, 150)])
def test_lapack_is_numpys_svd_to_the_bit(shape):
    update = np.random.default_rng(0).standard_normal(shape)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        U, values, Vt = np.linalg.svd(update, full_matrices=False)
        best = truncate(update, 3, method="lapack")
    assert np.array_equal(best.B, U[:, :3] * values[:3])
    assert np.array_equal(best.A, Vt[:3])


def test_the_seed_of_krylov_is_the_only_use_of_rng():
    update = update_with_spectrum(1 / np.arange(1.0, 81.0), (90, 80), rng=0)
    one, other = (truncate(update, 5, method="krylov", rng=seed) for seed in (1, 2))
    assert np.array_equal(truncate(update, 5, method="krylov", rng=1).B, one.B)
    assert not np.array_equal(one.B, other.B)
    assert np.array_equal(truncate(update, 5, rng=1).B, truncate(update, 5, rng=2).B)


def test_a_zero_update_is_truncated_to_zero():
    for method in ("direct", "gram", "krylov"):
        best = truncate(np.zeros((4, 5)), 2, method=method)
        assert best.rank == 2
        assert not best.to_dense().any()
    assert truncate(np.zeros((4, 5)), lambda s: rank_for_variance(s, 0.9)).rank == 0


def test_a_rank_by_a_function_of_the_spectrum():
    assert truncate(UPDATE, lambda s: rank_for_variance(s, 0.95)).rank == 3
    assert truncate(UPDATE, numerical_rank).rank == 4
    assert truncate(PRODUCT, lambda s: rank_for_ratio(s, 0.6)).rank == int(rank_for_ratio(spectrum(PRODUCT), 0.6))
    assert truncate(UPDATE, lambda s: s.shape[1] - 5).rank == 0
    stack = np.stack([UPDATE, 2 * UPDATE[::-1]])
    assert truncate(stack, lambda s: rank_for_variance(s, 0.8).max()).B.shape == (2, 6, 2)


def test_the_function_is_given_the_spectrum_of_the_whole_stack():
    stack = np.stack([UPDATE, 0 * UPDATE]).astype(np.float32)
    seen = []
    truncate(stack, lambda s: seen.append(s) or 1)
    (s,) = seen
    assert (s.shape, s.complete, s.dtype) == ((6, 5), True, "float32")
    assert np.all(np.abs(s.values - spectrum(stack).values) <= 2 * bounds.EPS32 * s.values[:, :1])
    assert np.allclose(s.norm, spectrum(stack).norm, rtol=1e-14)
    truncate(PRODUCT, lambda s: seen.append(s) or 1)
    assert (seen[1].shape, seen[1].complete) == ((6, 7), True)
    assert np.allclose(seen[1].values, spectrum(PRODUCT).values, rtol=1e-13)


def test_a_function_may_call_the_library():
    rank = truncate(UPDATE, lambda s: rank_for_variance(spectrum(np.diag(s.values)), 0.95)).rank
    assert rank == 3


def test_one_rank_for_the_whole_stack():
    stack = np.stack([UPDATE, UPDATE])
    for rank in (lambda s: rank_for_variance(s, 0.9), [1, 2], np.array([2])):
        with pytest.raises(ValueError, match=r"one rank is needed, for example the largest; got"):
            truncate(stack, rank)


def test_products_are_truncated_without_their_dense_update(monkeypatch):
    monkeypatch.setattr(LowRankUpdate, "to_dense", lambda _: pytest.fail("the product was formed"))
    tall = LowRankUpdate(np.ones((100_000, 2), np.float32), np.ones((2, 90_000), np.float32))
    assert spectrum(tall).values[0] == pytest.approx(2 * np.sqrt(9e9), rel=1e-6)
    best = truncate(tall, 1)
    assert (best.B.shape, best.A.shape) == ((100_000, 1), (1, 90_000))
    assert best.B[0, 0] * best.A[0, 0] == pytest.approx(2.0, rel=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 6])
def test_products_of_any_rank(rank):
    best = truncate(PRODUCT, rank)
    assert best.rank == min(rank, 3)
    assert_eckart_young(PRODUCT, best, rank)
    empty = truncate(LowRankUpdate(np.ones((6, 0)), np.ones((0, 7))), rank)
    assert empty.shape == (6, 7)
    assert not empty.to_dense().any()


def test_batched_products_broadcast():
    update = LowRankUpdate(np.stack([UPDATE, -UPDATE]), np.eye(5, 4), 2.0)
    best = truncate(update, 2)
    assert best.shape == (2, 6, 4)
    assert_eckart_young(update, best, 2)


@pytest.mark.parametrize("common", [0.0, 1e2, 1e7])
@pytest.mark.parametrize("kind", ["ordinary", "graded", "deficient"])
def test_long_factors_are_as_accurate_as_by_qr(kind, common):
    rng = np.random.default_rng(0)
    m, n, r = 600, 700, 12
    B, A = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    if kind == "graded":
        B *= 10.0 ** -np.arange(r)
    if kind == "deficient":
        B[:, 0], A[3] = 0.0, A[4]
    A += common * A[:1]
    result = truncate(LowRankUpdate(B, A), r)
    lost = np.linalg.norm(result.to_dense() - B @ A)
    assert lost <= 10 * max(m, n) * 2.0**-52 * np.linalg.norm(B) * np.linalg.norm(A)
    sizes = np.linalg.norm(result.B, axis=0)
    rows = result.A[sizes > 1e-10 * sizes.max()]
    assert np.abs(rows @ rows.T - np.eye(len(rows))).max() < 10 * r * 2.0**-52
