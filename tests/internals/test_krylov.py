"""Block Krylov iteration: its accuracy, its search space, and how it divides its work."""

import numpy as np
import pytest

from lowrank_core import spectrum, truncate, update_with_spectrum
from lowrank_core._linalg import krylov, narrow_products, routes, thresholds
from lowrank_core._linalg.krylov import Failure, Leading
from lowrank_core._linalg.threads import Team
from tests import bounds
from tests.internals.test_routes import kinds, made, truth

# A tenth of the energy of a tail, of at least a millionth of all, from products in float32 and any number of vectors.
WANTED = Leading(1, 0.1, 1e-6, "float32", max_vectors=10**6, expected_vectors=None, dense_from=10**6, seed=0)


def smallest_sides(side):
    return dict.fromkeys(("float32", "float64"), side)


def head(values):
    return np.cumsum(np.asarray(values, dtype=np.float64) ** 2)


@kinds
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 12, 40])
def test_krylov_values_are_attained_and_miss_at_most_the_tolerance(kind, shape, dtype, rank):
    update = made(kind, shape, dtype)
    result = spectrum(update, rank=rank, method="krylov")
    exact = head(truth(update))
    assert np.all(head(result.values) <= exact[:rank] * (1 + 1e-13))
    assert head(result.values)[-1] <= result.norm**2 * (1 + 1e-15)
    # As `spectrum` documents it: a smaller tail counts for a fraction of the energy.
    tail = max(exact[-1] - exact[rank - 1], routes.LEAST_TAILS[np.dtype(dtype).name] * exact[-1])
    assert (
        exact[rank - 1] - head(result.values)[-1] <= routes.TOLERANCES[np.dtype(dtype).name] * tail + 1e-13 * exact[-1]
    )
    assert result.norm == pytest.approx(np.sqrt(exact[-1]), rel=1e-14)
    # The factors have these very values, or where a Gram matrix has them its own, and their error is N² − H_k.
    best = truncate(update, rank, method="krylov")
    rounding = 1e-13 if dtype == np.float64 else bounds.EPS32
    assert np.allclose(spectrum(best).values, result.values, rtol=0, atol=rounding * result.norm)
    lost = np.linalg.norm(update - best.to_dense()) ** 2
    assert lost == pytest.approx(result.norm**2 - head(result.values)[-1], abs=1e-13 * result.norm**2)


