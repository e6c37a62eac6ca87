"""The precision of products in a block Krylov iteration: what rounding loses, and when finer ones are tried."""

from types import SimpleNamespace

import numpy as np
import pytest

from lowrank_core import spectrum, truncate, update_with_spectrum
from lowrank_core._linalg import krylov, narrow_products, routes, thresholds
from lowrank_core._linalg.krylov import Failure
from lowrank_core._linalg.threads import Team
from tests.internals.test_krylov import WANTED, smallest_sides


def test_long_products_in_float32_are_summed_in_parts():
    # Of 2,048 terms 0.6 one after the other 348 units are lost.
    array = np.full((8, 2**14), 0.6, np.float32)
    with Team(1) as team:
        (sums,) = narrow_products.rows_of(array, team).apply(np.ones((1, 2**14)))
    exact = np.sum(array.astype(np.float64), axis=1)
    # A unit for each term of a part, and for each part.
    assert np.all(np.abs(sums - exact) <= (256 + 64) * 2.0**-24 * exact)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("power", [-100, 100])
def test_krylov_of_float32_whose_squares_do_not_fit_float32(shape, power):
    update = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = spectrum(update, rank=5, method="krylov").values
    assert result == pytest.approx(np.linalg.svd(update.astype(np.float64), compute_uv=False)[:5], rel=1e-6)
    far = spectrum(np.ldexp(update, power), rank=5, method="krylov").values
    assert np.array_equal(far, np.ldexp(result, power))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("failure", Failure)
def test_products_in_float64_are_tried_where_rounding_is_what_prevents_an_answer(failure, dtype, monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 200)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(200))
    tried = []
    monkeypatch.setattr(routes, "krylov_factors", lambda _, leading, __: tried.append(leading.precision) or failure)
    matrix = update_with_spectrum(1.0 / np.arange(1, 221), (240, 220), rng=0).astype(dtype)
    both = ["float32", "float64"] if failure is Failure.ROUNDING else ["float32"]
    best = truncate(matrix, 8)
    assert np.allclose(np.linalg.norm(best.B, axis=0), 1 / np.arange(1, 9), rtol=1e-6)
    assert tried == both
    tried.clear()
    # Values of float32 matrices come from their Gram matrices instead.
    assert np.allclose(spectrum(matrix, rank=8).values, 1 / np.arange(1, 9), rtol=1e-6)
    assert tried == (both if dtype == "float64" else ["float32"])


def test_a_block_shows_whether_products_in_float32_will_do(monkeypatch):
    precisions, basis = [], krylov._leading_basis

    def recorded(space, *rest):
        precisions.append(space.X.array.dtype.name)
        return basis(space, *rest)

    monkeypatch.setattr(krylov, "_leading_basis", recorded)
    falling = update_with_spectrum(1.0 / np.arange(1, 301), (340, 300), rng=0)
    exact = 1.0 / np.arange(1, 301) ** 2.0
    for tolerance, precision in ((1e-12, "float64"), (1e-6, "float32")):
        wanted = WANTED._replace(rank=100, tolerance=tolerance, least_tail=1e-12)
        factors = krylov.krylov_factors(falling, wanted, 1)
        assert precisions.pop() == precision
        assert np.sum(exact[:100] - factors.values[0] ** 2) <= tolerance * np.sum(exact[100:])
    # A float32 matrix is multiplied in float64 only where that is asked for.
    for precision in ("float32", "float64"):
        krylov.krylov_factors(falling.astype(np.float32), wanted._replace(precision=precision), 1)
        assert precisions.pop() == precision


def test_what_is_beside_a_band_is_not_left_out_where_it_would_decide():
    projection = np.diag(np.r_[1e6, np.linspace(2.0, 1.0, 299)])
    projection[200, 3] = projection[3, 200] = 1e-9
    with Team(1) as team:
        X = SimpleNamespace(eps=2.0**-52, team=team)
        space = SimpleNamespace(X=X, projection=projection, size=300, coupling=np.zeros((2, 1)))
        vectors = krylov.RitzVectors.of(space, 4, 0)
        assert vectors.beside == 1e-9
        exact = np.linalg.eigvalsh(projection)[::-1]
        # It would lose 1e-18 over gaps of 3, 2 and 1 times 1/298: 1.23e-18 of the other 444.
        for tolerance, beside in ((1.3e-18, 1e-9), (1.2e-18, None)):
            wanted = WANTED._replace(rank=4, tolerance=tolerance, least_tail=0.0)
            found, squares, added = krylov._ritz(space, wanted, 1e6 + 450.0, vectors, 0.5)
            assert found == (4, 4, beside)
            assert np.allclose(squares, exact[:151], rtol=1e-13)
            assert abs(added) <= 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_finer_is_tried_where_products_in_float64_lose_too_much(dtype):
    exactly_low = update_with_spectrum(np.r_[np.ones(20), np.zeros(180)], (220, 200), rng=0).astype(dtype)
    wanted = WANTED._replace(rank=30, tolerance=1e-12, least_tail=1e-12)
    for precision in ("float32", "float64"):
        failure = krylov.krylov_factors(exactly_low, wanted._replace(precision=precision), 1)
        assert failure is (Failure.ROUNDING if dtype == precision == "float32" else Failure.DENSE)


def test_noise_in_float64_needs_products_in_float32_alone(monkeypatch):
    tried, attempt = [], krylov.krylov_factors
    monkeypatch.setattr(routes, "krylov_factors", lambda *given: tried.append(given[1].precision) or attempt(*given))
    noise = np.random.default_rng(0).standard_normal((700, 650))
    exact = np.linalg.svd(noise, compute_uv=False)
    for scale in (1.0, 2.0**-120, 2.0**400):
        tried.clear()
        best = truncate(noise * scale, 20)
        assert tried == ["float32"]
        missed = np.sum(exact[:20] ** 2 - (np.linalg.norm(best.B, axis=0) / scale) ** 2)
        assert abs(missed) <= 1e-12 * np.sum(exact[20:] ** 2)


def test_factors_that_products_in_float32_do_not_show_come_from_those_in_float64(monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 200)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", smallest_sides(200))
    tried = []

    def attempt(matrix, leading, workers):
        tried.append((leading.precision, leading.tolerance, leading.least_tail))
        answers = leading.precision == "float64"
        return krylov.krylov_factors(matrix, leading, workers) if answers else Failure.ROUNDING

    monkeypatch.setattr(routes, "krylov_factors", attempt)
    matrix = update_with_spectrum(0.9 ** np.arange(220), (240, 220), rng=0).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)
    update = truncate(matrix, 8)
    assert tried == [("float32", 1e-6, 1e-6), ("float64", 1e-12, 1e-12)]
    assert np.linalg.norm(matrix - update.B @ update.A) ** 2 <= (1 + 1e-12) * np.sum(exact[8:] ** 2)
