"""The choice of algorithm, and each algorithm's accuracy where it is hardest."""

import tracemalloc
from functools import cache

import numpy as np
import pytest

from lowrank_core import LowRankUpdate, decompose, krylov, spectrum, thresholds, truncate, update_with_spectrum
from lowrank_core import products as core_products
from lowrank_core.decompose import choose_route
from lowrank_core.testing import assert_eckart_young, assert_same_update
from lowrank_core.threads import Team
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


def truth(update):
    """LAPACK's values in float64, which are themselves held against mpmath below, on one thread."""
    return spectrum(update, method="direct").values


@pytest.mark.parametrize(
    ("method", "dtype", "shape", "rank", "route"),
    [
        ("auto", "float64", (8, 8), None, "direct"),
        ("auto", "float64", (4096, 4096), 4, "direct"),
        ("auto", "float32", (8, 8), None, "direct"),
        ("auto", "float32", (65, 64), None, "gram"),
        ("auto", "bfloat16", (4096, 4096), None, "gram"),
        ("auto", "float16", (4096, 1024), 64, "krylov-or-gram"),
        ("auto", "float16", (4096, 1024), 65, "gram"),
        ("auto", "float32", (4096, 1023), 4, "gram"),
        ("direct", "bfloat16", (4096, 4096), 4, "direct"),
        ("gram", "float64", (8, 8), None, "gram"),
        ("krylov", "float64", (8, 8), 8, "krylov"),
    ],
)
def test_the_route_is_chosen_by_shape_and_dtype(method, dtype, shape, rank, route):
    assert choose_route(method, dtype, shape, rank) == route
    if dtype == "float64" or method != "auto" or shape != (8, 8):
        assert choose_route(method, dtype, shape, rank, factors=True) == route


def test_the_factors_of_small_float32_matrices_come_from_their_gram_matrices():
    assert choose_route("auto", "float32", (8, 8), None, factors=True) == "gram"


def test_methods_that_are_not_are_refused():
    for ask in (spectrum, lambda u, method: truncate(u, 1, method=method)):
        with pytest.raises(ValueError, match=r"unknown method 'svd'; accepted are auto, direct, gram, krylov"):
            ask(np.eye(2), method="svd")
        with pytest.raises(ValueError, match=r"'krylov' is not for a LowRankUpdate; accepted are auto, direct, gram"):
            ask(LowRankUpdate(np.eye(2), np.eye(2)), method="krylov")
    for ask in (spectrum, lambda u, method: truncate(u, lambda _: 1, method=method)):
        with pytest.raises(
            ValueError, match=r"'krylov' finds leading singular values only; give rank=k, or use 'auto'"
        ):
            ask(np.eye(2), method="krylov")