@pytest.mark.parametrize("shape", [(150, 120), (128, 128), (40, 70)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [64, 512])
@pytest.mark.parametrize("workers", [1, 3])
def test_products_with_a_matrix_as_a_whole_and_in_parts(shape, dtype, rows, workers, monkeypatch):
    monkeypatch.setattr(narrow_products, "ROWS_PER_TASK", rows)
    update = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    block = np.random.default_rng(1).standard_normal((3, min(shape)))
    with Team(workers) as team:
        X, _ = narrow_products.tall_matrix(update, team)
        product, gram_block = X.apply_gram(block)
        assert np.array_equal(X.apply(block), product)
    tall = np.ldexp((update if shape[0] >= shape[1] else update.T).astype(np.float64), -X.exponent)
    eps = np.finfo(dtype).eps
    sizes = np.abs(block) @ np.abs(tall.T)
    assert np.all(np.abs(product - block @ tall.T) <= sum(shape) * eps * sizes)
    assert np.all(np.abs(gram_block - block @ tall.T @ tall) <= 2 * sum(shape) * eps * (sizes @ np.abs(tall)))


@pytest.mark.parametrize("shape", [(1300, 90), (90, 1300), (1025, 1030)])
def test_krylov_has_the_same_bits_on_any_number_of_threads(shape):
    update = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    bits = set()
    for workers in (1, 2, 5):
        best = truncate(update, 6, method="krylov", workers=workers)
        bits.add(best.B.tobytes() + best.A.tobytes())
    assert len(bits) == 1


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("call", [spectrum, truncate])
def test_krylov_divides_its_products_among_as_many_workers_as_it_is_given(call, workers, monkeypatch):
    teams = []
    monkeypatch.setattr(krylov, "Team", lambda count: teams.append(count) or Team(count))
    call(np.ones((40, 30), np.float32), rank=2, method="krylov", workers=workers)
    assert teams == [workers]


def test_krylov_finds_more_copies_of_a_value_than_a_block_has_vectors():
    diagonal = np.zeros((400, 400), np.float32)
    diagonal[np.arange(150), np.arange(150)] = 1
    assert spectrum(diagonal, rank=120, method="krylov").values == pytest.approx(np.ones(120), abs=1e-12)
    step = update_with_spectrum(np.r_[np.ones(100), np.full(300, 0.01)], (400, 500), rng=0).astype(np.float32)
    result = spectrum(step, rank=90, method="krylov").values
    assert head(result)[-1] >= (1 - 2e-6) * head(spectrum(step).values)[89]


def test_auto_takes_krylov_for_few_values_of_a_large_matrix_and_gram_where_they_fall_slowly(monkeypatch):
    taken = []
    for name in ("krylov_factors", "kernel_gram_values"):
        plain = getattr(routes, name)
        monkeypatch.setattr(routes, name, lambda *a, _f=plain, _n=name: taken.append(_n) or _f(*a))
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 256)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(256))
    monkeypatch.setattr(thresholds, "KRYLOV_GIVES_UP", {"float32": (1 / 2, 1 / 4)})
    steep = update_with_spectrum(np.exp2(-np.arange(256.0)), (300, 256), rng=0).astype(np.float32)
    slow = made("falling", (300, 256), "float32")
    assert np.allclose(spectrum(steep, rank=4).values, truth(steep)[:4], rtol=1e-4)
    assert taken == ["krylov_factors"]
    taken.clear()
    leading = spectrum(slow, rank=16).values
    assert taken == ["krylov_factors", "kernel_gram_values"]
    assert np.array_equal(leading, spectrum(slow).values[:16])


def test_krylov_of_a_zero_update_and_of_rank_0():
    result = spectrum(np.zeros((40, 50), np.float32), rank=3, method="krylov")
    assert not result.values.any()
    assert result.norm == 0
    none = spectrum(np.ones((40, 50)), rank=0, method="krylov")
    assert none.values.shape == (0,)
    assert none.norm == pytest.approx(np.sqrt(2000), rel=1e-14)
    assert truncate(np.ones((40, 50)), 0, method="krylov").rank == 0


def test_only_krylov_uses_rng():
    update = made("power law", (90, 80))
    one, other = (spectrum(update, rank=5, method="krylov", rng=seed).values for seed in (1, 2))
    assert np.array_equal(one, spectrum(update, rank=5, method="krylov", rng=1).values)
    assert not np.array_equal(one, other)
    assert np.allclose(one, other, rtol=1e-4)
    assert np.array_equal(one, spectrum(update, rank=5, method="krylov", rng=np.random.default_rng(1)).values)
    assert np.array_equal(spectrum(update, rng=1).values, spectrum(update, rng=2).values)


def test_krylov_finds_copies_of_a_value_until_the_space_is_full():
    # A projection on 40 of 72 directions: two blocks of 32 contain 32 of the ones and leave no residual. The probe
    # fills the space, and shows the other eight.
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((72, 40)))[0]
    result = spectrum(basis @ basis.T, rank=40, method="krylov").values
    assert np.all(np.abs(result - 1) <= 10 * 72 * 2.0**-52)


def test_a_krylov_space_that_would_be_too_large_gives_way_to_gram(monkeypatch):
    monkeypatch.setattr(thresholds, "SMALL_ENTRIES", 0)
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 60)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(60))
    monkeypatch.setattr(thresholds, "KRYLOV_LARGEST_FRACTION", 1.0)
    monkeypatch.setattr(thresholds, "KRYLOV_GIVES_UP", dict.fromkeys(("float32", "float64"), (0.1, 0.1)))
    matrix = np.random.default_rng(0).standard_normal((140, 130)).astype(np.float32)
    assert krylov.krylov_factors(matrix, WANTED._replace(rank=50, tolerance=1e-4, max_vectors=13), 1) is Failure.DENSE
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)[:50]
    assert np.allclose(spectrum(matrix, rank=50).values, exact, rtol=1e-7)


