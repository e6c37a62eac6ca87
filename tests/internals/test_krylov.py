"""Block Krylov iteration: its accuracy, its search space, and how it divides its work."""

import numpy as np
import pytest

from lowrank_core import spectrum, truncate, update_with_spectrum
from lowrank_core._linalg import krylov, narrow_products, routes, thresholds
from lowrank_core._linalg.krylov import Leading
from lowrank_core._linalg.routes import Problem, choose_route
from lowrank_core._linalg.threads import Team
from tests import bounds
from tests.internals.test_routes import kinds, made, truth


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
    tolerance = routes.TOLERANCES[np.dtype(dtype).name] * (exact[-1] - exact[rank - 1])
    assert exact[rank - 1] - head(result.values)[-1] <= tolerance + 1e-13 * exact[-1]
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


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("power", [-100, 100])
def test_krylov_of_float32_whose_squares_do_not_fit_float32(shape, power):
    update = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = spectrum(update, rank=5, method="krylov").values
    assert result == pytest.approx(np.linalg.svd(update.astype(np.float64), compute_uv=False)[:5], rel=1e-6)
    far = spectrum(np.ldexp(update, power), rank=5, method="krylov").values
    assert np.array_equal(far, np.ldexp(result, power))


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
    monkeypatch.setattr(thresholds, "KRYLOV_LARGEST_FRACTION", 1.0)
    monkeypatch.setattr(thresholds, "KRYLOV_GIVES_UP", dict.fromkeys(("float32", "float64"), (0.1, 0.1)))
    matrix = np.random.default_rng(0).standard_normal((70, 60)).astype(np.float32)
    assert krylov.krylov_factors(matrix, Leading(50, 1e-4, 6, 6, 0), 1) is None
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)[:50]
    assert np.allclose(spectrum(matrix, rank=50).values, exact, rtol=1e-7)
    best = truncate(matrix, 50)
    assert np.allclose(np.linalg.norm(best.B, axis=0), exact, rtol=1e-7)
    assert np.allclose(best.A @ best.A.T, np.eye(50), rtol=0, atol=1e-12)
    route = choose_route("auto", Problem("float32", matrix.shape, 50))
    # The values in the factors are all that the Gram matrix has.
    assert route.factors(matrix[np.newaxis], 50, 1).values.shape == (1, 60)


def test_factors_that_products_in_float32_do_not_show_come_from_those_in_float64(monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 200)
    tried = []

    def attempt(matrix, leading, workers):
        tried.append((matrix.dtype.name, leading.tolerance))
        return None if matrix.dtype == np.float32 else krylov.krylov_factors(matrix, leading, workers)

    monkeypatch.setattr(routes, "krylov_factors", attempt)
    matrix = update_with_spectrum(0.9 ** np.arange(220), (240, 220), rng=0).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)
    update = truncate(matrix, 8)
    assert tried == [("float32", 1e-6), ("float64", 1e-12)]
    assert np.linalg.norm(matrix - update.B @ update.A) ** 2 <= (1 + 1e-12) * np.sum(exact[8:] ** 2)