# Every way to all singular values, forced on the same small inputs: the method, and the thresholds moved for it.
WAYS = {
    "kernel": ("direct", {}),
    "LAPACK": ("direct", {"SMALL_ENTRIES": 0}),
    "LAPACK, large": ("direct", {"SMALL_ENTRIES": 0, "LARGE": 4}),
    "Gram kernel": ("gram", {}),
    "Gram and LAPACK": ("gram", {"LARGE": 4, "TWO_STAGES": 99}),
    "two stages": ("gram", {"LARGE": 4, "TWO_STAGES": 5}),
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    method, moved = WAYS[request.param]
    for name, value in moved.items():
        monkeypatch.setattr(thresholds, name, value)
    return method


@kinds
def test_a_batch_changes_no_bit_on_any_way(way, kind):
    rng = np.random.default_rng(1)
    for dtype in ("float64", "float32", "float16"):
        others = rng.standard_normal((9, 20, 12)).astype(dtype)
        stack = np.concatenate([others[:4], made(kind, (20, 12), dtype)[np.newaxis], 0 * others[:1], others[4:]])
        whole = spectrum(stack, method=way, workers=1)
        frozen = stack[::-1].copy(order="F")
        frozen.flags.writeable = False
        for again in (spectrum(stack, method=way, workers=3), spectrum(frozen[::-1], method=way)):
            assert np.array_equal(again.values, whole.values)
            assert np.array_equal(again.norm, whole.norm)
        for i in (0, 4, 5, 10):
            alone = spectrum(stack[i], method=way)
            assert np.array_equal(alone.values, whole.values[i])
            assert np.array_equal(alone.norm, whole.norm[i])


def test_a_batch_needs_a_working_set_a_worker_beside_inputs_and_results(monkeypatch, way):
    monkeypatch.setattr(thresholds, "BLOCK_ENTRIES", 2**16)
    # In float64 at once this stack would take 16 MiB.
    stack = np.zeros((512, 64, 64), np.float32)
    stack[:, range(64), range(64)] = np.arange(64.0, 0.0, -1.0)
    spectrum(stack[:1], method=way)  # what compiling takes is no part of it
    tracemalloc.start()
    try:
        found = spectrum(stack, method=way, workers=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = 8 * thresholds.BLOCK_ENTRIES
    # A block of matrices, its Gram matrices and LAPACK's copies of either, for each worker; three arrays of results.
    assert peak <= 2 * 4 * block + 4 * found.values.nbytes


@kinds
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200, 1e-310])
def test_float64_against_mpmath(way, kind, shape, size):
    update = size * made(kind, shape)
    exact = oracles.singular_values(update)
    found = spectrum(update, method=way)
    if way == "gram":
        assert np.all(np.abs(found.values - exact) <= bounds.EPS32 * exact[0] + bounds.SPACING)
        return
    assert np.all(np.abs(found.values - exact) <= bounds.of_values(shape, "float64", exact[0]))
    assert abs(found.norm - oracles.norm(update)) <= bounds.of_values(shape, "float64", found.norm)


@kinds
@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
@pytest.mark.parametrize("size", [1.0, 2.0**100, 2.0**-110, 2.0**-140])
def test_float32_against_mpmath(way, kind, shape, size):
    update = (size * made(kind, shape)).astype(np.float32)
    exact = oracles.singular_values(update)
    found = spectrum(update, method=way)
    assert np.all(np.abs(found.values - exact) <= bounds.EPS32 * exact[0])