def test_an_iteration_ends_with_as_many_vectors_as_it_may_have_and_checks_them():
    noise = np.random.default_rng(0).standard_normal((140, 130)).astype(np.float32)
    # Two blocks, and a third would do.
    assert krylov.krylov_factors(noise, WANTED._replace(rank=20, max_vectors=64), 1) is Failure.DENSE
    assert krylov.krylov_factors(noise, WANTED._replace(rank=20, max_vectors=96), 1).missed <= 0.1
    # One block, which does.
    steep = update_with_spectrum(np.exp2(-np.arange(130.0)), (140, 130), rng=0).astype(np.float32)
    assert krylov.krylov_factors(steep, WANTED._replace(rank=4, max_vectors=32), 1).missed <= 0.1


def test_every_precision_has_its_thresholds():
    for table in (
        thresholds.KRYLOV_FACTORS_SMALLEST_SIDE,
        thresholds.KRYLOV_DENSE_FROM,
        thresholds.KRYLOV_GIVES_UP,
        routes.TOLERANCES,
        routes.LEAST_TAILS,
    ):
        assert set(table) == {"float32", "float64"}


@pytest.mark.parametrize(("dtype", "full"), [("float32", "gram_factors"), ("float64", "bidiagonal_svd_factors")])
def test_factors_are_found_by_iteration_wherever_values_stand_out(dtype, full, monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 300)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(300))
    taken, plain = [], getattr(routes, full)
    monkeypatch.setattr(routes, full, lambda *given: taken.append(full) or plain(*given))
    noise = np.random.default_rng(0).standard_normal((360, 340)).astype(dtype)
    flat = update_with_spectrum(np.ones(320), (340, 320), rng=0).astype(dtype)
    dense = update_with_spectrum(np.linspace(1, 0.995, 320), (340, 320), rng=0).astype(dtype)
    for matrix, is_full in ((noise, False), (flat, True), (dense, True)):
        taken.clear()
        best = truncate(matrix, 16)
        assert bool(taken) == is_full
        exact = np.linalg.svd(matrix.astype(float), compute_uv=False)
        lost = np.linalg.norm(matrix - best.to_dense()) ** 2
        assert lost <= (1 + 1e-6 if dtype == "float32" else 1 + 1e-11) * np.sum(exact[16:] ** 2)
        assert np.allclose(best.A @ best.A.T, np.eye(16), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "most", "dense_from"), [("float32", 80, 106), ("float64", 160, 160)])
def test_values_give_way_to_a_full_decomposition_where_factors_do_not(dtype, most, dense_from, monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 300)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(300))
    asked = []
    monkeypatch.setattr(
        routes, "krylov_factors", lambda *given: asked.append(given[1]) or krylov.krylov_factors(*given)
    )
    matrix = update_with_spectrum(1.0 / np.arange(1, 321), (340, 320), rng=0).astype(dtype)
    for call in (spectrum, truncate):
        call(matrix, rank=16)
        call(matrix, rank=16, method="krylov")
    limits = [(leading.max_vectors, leading.expected_vectors, leading.dense_from) for leading in asked]
    assert limits == [(most, 160, 320), (320, None, 320), (319, None, dense_from), (320, None, 320)]


def test_factors_of_smaller_matrices_are_found_by_iteration_and_values_all_at_once(monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(80))
    asked = []
    monkeypatch.setattr(
        routes, "krylov_factors", lambda *given: asked.append(given[1]) or krylov.krylov_factors(*given)
    )
    for side, rank, expected in ((80, 5, 1), (79, 4, 0), (80, 6, 0)):
        matrix = update_with_spectrum(1.0 / np.arange(1, side + 1), (90, side), rng=0)
        asked.clear()
        values = spectrum(matrix, rank=rank)
        assert asked == []
        assert np.array_equal(values.values, spectrum(matrix).values[:rank])
        assert values.missed == 0
        best = truncate(matrix, rank)
        assert len(asked) == expected
        assert np.allclose(np.linalg.norm(best.B, axis=0), values.values, rtol=1e-11)
    asked.clear()
    truncate(matrix, 5, tolerance=0)
    assert asked == []
    # Entries that are not finite are seen by an iteration, too.
    with pytest.raises(ValueError, match="finite"):
        truncate(np.full((90, 80), np.nan), 5)


