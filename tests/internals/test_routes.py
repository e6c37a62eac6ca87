"""The choice of algorithm, and each algorithm's accuracy where it is hardest."""

import tracemalloc
from functools import cache

import numpy as np
import pytest

from lowrank_core import LowRankUpdate, numerical_rank, spectrum, truncate, update_with_spectrum
from lowrank_core._linalg import batches, gram, products, thresholds, two_stage
from lowrank_core._linalg.kernels import gram as gram_kernels
from lowrank_core._linalg.kernels import small as svd_kernels
from lowrank_core._linalg.routes import Problem, choose_route
from lowrank_core.testing import assert_eckart_young, assert_same_update
from tests import bounds, oracles

SPECTRA = {
    "flat": np.ones,
    "falling": lambda p: np.linspace(3.0, 0.5, p),
    "graded": lambda p: np.exp2(-np.linspace(0, 200, p)),
    "deficient": lambda p: np.where(np.arange(p) < p // 3, 1.0, 0.0),
    "clustered": lambda p: np.where(np.arange(p) < p // 2, 1.0, 0.25) + 1e-9 * np.linspace(1, 0, p),
    "power law": lambda p: 1 / np.arange(1.0, p + 1),
    "step": lambda p: np.where(np.arange(p) < 10, 1.0, 0.01),
}
kinds = pytest.mark.parametrize("kind", sorted(SPECTRA))


@cache
def made(kind, shape, dtype="float64", seed=0):
    return update_with_spectrum(SPECTRA[kind](min(shape)), shape, rng=seed).astype(dtype)


@cache
def scaled(kind, shape, size, dtype):
    """Return a matrix, its singular values and its norm, exact ones, which are the same for every route."""
    update = (size * made(kind, shape)).astype(dtype)
    return update, oracles.singular_values(update), oracles.norm(update)


def truth(update):
    """LAPACK's values in float64, whose own accuracy is tested below against mpmath."""
    return spectrum(update, method="lapack").values


@pytest.mark.parametrize(
    ("method", "dtype", "shape", "rank", "route"),
    [
        ("auto", "float64", (8, 8), None, "direct"),
        ("auto", "float64", (4096, 4096), None, "direct"),
        ("auto", "float64", (4096, 4096), 4, "krylov, or direct where that is cheaper"),
        ("auto", "float64", (4096, 1023), 4, "direct"),
        ("auto", "float32", (8, 8), None, "direct"),
        ("auto", "float32", (65, 64), None, "gram"),
        ("auto", "bfloat16", (4096, 4096), None, "gram"),
        ("auto", "float16", (4096, 1024), 64, "krylov, or gram where that is cheaper"),
        ("auto", "float16", (4096, 1024), 65, "gram"),
        ("auto", "float32", (4096, 1023), 4, "gram"),
        ("lapack", "float32", (8, 8), None, "lapack"),
        ("direct", "bfloat16", (4096, 4096), 4, "direct"),
        ("gram", "float64", (8, 8), None, "gram"),
        ("krylov", "float64", (8, 8), 8, "krylov"),
    ],
)
def test_the_route_is_chosen_by_shape_and_dtype(method, dtype, shape, rank, route):
    assert choose_route(method, Problem(dtype, shape, rank)).name == route


def test_lapack_calls_no_kernel(monkeypatch):
    def called(*_):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(svd_kernels, "small_values", called)
    spectrum(np.eye(8), method="lapack")
    with pytest.raises(AssertionError, match="a kernel was called"):
        spectrum(np.eye(8), method="direct")


@pytest.mark.parametrize("call", [spectrum, lambda u, method: truncate(u, 1, method=method)])
def test_unknown_methods_are_refused(call):
    with pytest.raises(ValueError, match=r"unknown method 'svd'; accepted are auto, lapack, direct, gram, krylov"):
        call(np.eye(2), method="svd")
    with pytest.raises(
        ValueError, match=r"'krylov' is not for a LowRankUpdate; accepted are auto, lapack, direct, gram\."
    ):
        call(LowRankUpdate(np.eye(2), np.eye(2)), method="krylov")


@pytest.mark.parametrize("call", [spectrum, lambda u, method: truncate(u, lambda _: 1, method=method)])
def test_krylov_without_a_rank_is_refused(call):
    with pytest.raises(ValueError, match=r"'krylov' .*leading singular values only; give rank=k, or use 'auto'"):
        call(np.eye(2), method="krylov")


# Every route to all singular values, forced on the same small inputs: the method, and the thresholds moved for it.
ROUTES = {
    "kernel": ("direct", {}),
    "LAPACK": ("lapack", {}),
    "LAPACK, large": ("lapack", {"LARGE": 4}),
    "Gram kernel": ("gram", {}),
    "Gram and LAPACK": ("gram", {"LARGE": 4, "TWO_STAGES": 99}),
    "two stages": ("gram", {"LARGE": 4, "TWO_STAGES": 5}),
    "bidiagonal kernel": ("direct", {"SMALL_ENTRIES": 0, "TALL": 99}),
    "tall": ("direct", {"SMALL_ENTRIES": 144, "TALL": 1.5}),
    "upper band": ("direct", {"SMALL_ENTRIES": 0, "TALL": 99, "TWO_STAGES_SVD": 5}),
}


@pytest.fixture(params=ROUTES)
def forced(request, monkeypatch):
    """The method by which a small matrix takes a route, whose thresholds have been moved."""
    method, moved = ROUTES[request.param]
    for name, value in moved.items():
        monkeypatch.setattr(thresholds, name, value)
    return method


@kinds
def test_a_batch_changes_no_bit_on_any_route(forced, kind):
    rng = np.random.default_rng(1)
    for dtype in ("float64", "float32", "float16"):
        others = rng.standard_normal((9, 20, 12)).astype(dtype)
        stack = np.concatenate([others[:4], made(kind, (20, 12), dtype)[np.newaxis], 0 * others[:1], others[4:]])
        whole = spectrum(stack, method=forced, workers=1)
        frozen = stack[::-1].copy(order="F")
        frozen.flags.writeable = False
        for again in (spectrum(stack, method=forced, workers=3), spectrum(frozen[::-1], method=forced)):
            assert np.array_equal(again.values, whole.values)
            assert np.array_equal(again.norm, whole.norm)
        for i in (0, 4, 5, 10):
            alone = spectrum(stack[i], method=forced)
            assert np.array_equal(alone.values, whole.values[i])
            assert np.array_equal(alone.norm, whole.norm[i])


def blocks_of(monkeypatch, entries):
    """Have matrices converted to float64 in blocks of so many entries."""
    for module in (batches, gram, two_stage):
        monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)


def test_a_batch_needs_one_working_set_a_worker_besides_inputs_and_results(monkeypatch, forced):
    blocks_of(monkeypatch, 2**16)
    # In float64 at once this stack would take 16 MiB.
    stack = np.zeros((512, 64, 64), np.float32)
    stack[:, range(64), range(64)] = np.arange(64.0, 0.0, -1.0)
    spectrum(stack[:1], method=forced)  # compiling takes memory of its own
    tracemalloc.start()
    try:
        result = spectrum(stack, method=forced, workers=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = 8 * 2**16
    # A block of matrices, its Gram matrices and LAPACK's copies of either, for each worker; three arrays of results.
    assert peak <= 2 * 4 * block + 4 * result.values.nbytes


@kinds
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200, 1e-310])
def test_float64_against_mpmath(forced, kind, shape, size):
    update, exact, norm = scaled(kind, shape, size, "float64")
    result = spectrum(update, method=forced)
    if forced == "gram":
        assert np.all(np.abs(result.values - exact) <= bounds.EPS32 * exact[0] + bounds.SPACING)
        return
    assert np.all(np.abs(result.values - exact) <= bounds.of_values(shape, "float64", exact[0]))
    assert abs(result.norm - norm) <= bounds.of_values(shape, "float64", result.norm)