@kinds
@pytest.mark.parametrize("shape", [(400, 150), (150, 400), (300, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gram_earns_a_float32s_accuracy_at_size(kind, shape, dtype):
    update = made(kind, shape, dtype)
    exact = truth(update)
    assert np.all(np.abs(spectrum(update).values - exact) <= bounds.EPS32 * exact[0])


@pytest.mark.parametrize("shape", [(70, 33), (33, 70), (50, 50)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gram_in_blocks_is_gram(monkeypatch, shape, dtype):
    update = made("falling", shape, dtype)
    whole = spectrum(update, method="gram").values
    monkeypatch.setattr(thresholds, "BLOCK_ENTRIES", 64)
    parts = spectrum(update, method="gram").values
    assert np.all(np.abs(parts - whole) <= 100 * bounds.EPS64 * whole[0])
    assert_eckart_young(update, truncate(update, 5, method="gram"), 5, eps=bounds.EPS32)


def test_a_large_stack_is_its_matrices():
    stack = np.random.default_rng(0).standard_normal((2, 520, 514)).astype(np.float32)
    whole, best = spectrum(stack), truncate(stack, 3)
    for i in range(2):
        assert np.array_equal(whole.values[i], spectrum(stack[i], workers=1).values)
        assert np.array_equal(best.B[i], truncate(stack[i], 3).B)
    assert np.array_equal(spectrum(stack.astype(np.float64)).values[1], spectrum(stack[1].astype(np.float64)).values)


def head(values):
    return np.cumsum(np.asarray(values, dtype=np.float64) ** 2)


@kinds
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 12, 40])
def test_krylov_is_attained_and_within_what_it_owes(kind, shape, dtype, rank):
    update = made(kind, shape, dtype)
    found = spectrum(update, rank=rank, method="krylov")
    exact = head(truth(update))
    assert np.all(head(found.values) <= exact[:rank] * (1 + 1e-13))
    assert head(found.values)[-1] <= found.norm**2 * (1 + 1e-15)
    owed = 1e-4 * min(exact[rank - 1], max(exact[-1] - exact[rank - 1], 1e-6 * exact[-1]))
    assert exact[rank - 1] - head(found.values)[-1] <= owed
    assert found.norm == pytest.approx(np.sqrt(exact[-1]), rel=1e-14)
    # The factors in hand have these very values, and their error is N² − H_k.
    best = truncate(update, rank, method="krylov")
    assert np.allclose(spectrum(best).values, found.values, rtol=0, atol=1e-13 * found.norm)
    lost = np.linalg.norm(update - best.to_dense()) ** 2
    assert lost == pytest.approx(found.norm**2 - head(found.values)[-1], abs=1e-13 * found.norm**2)


@pytest.mark.parametrize("shape", [(150, 120), (128, 128), (40, 70)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [64, 512])
@pytest.mark.parametrize("workers", [1, 3])
def test_products_with_a_matrix_whole_and_in_pieces(shape, dtype, piece, workers, monkeypatch):
    monkeypatch.setattr(krylov, "PIECE", piece)
    update = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    rows = np.random.default_rng(1).standard_normal((3, min(shape)))
    with Team(workers) as team:
        X, _ = krylov._prepared(update, team)
        image, pulled = X.applied(rows)
        assert np.array_equal(X.images(rows), image)
    tall = np.ldexp((update if shape[0] >= shape[1] else update.T).astype(np.float64), -X.exponent)
    eps = np.finfo(dtype).eps
    sizes = np.abs(rows) @ np.abs(tall.T)
    assert np.all(np.abs(image - rows @ tall.T) <= sum(shape) * eps * sizes)
    assert np.all(np.abs(pulled - rows @ tall.T @ tall) <= 2 * sum(shape) * eps * (sizes @ np.abs(tall)))


@pytest.mark.parametrize("shape", [(1300, 90), (90, 1300), (1025, 1030)])
def test_krylov_has_the_same_bits_on_any_number_of_threads(shape, monkeypatch):
    update = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    found = []
    for workers in (1, 2, 5):
        monkeypatch.setattr(krylov, "as_workers", lambda _, workers=workers: workers)
        part = truncate(update, 6, method="krylov")
        found.append(part.B.tobytes() + part.A.tobytes())
    assert len(set(found)) == 1


def grown_space(update, blocks):
    """Grow a search space by so many blocks; give the update as it takes it, and its Ritz values and vectors."""
    X, _ = krylov._prepared(update, Team(1))
    space = krylov._Space(X, X.columns)
    start = np.random.default_rng(3).standard_normal((krylov.BLOCK, X.columns))
    space.extend(krylov._orthonormal(start, space.Q)[0])
    for _ in range(blocks - 1):
        space.extend(space.pulled)
    return X.held.astype(np.float64), space, *space.ritz()


def missing_before_and_after(update, space, vectors, step):
    """Tell how much of the leading energy the leading vectors miss without a step, and with it."""
    rank = len(step)
    exact = head(np.linalg.svd(update, compute_uv=False))[rank - 1]
    basis = vectors[:, :rank].T @ space.Q
    return [
        exact - np.linalg.norm(update @ np.linalg.qr(rows.T)[0]) ** 2 for rows in (basis, basis + step @ space.pulled)
    ]


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("blocks", [3, 4])
def test_a_step_that_costs_no_product_finds_more_than_half_of_what_is_missing(power, blocks):
    update = update_with_spectrum((1.0 + np.arange(300)) ** -power, (310, 300), rng=0)
    update, space, squares, vectors = grown_space(update, blocks)
    step, estimate = krylov._free_step(space, squares, vectors, 20)
    before, after = missing_before_and_after(update, space, vectors, step)
    assert after < before / 2
    assert after < estimate < 10 * before


def test_a_step_adds_no_rounding_to_directions_smaller_than_it():
    # Energies down to 2^-58 of the largest, beside residuals of 2^-24 that are nothing but rounding in float32.
    update = update_with_spectrum(2.0 ** -np.arange(300.0), (310, 300), rng=0).astype(np.float32)
    update, space, squares, vectors = grown_space(update, 2)
    step, estimate = krylov._free_step(space, squares, vectors, 30)
    assert not step.any()
    _, after = missing_before_and_after(update, space, vectors, step)
    assert after <= estimate


def test_what_is_outside_a_young_space_is_taken_to_be_as_large_as_its_last_block():
    # The value half a block beyond the last wanted is far from what it will be: by that alone a step would leave a
    # hundredth of what it leaves.
    update, space, squares, vectors = grown_space(
        update_with_spectrum(1.0 / (1.0 + np.arange(600)), (600, 600), rng=0), 3
    )
    assert space.latest() > 2 * squares[64 + krylov.BLOCK // 2 - 1]
    step, estimate = krylov._free_step(space, squares, vectors, 64)
    _, after = missing_before_and_after(update, space, vectors, step)
    assert after < 4 * estimate


def test_krylov_finds_more_copies_of_a_value_than_its_block_is_wide():
    diagonal = np.zeros((400, 400), np.float32)
    diagonal[np.arange(150), np.arange(150)] = 1
    assert spectrum(diagonal, rank=120, method="krylov").values == pytest.approx(np.ones(120), abs=1e-12)
    step = update_with_spectrum(np.r_[np.ones(100), np.full(300, 0.01)], (400, 500), rng=0).astype(np.float32)
    found = spectrum(step, rank=90, method="krylov").values
    assert head(found)[-1] >= (1 - 2e-6) * head(spectrum(step).values)[89]


def test_copies_are_looked_for_only_where_a_block_of_values_lies_close_together(monkeypatch):
    looked, plain = [], krylov._more_is_found
    monkeypatch.setattr(krylov, "_more_is_found", lambda *a: looked.append(1) or plain(*a))
    falling = update_with_spectrum((1.0 + np.arange(200)) ** -0.5, (210, 200), rng=0)
    spectrum(falling, rank=krylov.BLOCK + 20, method="krylov")
    assert not looked
    # As many values as the block has columns, the smallest of them 0.76 of the largest in energy.
    close = np.r_[np.linspace(1.0, 0.87, krylov.BLOCK), np.geomspace(0.2, 0.001, 168)]
    spectrum(update_with_spectrum(close, (210, 200), rng=0), rank=krylov.BLOCK - 1, method="krylov")
    assert not looked
    spectrum(update_with_spectrum(close, (210, 200), rng=0), rank=krylov.BLOCK, method="krylov")
    assert looked


def test_auto_takes_krylov_for_few_values_of_a_large_matrix_and_gram_where_they_fall_slowly(monkeypatch):
    taken = []
    for name in ("krylov", "gram"):
        plain = getattr(decompose, name)
        monkeypatch.setattr(decompose, name, lambda *a, _f=plain, _n=name: taken.append(_n) or _f(*a))
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 256)
    steep = update_with_spectrum(np.exp2(-np.arange(256.0)), (300, 256), rng=0).astype(np.float32)
    slow = made("falling", (300, 256), "float32")
    assert np.allclose(spectrum(steep, rank=4).values, truth(steep)[:4], rtol=1e-4)
    assert taken == ["krylov"]
    taken.clear()
    assert np.allclose(spectrum(slow, rank=16).values, spectrum(slow).values[:16], rtol=1e-13)
    assert taken == ["krylov", "gram"]


def test_krylov_of_a_zero_update_and_of_rank_0():
    found = spectrum(np.zeros((40, 50), np.float32), rank=3, method="krylov")
    assert not found.values.any()
    assert found.norm == 0
    none = spectrum(np.ones((40, 50)), rank=0, method="krylov")
    assert none.values.shape == (0,)
    assert none.norm == pytest.approx(np.sqrt(2000), rel=1e-14)
    assert truncate(np.ones((40, 50)), 0, method="krylov").rank == 0


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("power", [-100, 100])
def test_krylov_of_float32_whose_squares_float32_does_not_hold(shape, power):
    update = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = spectrum(update, rank=5, method="krylov").values
    assert found == pytest.approx(np.linalg.svd(update.astype(np.float64), compute_uv=False)[:5], rel=1e-6)
    far = spectrum(np.ldexp(update, power), rank=5, method="krylov").values
    assert np.array_equal(far, np.ldexp(found, power))


def test_krylovs_seed_is_the_only_use_of_rng():
    update = made("power law", (90, 80))
    one, other = (spectrum(update, rank=5, method="krylov", rng=seed).values for seed in (1, 2))
    assert np.array_equal(one, spectrum(update, rank=5, method="krylov", rng=1).values)
    assert not np.array_equal(one, other)
    assert np.allclose(one, other, rtol=1e-4)
    assert np.array_equal(one, spectrum(update, rank=5, method="krylov", rng=np.random.default_rng(1)).values)
    assert np.array_equal(spectrum(update, rng=1).values, spectrum(update, rng=2).values)


def narrow(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def assert_product(update, method="auto", room=1.0):
    exact = oracles.product_singular_values(update.B, update.A, update.scaling)
    found = spectrum(update, method=method).values
    assert np.all(np.abs(found - exact) <= room * bounds.EPS32 * exact[0])


@pytest.mark.parametrize("powers", [60, 120, 200])
def test_columns_out_of_balance_do_not_drown_the_small_ones(powers):
    rng = np.random.default_rng(0)
    B, A = narrow(rng, (12, 5)), narrow(rng, (5, 9))
    shifts = np.rint(np.linspace(-powers / 2, powers / 2, 5)).astype(int)
    for sign in (1, -1):
        update = LowRankUpdate(np.ldexp(B, sign * shifts), np.ldexp(A, -sign * shifts[:, np.newaxis]), 2.0)
        balanced = spectrum(LowRankUpdate(B, A, 2.0)).values
        # Powers of two are all that was moved, and all that balancing moves back.
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


def test_what_has_cancelled_altogether_is_zero_to_float64s_rounding():
    rng = np.random.default_rng(1)
    b, a = narrow(rng, (24, 4)), narrow(rng, (4, 17))
    update = LowRankUpdate(np.hstack([b, b]), np.vstack([a, -a]))
    assert np.all(spectrum(update).values <= bounds.of_product(update, 0.0))


@pytest.mark.parametrize(("left", "right"), [(1e200, 1e-200), (1e-200, 1e-100), (1e150, 1e150), (5e-324, 1e300)])
def test_float64_products_of_any_size(left, right):
    rng = np.random.default_rng(2)
    update = LowRankUpdate(left * rng.standard_normal((9, 3)), right * rng.standard_normal((3, 7)), -0.5)
    exact = oracles.product_singular_values(update.B, update.A, update.scaling)
    for method in ("direct", "gram"):
        found = spectrum(update, method=method)
        room = 1e-13 if method == "direct" else bounds.EPS32
        assert np.all(np.abs(found.values - exact) <= room * exact[0] + bounds.SPACING)
        assert found.norm == pytest.approx(np.sqrt(np.sum((exact / exact[0]) ** 2)) * exact[0], rel=room)


@pytest.mark.parametrize("scaling", [0.0, -3.0, 5e-324, 1e300])
def test_a_scaling_of_any_size(scaling):
    update = LowRankUpdate(np.eye(3, 2), np.eye(2, 4), scaling)
    assert spectrum(update).values.tolist() == [abs(scaling)] * 2
    assert_same_update(truncate(update, 2), update.to_dense())


def test_mixed_dtypes_have_the_coarser_ones_accuracy():
    rng = np.random.default_rng(3)
    update = LowRankUpdate(rng.standard_normal((9, 3)), narrow(rng, (3, 7)))
    assert spectrum(update).dtype == "float32"
    assert_product(update)


def test_krylov_finds_copies_of_a_value_until_the_space_is_full():
    # A projection on 40 of 72 directions: two blocks of 32 hold 32 of the ones and leak nothing. The probe fills the
    # space up, and shows the other eight.
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((72, 40)))[0]
    found = spectrum(basis @ basis.T, rank=40, method="krylov").values
    assert np.all(np.abs(found - 1) <= 10 * 72 * 2.0**-52)


def test_small_matrices_that_the_kernel_gives_up_are_left_to_lapack(monkeypatch):
    from lowrank_core.kernels import small

    stack = np.ldexp(np.random.default_rng(0).standard_normal((11, 5, 7)), -1060)
    whole, kernel = spectrum(stack), small.small_values

    def gives_up(matrices, values, exponents):
        kernel(matrices, values, exponents)
        values[1::4] = np.nan
        return len(values[1::4])

    monkeypatch.setattr(small, "small_values", gives_up)
    found = spectrum(stack)
    assert np.array_equal(found.values[::4], whole.values[::4])
    assert np.all(np.abs(found.values - whole.values) <= 70 * 2.0**-52 * whole.values[:, :1] + bounds.SPACING)


@pytest.mark.parametrize("columns", [5, 7, 31, 66])
@pytest.mark.parametrize("rows", [600, 701, 1024])
def test_constant_updates_are_of_rank_one(way, rows, columns):
    # What is left of such a Gram matrix is rounding of rounding, whose squares a reflector must not be scaled by.
    found = spectrum(np.full((rows, columns), 3.0, np.float32), method=way).values
    assert found[0] == pytest.approx(3 * np.sqrt(rows * columns), rel=1e-7)
    assert np.all(found[1:] <= bounds.EPS32 * found[0])


def test_gram_matrices_that_the_kernel_gives_up_are_left_to_lapack(monkeypatch):
    from lowrank_core.kernels import gram

    stack = np.ldexp(np.random.default_rng(0).standard_normal((11, 5, 7)), -1000)
    whole, kernel = spectrum(stack, method="gram"), gram.tridiagonal_values

    def gives_up(diagonals, squares, values):
        kernel(diagonals, squares, values)
        values[1::4] = np.nan
        return len(values[1::4])

    monkeypatch.setattr(gram, "tridiagonal_values", gives_up)
    found = spectrum(stack, method="gram")
    assert np.array_equal(found.values[::4], whole.values[::4])
    assert np.array_equal(found.norm, whole.norm)
    assert np.all(np.abs(found.values - whole.values) <= bounds.EPS32 * whole.values[:, :1])


@pytest.mark.parametrize("side", ["B", "A"])
def test_narrow_factors_are_looked_at_through_their_gram_matrices(side):
    factors = {"B": np.ones((5, 2), np.float32), "A": np.ones((2, 6), np.float32)}
    factors[side][1, 1] = np.nan
    with pytest.raises(ValueError, match=f"^{side} holds nan at row 1, column 1"):
        spectrum(LowRankUpdate(**factors))


def test_a_bound_that_is_not_close_does_not_call_a_product_cancelled(monkeypatch):
    A = np.random.default_rng(0).standard_normal((16, 40)).astype(np.float32)
    gram = A.astype(float) @ A.T.astype(float)
    largest, bound = np.linalg.eigvalsh(gram)[-1], np.max(np.sum(np.abs(gram), axis=1))
    # By the bounds of both sides it has cancelled; by what one of them is, not.
    assert largest < 0.9 * bound
    monkeypatch.setattr(thresholds, "CANCELLED", 0.99 * np.sqrt(largest / bound))
    monkeypatch.setattr(core_products, "_qr_core_values", None)
    assert spectrum(LowRankUpdate(A.T.copy(), A)).values[0] == pytest.approx(largest, rel=1e-7)


def test_a_krylov_space_that_would_be_too_large_gives_way_to_gram(monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_GIVES_UP", 0.1)
    matrix = np.random.default_rng(0).standard_normal((70, 60)).astype(np.float32)
    found = decompose.decompose(matrix, "krylov-or-gram", 50, 0)
    # All values, not the leading 50: those of a Gram matrix, and its factors with them.
    assert np.allclose(found.values, np.linalg.svd(matrix.astype(float), compute_uv=False), rtol=1e-7)
    B, A = found.factors(50)
    assert np.allclose(np.linalg.norm(B, axis=0), found.values[:50], rtol=1e-7)
    assert np.allclose(A @ A.T, np.eye(50), rtol=0, atol=1e-12)