# A check of one block, in which nothing is known of what is missed.
CHECK = krylov.Check(32, head=1.0, last=1.0, middle=1.0, missed=np.inf)


def test_an_iteration_ends_early_by_what_is_expected_or_where_values_do_not_stand_out():
    def falls_slowly(expected, *heads):
        checks = [CHECK._replace(size=32 * (i + 1), head=head) for i, head in enumerate(heads)]
        return krylov._falls_slowly(checks, 0.01, WANTED._replace(rank=4, expected_vectors=expected, dense_from=96))

    assert not falls_slowly(None, 1.0, 2.0)
    # Nothing is added twice: copies, or zeros.
    assert falls_slowly(None, 1.0, 1.005, 1.01)
    assert not falls_slowly(None, 1.0, 1.5, 1.505)
    # Each block adds half of what the one before did: six more, to 96 + 32·6 = 288 vectors.
    assert falls_slowly(280, 1.0, 2.28, 2.92)
    assert not falls_slowly(290, 1.0, 2.28, 2.92)
    assert falls_slowly(10**6, 1.0, 2.0, 3.0)
    assert not falls_slowly(None, 1.0, 2.0, 3.0)
    # More than 96 vectors.
    assert falls_slowly(None, 1.0, 2.0, 3.0, 4.0)


def checks_with(*missed):
    """Checks of a space a block apart, that may miss so much."""
    return [CHECK._replace(size=32 * (i + 1), missed=energy) for i, energy in enumerate(missed)]


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        # Nothing is known yet: each block is expected to divide what is missed by 30 at the most.
        ([np.inf], 0),
        ([10001.0], 2),
        ([9999.0], 1),
        ([np.inf, 10001.0], 2),
        # As fast as before, but by 8 at the least and by 100 at the most, and to the nearest.
        ([1e9, 1001.0], 2),
        ([1e9, 999.0], 1),
        ([1.1e4, 1.1e3], 3),
        ([5e3, 500.0], 3),
        ([3e3, 300.0], 2),
        ([1e4, 5000.0], 4),
        ([1e9, 1e4], 2),
        ([1e3, 2e3], 4),
    ],
)
def test_the_blocks_before_the_next_check_follow_from_how_fast_what_is_missed_fell(missed, expected):
    assert krylov._further_blocks(checks_with(*missed), 1.0) == expected


def test_a_fall_over_several_blocks_is_that_of_one_block_to_their_power():
    before, last = CHECK._replace(size=64, missed=1e9), CHECK._replace(size=160, missed=1.1e6)
    # By 10 a block: not by 100, with which three blocks would do.
    assert krylov._further_blocks([before, last], 1.0) == 6


def test_noise_in_float64_needs_one_certificate_and_few_checks(monkeypatch):
    matrix = np.random.default_rng(0).standard_normal((900, 800))
    sizes, certificates = [], []
    check, certify = krylov.ritz_values, krylov.bound_outside
    monkeypatch.setattr(krylov, "ritz_values", lambda space, *rest: sizes.append(space.size) or check(space, *rest))
    monkeypatch.setattr(krylov, "bound_outside", lambda *given: certificates.append(given[4]) or certify(*given))
    wanted = WANTED._replace(rank=8, tolerance=1e-12, least_tail=1e-12, max_vectors=800)
    factors = krylov.krylov_factors(matrix, wanted, 2)
    exact = np.linalg.svd(matrix, compute_uv=False)
    assert np.sum(exact[:8] ** 2 - factors.values[0] ** 2) <= 1e-12 * np.sum(exact[8:] ** 2)
    assert factors.missed <= 1e-12
    # No bound below the last value wanted would do.
    assert certificates == [pytest.approx(exact[7] ** 2, rel=1e-6)]
    assert len(sizes) <= 6
    # A certificate that shows less than it must adds no vectors to the space.
    assert all(size % krylov.BLOCK == 0 for size in sizes)