@kinds
@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
@pytest.mark.parametrize("size", [1.0, 2.0**100, 2.0**-110, 2.0**-140])
def test_float32_against_mpmath(forced, kind, shape, size):
    update, exact, _ = scaled(kind, shape, size, "float32")
    result = spectrum(update, method=forced)
    assert np.all(np.abs(result.values - exact) <= bounds.EPS32 * exact[0])


@kinds
@pytest.mark.parametrize("shape", [(400, 150), (150, 400), (300, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gram_has_the_accuracy_of_float32_at_size(kind, shape, dtype):
    update = made(kind, shape, dtype)
    exact = truth(update)
    assert np.all(np.abs(spectrum(update).values - exact) <= bounds.EPS32 * exact[0])


@pytest.mark.parametrize("shape", [(70, 33), (33, 70), (50, 50)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gram_matrix_computed_in_blocks_has_the_same_values(monkeypatch, shape, dtype):
    update = made("falling", shape, dtype)
    whole = spectrum(update, method="gram").values
    blocks_of(monkeypatch, 64)
    parts = spectrum(update, method="gram").values
    assert np.all(np.abs(parts - whole) <= 100 * bounds.EPS64 * whole[0])
    assert_eckart_young(update, truncate(update, 5, method="gram"), 5, eps=bounds.EPS32)


def test_a_stack_of_large_matrices_has_the_values_of_each(blas_before):
    stack = np.random.default_rng(0).standard_normal((2, 520, 514)).astype(np.float32)
    whole, best = spectrum(stack), truncate(stack, 3)
    for i in range(2):
        assert np.array_equal(whole.values[i], spectrum(stack[i], workers=1).values)
        assert np.array_equal(best.B[i], truncate(stack[i], 3).B)
    assert np.array_equal(spectrum(stack.astype(np.float64)).values[1], spectrum(stack[1].astype(np.float64)).values)


def narrow(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def assert_product(update, method="auto"):
    exact = oracles.product_singular_values(update.B, update.A, update.scaling)
    result = spectrum(update, method=method).values
    assert np.all(np.abs(result - exact) <= bounds.EPS32 * exact[0])


@pytest.mark.parametrize("powers", [60, 120, 200])
def test_unbalanced_columns_do_not_drown_the_small_ones(powers):
    rng = np.random.default_rng(0)
    B, A = narrow(rng, (12, 5)), narrow(rng, (5, 9))
    shifts = np.rint(np.linspace(-powers / 2, powers / 2, 5)).astype(int)
    for sign in (1, -1):
        update = LowRankUpdate(np.ldexp(B, sign * shifts), np.ldexp(A, -sign * shifts[:, np.newaxis]), 2.0)
        balanced = spectrum(LowRankUpdate(B, A, 2.0)).values
        # Balancing moves the same powers of two back.
        assert np.array_equal(spectrum(update).values, balanced)
        assert_product(update)


def test_padded_and_deficient_factors():
    rng = np.random.default_rng(0)
    B, A = narrow(rng, (12, 3)), narrow(rng, (3, 9))
    padded = LowRankUpdate(np.pad(B, ((0, 0), (0, 4))), np.pad(A, ((0, 4), (0, 0))))
    assert np.allclose(spectrum(padded).values[:3], spectrum(LowRankUpdate(B, A)).values, rtol=1e-14)
    assert np.all(spectrum(padded).values[3:] <= bounds.EPS32 * spectrum(padded).values[0])
    for update in (
        padded,
        LowRankUpdate(np.pad(B, ((0, 0), (0, 4))), np.vstack([A, narrow(rng, (4, 9))])),
        LowRankUpdate(np.hstack([B, B]), np.vstack([A, 2 * A])),
        LowRankUpdate(np.ones((12, 6), np.float32), narrow(rng, (6, 9))),
        LowRankUpdate(narrow(rng, (4, 10)), narrow(rng, (10, 5))),
        LowRankUpdate(narrow(rng, (1, 2)), narrow(rng, (2, 1))),
    ):
        assert_product(update)
        assert_product(update, "direct")
    zero = LowRankUpdate(np.zeros((4, 2), np.float32), np.ones((2, 3), np.float32))
    assert not spectrum(zero).values.any()
    assert not spectrum(zero, method="direct").norm.any()


@pytest.mark.parametrize("closeness", [0.5, 0.1, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("deficient", [False, True])
def test_the_difference_of_two_near_equal_adapters(closeness, deficient):
    rng = np.random.default_rng(1)
    b, a = narrow(rng, (24, 4)), narrow(rng, (4, 17))
    change = narrow(rng, (24, 1)) * narrow(rng, (1, 4)) if deficient else narrow(rng, (24, 4))
    B, A = np.hstack([b, b + np.float32(closeness) * change]), np.vstack([a, -a])
    assert_product(LowRankUpdate(B, A))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize(("shape", "scaling"), [((24, 17), -1.0), ((300, 5), 1e-3), ((3, 700), 1e200)])
def test_a_product_that_cancels_altogether_has_rank_0(dtype, method, shape, scaling):
    rng = np.random.default_rng(1)
    b, a = rng.standard_normal((shape[0], 4)).astype(dtype), rng.standard_normal((4, shape[1])).astype(dtype)
    update = LowRankUpdate(np.hstack([b, b]), np.vstack([a, -a]), scaling)
    s = spectrum(update, method=method)
    assert s.norm == 0
    assert numerical_rank(s) == 0
    assert truncate(update, numerical_rank, method=method).rank == 0


def test_a_product_of_rank_0_is_zero():
    update = LowRankUpdate(np.zeros((3, 0)), np.zeros((0, 4)))
    assert spectrum(update).norm == 0
    assert truncate(update, 0).shape == (3, 4)


@pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-9, 1e-12])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_does_not_cancel_of_a_product_keeps_its_rank(size, dtype):
    rng = np.random.default_rng(1)
    b, a = rng.standard_normal((24, 4)).astype(dtype), rng.standard_normal((4, 17)).astype(dtype)
    left, right = rng.standard_normal((24, 2)).astype(dtype), (size * rng.standard_normal((2, 17))).astype(dtype)
    update = LowRankUpdate(np.hstack([b, left, b]), np.vstack([a, right, -a]))
    s = spectrum(update)
    exact = spectrum(LowRankUpdate(left, right), method="direct").values
    assert numerical_rank(s) == 2
    assert np.all(np.abs(s.values[:2] - exact) <= bounds.of_product(update, exact[0]))
    assert np.all(s.values[2:] <= bounds.EPS32 * exact[0])


def test_values_near_rounding_remain_where_nothing_cancels():
    # Of size 1e-15 beside 1, under max(m, n)·eps: a graded product is accurate there, column by column.
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((side, 3)))[0] for side in (24, 17))
    sizes = np.array([1.0, 1e-15, 1e-30])
    update = LowRankUpdate(left * sizes, right.T)
    assert spectrum(update).values == pytest.approx(sizes, rel=1e-12, abs=0)


@pytest.mark.parametrize(("left", "right"), [(1e200, 1e-200), (1e-200, 1e-100), (1e150, 1e150), (5e-324, 1e300)])
def test_float64_products_of_any_size(left, right):
    rng = np.random.default_rng(2)
    update = LowRankUpdate(left * rng.standard_normal((9, 3)), right * rng.standard_normal((3, 7)), -0.5)
    exact = oracles.product_singular_values(update.B, update.A, update.scaling)
    for method in ("direct", "gram"):
        result = spectrum(update, method=method)
        tolerance = 1e-13 if method == "direct" else bounds.EPS32
        assert np.all(np.abs(result.values - exact) <= tolerance * exact[0] + bounds.SPACING)
        assert result.norm == pytest.approx(np.sqrt(np.sum((exact / exact[0]) ** 2)) * exact[0], rel=tolerance)


@pytest.mark.parametrize("scaling", [0.0, -3.0, 5e-324, 1e300])
def test_a_scaling_of_any_size(scaling):
    update = LowRankUpdate(np.eye(3, 2), np.eye(2, 4), scaling)
    assert spectrum(update).values.tolist() == [abs(scaling)] * 2
    assert_same_update(truncate(update, 2), update.to_dense())


def test_factors_of_mixed_dtypes_have_the_accuracy_of_the_coarser_one():
    rng = np.random.default_rng(3)
    update = LowRankUpdate(rng.standard_normal((9, 3)), narrow(rng, (3, 7)))
    assert spectrum(update).dtype == "float32"
    assert_product(update)


def test_small_matrices_on_which_the_kernel_does_not_converge_go_to_lapack(monkeypatch):
    stack = np.ldexp(np.random.default_rng(0).standard_normal((11, 5, 7)), -1060)
    whole, kernel = spectrum(stack), svd_kernels.small_values

    def some_diverge(matrices, values, exponents):
        kernel(matrices, values, exponents)
        values[1::4] = np.nan
        return len(values[1::4])

    monkeypatch.setattr(svd_kernels, "small_values", some_diverge)
    result = spectrum(stack)
    assert np.array_equal(result.values[::4], whole.values[::4])
    assert np.all(np.abs(result.values - whole.values) <= 70 * 2.0**-52 * whole.values[:, :1] + bounds.SPACING)


@pytest.mark.parametrize("columns", [5, 7, 31, 66])
@pytest.mark.parametrize("rows", [600, 701, 1024])
def test_constant_updates_are_of_rank_one(forced, rows, columns):
    # Beside its one value such a Gram matrix has only rounding of rounding, by whose squares nothing may be divided.
    result = spectrum(np.full((rows, columns), 3.0, np.float32), method=forced).values
    assert result[0] == pytest.approx(3 * np.sqrt(rows * columns), rel=1e-7)
    assert np.all(result[1:] <= bounds.EPS32 * result[0])


def test_gram_matrices_on_which_the_kernel_does_not_converge_go_to_lapack(monkeypatch):
    stack = np.ldexp(np.random.default_rng(0).standard_normal((11, 5, 7)), -1000)
    whole, kernel = spectrum(stack, method="gram"), gram_kernels.tridiagonal_values

    def some_diverge(diagonals, squares, values):
        kernel(diagonals, squares, values)
        values[1::4] = np.nan
        return len(values[1::4])

    monkeypatch.setattr(gram_kernels, "tridiagonal_values", some_diverge)
    result = spectrum(stack, method="gram")
    assert np.array_equal(result.values[::4], whole.values[::4])
    assert np.array_equal(result.norm, whole.norm)
    assert np.all(np.abs(result.values - whole.values) <= bounds.EPS32 * whole.values[:, :1])


@pytest.mark.parametrize("side", ["B", "A"])
def test_narrow_factors_are_checked_through_their_gram_matrices(side):
    factors = {"B": np.ones((5, 2), np.float32), "A": np.ones((2, 6), np.float32)}
    factors[side][1, 1] = np.nan
    with pytest.raises(ValueError, match=f"^{side} contains nan at row 1, column 1"):
        spectrum(LowRankUpdate(**factors))


def test_a_loose_bound_does_not_take_a_product_for_cancelled(monkeypatch):
    A = np.random.default_rng(0).standard_normal((16, 40)).astype(np.float32)
    AAt = A.astype(float) @ A.T.astype(float)
    largest, bound = np.linalg.eigvalsh(AAt)[-1], np.max(np.sum(np.abs(AAt), axis=1))
    # By the bounds of both norms it has cancelled; by the true norm of one of them it has not.
    assert largest < 0.9 * bound
    monkeypatch.setattr(products, "CANCELLED", 0.99 * np.sqrt(largest / bound))
    monkeypatch.setattr(products, "_qr_core_values", None)
    assert spectrum(LowRankUpdate(A.T.copy(), A)).values[0] == pytest.approx(largest, rel=1e-7)
