"""truncate() as it is called: ranks, functions of the spectrum, and nothing decomposed twice."""

import ml_dtypes
import numpy as np
import pytest

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
@pytest.mark.parametrize("method", ["auto", "direct", "gram", "krylov"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_each_rank_by_each_method(rank, method, dtype):
    update = UPDATE.astype(dtype)
    best = truncate(update, rank, method=method)
    assert best.B.shape == (6, rank)
    assert best.A.shape == (rank, 5)
    assert best.B.dtype == best.A.dtype == np.float64
    assert (best.dtype, best.scaling) == ("float64", 1.0)
    assert_eckart_young(update, best, rank, eps=bounds.EPS32 if method != "direct" else bounds.EPS64)


def test_lying_and_standing_matrices_have_orthonormal_rows():
    for update in (UPDATE, UPDATE.T):
        for method in ("direct", "gram"):
            best = truncate(update, 3, method=method)
            assert np.allclose(best.A @ best.A.T, np.eye(3), atol=1e-8)
            assert np.allclose(np.linalg.norm(best.B, axis=0), [4.0, 3.0, 2.0], rtol=1e-8)


def test_a_zero_update_is_truncated_to_zero():
    for method in ("direct", "gram", "krylov"):
        best = truncate(np.zeros((4, 5)), 2, method=method)
        assert best.rank == 2
        assert not best.to_dense().any()
    assert truncate(np.zeros((4, 5)), lambda of: rank_for_variance(of, 0.9)).rank == 0


def test_a_rank_from_the_spectrum():
    assert truncate(UPDATE, lambda of: rank_for_variance(of, 0.95)).rank == 3
    assert truncate(UPDATE, numerical_rank).rank == 4
    assert truncate(PRODUCT, lambda of: rank_for_ratio(of, 0.6)).rank == int(rank_for_ratio(spectrum(PRODUCT), 0.6))
    assert truncate(UPDATE, lambda of: of.shape[1] - 5).rank == 0
    stack = np.stack([UPDATE, 2 * UPDATE[::-1]])
    assert truncate(stack, lambda of: rank_for_variance(of, 0.8).max()).B.shape == (2, 6, 2)


def test_the_function_gets_the_spectrum_of_the_whole_stack():
    stack = np.stack([UPDATE, 0 * UPDATE]).astype(np.float32)
    seen = []
    truncate(stack, lambda of: seen.append(of) or 1)
    (of,) = seen
    assert (of.shape, of.complete, of.dtype) == ((6, 5), True, "float32")
    assert np.all(np.abs(of.values - spectrum(stack).values) <= 2 * bounds.EPS32 * of.values[:, :1])
    assert np.allclose(of.norm, spectrum(stack).norm, rtol=1e-14)
    truncate(PRODUCT, lambda of: seen.append(of) or 1)
    assert (seen[1].shape, seen[1].complete) == ((6, 7), True)
    assert np.allclose(seen[1].values, spectrum(PRODUCT).values, rtol=1e-13)


def test_a_function_may_call_the_library():
    rank = truncate(UPDATE, lambda of: rank_for_variance(spectrum(np.diag(of.values)), 0.95)).rank
    assert rank == 3


def test_one_rank_for_the_whole_stack():
    stack = np.stack([UPDATE, UPDATE])
    for rank in (lambda of: rank_for_variance(of, 0.9), [1, 2], np.array([2])):
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


@pytest.mark.parametrize("together", [0.0, 1e2, 1e7])
@pytest.mark.parametrize("kind", ["ordinary", "graded", "deficient"])
def test_long_factors_lose_no_more_than_qr(kind, together):
    rng = np.random.default_rng(0)
    m, n, r = 600, 700, 12
    B, A = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    if kind == "graded":
        B *= 10.0 ** -np.arange(r)
    if kind == "deficient":
        B[:, 0], A[3] = 0.0, A[4]
    A += together * A[:1]
    found = truncate(LowRankUpdate(B, A), r)
    lost = np.linalg.norm(found.to_dense() - B @ A)
    assert lost <= 10 * max(m, n) * 2.0**-52 * np.linalg.norm(B) * np.linalg.norm(A)
    sizes = np.linalg.norm(found.B, axis=0)
    rows = found.A[sizes > 1e-10 * sizes.max()]
    assert np.abs(rows @ rows.T - np.eye(len(rows))).max() < 10 * r * 2.0**-52
