"""What block Krylov iteration may miss: the bounds themselves, and the spectra that defeat an estimate."""

from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import eval_chebyu
from scipy.stats import chi2

from benchmarks.repeated import missed_over_tolerance, rotated, stepped_values
from lowrank_core import spectrum
from lowrank_core._linalg import certificate, krylov, narrow_products, thresholds
from lowrank_core._linalg.search_space import SearchSpace, orthonormalised
from lowrank_core._linalg.threads import Team

# More than five blocks of vectors, so that the largest space that is drawn is not the whole.
COUNT = 192


def largest_energy(matrix):
    return float(np.linalg.eigvalsh(matrix.T @ matrix)[-1])


ISSUES = {
    "two values": (np.r_[np.full(64, 2.0), np.ones(200), np.zeros(760)], 48),
    "148 copies twice": (np.r_[np.full(296, 2.0), np.ones(103), np.zeros(625)], 40),
    "three values of 148 copies": (np.r_[np.full(148, 3.0), np.full(148, 2.0), np.ones(148), np.zeros(580)], 40),
    "64 equal diagonal blocks": (np.repeat(1 / np.arange(1.0, 17), 64), 48),
    "a steep step before a plateau": (np.r_[1, 0.9, 0.8, 0.7, 1e-5 * np.linspace(1, 0.5, 200), np.zeros(820)], 48),
}


@pytest.mark.parametrize("name", ISSUES)
def test_auto_stays_within_its_tolerance_on_repeated_values(name):
    values, rank = ISSUES[name]
    matrix = rotated(values, 0)
    assert missed_over_tolerance(matrix, rank, spectrum(matrix, rank=rank).values) <= 1


# As where "auto" takes krylov, at a size of which thousands can be drawn: of half the vectors at most, else by gram.
@given(stepped_values(COUNT), st.integers(1, 60), st.integers(0, 2**32))
def test_auto_stays_within_its_tolerance_whatever_the_copies(values, rank, seed):
    matrix = rotated(values, seed)
    with patch.multiple(
        thresholds,
        KRYLOV_SMALLEST_SIDE=COUNT,
        KRYLOV_FACTORS_SMALLEST_SIDE={"float32": COUNT, "float64": COUNT},
        KRYLOV_LARGEST_FRACTION=1 / 5,
        KRYLOV_GIVES_UP={"float32": (1 / 2, 1 / 2)},
    ):
        result = spectrum(matrix, rank=rank, rng=seed)
    assert missed_over_tolerance(matrix, rank, result.values) <= 1


@given(stepped_values(COUNT), st.integers(0, 2**32))
def test_the_bound_of_what_lies_outside_is_not_below_it(values, seed):
    matrix, rng = rotated(values, seed, "float64"), np.random.default_rng(seed)
    with Team(1) as team:
        X, energy = narrow_products.tall_matrix(matrix, team)
        space = SearchSpace(X, X.columns)
        space.extend(orthonormalised(X.apply_gram(rng.standard_normal((krylov.BLOCK, X.columns)))[1], space.basis)[0])
        found = certificate.bound_outside(space, energy, rng, 1e-9, np.inf, lambda _: True)
    tall = np.ldexp(matrix, -X.exponent)
    directions = found.leading
    assert found.bound >= largest_energy(tall - (tall @ space.Q.T) @ space.Q) * (1 - 1e-12)
    assert np.allclose(directions @ directions.T, np.eye(len(directions)), rtol=0, atol=1e-10)
    assert np.allclose(directions @ space.Q.T, 0, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("blocks", "at_most"), [(2, 4.2), (3, 1.8), (4, 1.4), (5, 1.2), (6, 1.11)])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_bound_of_falling_values_is_a_few_times_as_large(power, blocks, at_most):
    eigenvalues = (1.0 + np.arange(1000)) ** (-2 * power)
    largest, trace = eigenvalues[100], np.sum(eigenvalues[100:])
    bound = certificate.outside_bound(largest, trace, certificate.DIRECTIONS, blocks, 1e-9)
    assert largest < bound < at_most * largest


def test_the_bound_grows_with_what_it_must_withstand():
    one = certificate.outside_bound(1.0, 50.0, 32, 3, 1e-6)
    assert certificate.outside_bound(1.0, 50.0, 32, 3, 1e-9) > one
    assert certificate.outside_bound(1.0, 500.0, 32, 3, 1e-6) > one
    assert certificate.outside_bound(1.0, 50.0, 16, 3, 1e-6) > one
    assert certificate.outside_bound(1.0, 50.0, 32, 4, 1e-6) < one
    # No eigenvalue is larger than the trace.
    assert certificate.outside_bound(1.0, 1.001, 2, 2, 1e-9) == 1.001
    assert certificate.outside_bound(0.0, 3.0, 32, 3, 1e-9) == 3.0


@pytest.mark.parametrize("directions", [2, 8, 32])
@pytest.mark.parametrize("blocks", [2, 3, 4])
@pytest.mark.parametrize("trace", [3.0, 400.0])
@pytest.mark.parametrize("failure", [1e-9, 0.1])
def test_the_bound_is_the_least_eigenvalue_that_its_equation_refutes(directions, blocks, trace, failure):
    def excess(eigenvalue):
        """Left side of the equation in the docstring over its right side, by SciPy's functions."""
        a, d, x = 2.0 / eigenvalue, trace / eigenvalue, np.log(2 / failure)
        gain = 4 * eval_chebyu(blocks - 2, 2 / a - 1) ** 2 / a**2
        return (1 - a) * gain * chi2.ppf(failure / 2, directions) / (d + 2 * np.sqrt(d * x) + 2 * x)

    bound = certificate.outside_bound(2.0, trace, directions, blocks, failure)
    if bound == trace:
        assert excess(trace / 1.01) <= 1.0
    else:
        # The factor 1.01 of the bisection, and a quantile that is a little less.
        assert excess(bound / 1.013) < 1.0 <= excess(bound)


def made_space(eps, diagonal, coupling=0.0):
    """A space with a diagonal projection, of which the last two vectors are coupled to one outside."""
    X = SimpleNamespace(eps=eps, team=None)
    return SimpleNamespace(X=X, coupling=np.full((2, 1), coupling), projection=np.diag(diagonal))


def test_rounding_and_what_is_left_out_are_residuals_of_every_ritz_vector():
    squares = np.array([9.0, 4.0, 1.0])
    vectors = certificate.RitzVectors(2, separated=2, beside=None)
    residuals = np.array([0.004 * 3.0 * value for value in (3.0, 2.0)])

    def lost(residuals, following):
        return pytest.approx(np.sum(residuals**2 / (squares[:2] - following)), rel=1e-12)

    assert certificate.lost_to_rounding(vectors, squares, 1e-3) == lost(residuals, 1.0)
    beside = vectors._replace(beside=0.01)
    assert certificate.lost_to_rounding(beside, squares, 1e-3) == lost(residuals + 0.01, 1.0)
    # If the third vector, too, is multiplied exactly, the gap is that to what is outside the space.
    separated = vectors._replace(separated=3)
    assert certificate.lost_to_rounding(separated, squares, 1e-3) == lost(residuals, 0.0)
    assert certificate.lost_to_rounding(separated, squares, 1e-3, 0.5) == lost(residuals, 0.5)
    # What lies outside leaves no gap but the residual itself; of zero values none is lost.
    one = certificate.lost_to_rounding(separated._replace(rank=1), squares, 1e-3, 9.0)
    assert np.isclose(one, residuals[0], rtol=1e-12)
    assert certificate.lost_to_rounding(vectors, np.zeros(3), 1e-3) == 0.0


@pytest.mark.parametrize(("eps", "most"), [(2.0**-52, 2.0**-49), (2.0**-23, 2.0**-20)])
def test_little_is_left_out_of_a_projection(eps, most):
    projection = np.diag(np.linspace(9.0, 1.0, 288))
    space = SimpleNamespace(X=SimpleNamespace(eps=eps), projection=projection, size=288)
    for entry, beside in ((8.99 * most, 8.99 * most), (9.01 * most, None)):
        projection[200, 3] = projection[3, 200] = entry
        assert certificate.RitzVectors.of(space, 250, 32) == (250, 282, beside)
        assert certificate.RitzVectors.of(space, 270, 32) == (270, 288, beside)


def test_what_couples_a_space_to_the_outside_adds_to_its_ritz_values():
    squares = np.array([9.0, 4.0, 1.0])
    space = SimpleNamespace(
        X=SimpleNamespace(eps=1e-3, team=None), coupling=np.full((2, 1), 0.1), projection=np.diag(squares)
    )
    vectors = certificate.RitzVectors(2, separated=2, beside=None)
    for outside, gap in ((1.0, 3.0), (3.5, 0.5)):
        raised = np.linalg.eigvalsh(np.diag(squares) + np.outer([0, 0.1, 0.1], [0, 0.1, 0.1]) / gap)[::-1]
        values, added = certificate.ritz_values(space, vectors, 3, gap)
        assert np.array_equal(values, squares)
        assert np.isclose(added, np.sum(raised[:2]) - 13.0, rtol=1e-9)
        lost = certificate.lost_to_rounding(vectors, squares, 1e-3, outside)
        assert np.isclose(certificate.missed_energy(space, vectors, squares, outside), added + lost, rtol=1e-9)
    assert certificate.missed_energy(space, vectors, squares, 4.0) == np.inf
    assert certificate.ritz_values(space, vectors, 3, 0.0)[1] == np.inf


def test_products_in_float32_are_allowed_their_rounding(monkeypatch):
    matrix, rng, given_to = rotated(1 / np.arange(1.0, 193), 0, "float32"), np.random.default_rng(0), []
    monkeypatch.setattr(certificate, "outside_bound", lambda *figures: given_to.append(figures) or 1.0)
    with Team(1) as team:
        X, energy = narrow_products.tall_matrix(matrix, team)
        space = SearchSpace(X, X.columns)
        space.extend(orthonormalised(X.apply_gram(rng.standard_normal((krylov.BLOCK, X.columns)))[1], space.basis)[0])
        found = certificate.bound_outside(space, energy, rng, 1e-9, np.inf, lambda _: True)
    tall, eps = np.ldexp(matrix.astype(np.float64), -X.exponent), 2.0**-23
    ((largest, rest, directions, blocks, failure),) = given_to
    assert (directions, blocks, failure) == (32, 2, 5e-10)
    norm = np.linalg.norm(tall)
    # Four units are added to what is computed, which errs by less than one.
    assert 3 * eps * norm <= np.sqrt(largest) - np.linalg.norm(tall @ found.leading[0]) <= 5 * eps * norm
    exact = norm**2 - np.linalg.norm(tall @ space.Q.T) ** 2
    assert 3 * eps * norm**2 <= rest - exact <= 5 * eps * norm**2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_certificate_grows_until_its_bound_suffices_or_cannot(dtype, monkeypatch):
    matrix, bounds = rotated(1.0 / np.sqrt(np.arange(1.0, 401)), 0, dtype), []
    outside_bound = certificate.outside_bound
    monkeypatch.setattr(
        certificate, "outside_bound", lambda *figures: bounds.append(figures) or outside_bound(*figures)
    )
    with Team(1) as team:
        X, energy = narrow_products.tall_matrix(matrix, team)
        space = SearchSpace(X, X.columns)
        space.extend(orthonormalised(X.apply_gram(np.random.default_rng(0).standard_normal((32, X.columns)))[1])[0])

        def blocks(limit, suffices):
            bounds.clear()
            found = certificate.bound_outside(space, energy, np.random.default_rng(1), 1e-9, limit, suffices)
            assert found.combinations.shape == (32, 32 * bounds[-1][3])
            assert np.sum([figures[4] for figures in bounds]) <= 1e-9
            return [figures[3] for figures in bounds], found.bound

        least = certificate.LEAST_BLOCKS
        one, loose = blocks(np.inf, lambda _: True)
        every, tight = blocks(np.inf, lambda _: False)
        assert one == [least]
        assert every == list(range(least, certificate.MOST_BLOCKS + 1))
        assert tight < loose
        assert blocks(np.inf, lambda bound: bound < loose)[0] == [least, least + 1]
        # What was found reaches the limit: no bound will be below it.
        assert blocks(0.3 * tight, lambda _: False)[0] == [least]


@pytest.mark.parametrize(("columns", "blocks"), [(90, [26]), (96, [32]), (110, [32, 14]), (128, [32, 32])])
def test_a_certificate_with_all_directions_outside_is_exact(columns, blocks):
    matrix = np.random.default_rng(0).standard_normal((150, columns))
    with Team(1) as team:
        X, energy = narrow_products.tall_matrix(matrix, team)
        space = SearchSpace(X, X.columns)
        space.extend(orthonormalised(X.apply_gram(np.random.default_rng(0).standard_normal((32, columns)))[1])[0])
        space.extend(space.gram_block)
        found = certificate.bound_outside(space, energy, np.random.default_rng(1), 1e-9, np.inf, lambda _: False)
    outside = matrix - (matrix @ space.Q.T) @ space.Q
    assert found.bound == pytest.approx(np.linalg.norm(outside, 2) ** 2, rel=1e-12)
    assert found.combinations.shape == (min(32, sum(blocks)), sum(blocks))
    assert np.allclose(found.basis @ found.basis.T, np.eye(sum(blocks)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("failures", [1e-2, 1e-6])
def test_a_bound_that_may_fail_often_fails_no_more_often_than_it_says(failures):
    # Of two vectors and two blocks, for an isolated eigenvalue among many: the leanest bound that there is.
    rng, failed, draws = np.random.default_rng(0), 0, 2000
    eigenvalues = np.r_[1.0, np.full(60, 0.3)]
    for _ in range(draws):
        start = rng.standard_normal((61, 2))
        basis, _ = np.linalg.qr(np.hstack([start, eigenvalues[:, np.newaxis] * start]))
        largest = np.linalg.eigvalsh(basis.T @ (eigenvalues[:, np.newaxis] * basis))[-1]
        failed += certificate.outside_bound(largest, np.sum(eigenvalues), 2, 2, failures) < 1.0
    assert failed <= draws * failures


@pytest.mark.parametrize("degrees", [2, 8, 16, 32, 64])
@pytest.mark.parametrize("probability", [0.1, 1e-3, 5e-10])
def test_quantiles_are_those_of_chi_squared_or_a_little_less(degrees, probability):
    quantile = certificate._chi_squared_quantile(degrees, probability)
    assert 0.998 <= quantile / chi2.ppf(probability, degrees) <= 1 + 1e-9


@given(stepped_values(COUNT), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32))
def test_missed_energy_is_not_below_what_is_missed(values, rank, blocks, seed):
    matrix, rng = rotated(values, seed, "float64"), np.random.default_rng(seed)
    with Team(1) as team:
        X, _ = narrow_products.tall_matrix(matrix, team)
        space = SearchSpace(X, X.columns)
        space.extend(orthonormalised(rng.standard_normal((krylov.BLOCK, X.columns)), space.basis)[0])
        for _ in range(blocks):
            space.extend(space.gram_block)
    tall = np.ldexp(matrix, -X.exponent)
    outside = largest_energy(tall - (tall @ space.Q.T) @ space.Q)
    squares = np.linalg.eigvalsh(space.projection)[::-1]
    energies = np.linalg.eigvalsh(tall.T @ tall)[::-1]
    missed = np.sum(energies[:rank]) - np.sum(squares[:rank])
    vectors = certificate.RitzVectors.of(space, rank, 0)
    bound = certificate.missed_energy(space, vectors, squares, outside * (1 + 1e-9))
    assert bound >= missed - 1e-13 * np.sum(energies)


def test_auto_asked_for_every_digit_takes_gram(monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 64)
    monkeypatch.setattr(thresholds, "KRYLOV_FACTORS_SMALLEST_SIDE", {"float32": 64})
    monkeypatch.setattr(thresholds, "KRYLOV_GIVES_UP", {"float32": (3 / 4, 3 / 4)})
    monkeypatch.setattr(thresholds, "SMALL_ENTRIES", 0)
    matrix = rotated(1 / np.arange(1.0, 129), 0)
    exact = spectrum(matrix, method="gram").values[:4]
    assert np.array_equal(spectrum(matrix, rank=4, tolerance=0).values, exact)
    assert not np.array_equal(spectrum(matrix, rank=4).values, exact)


@pytest.mark.parametrize("tolerance", [-1e-9, 1.1, np.nan, [1e-4], "small"])
def test_a_tolerance_is_one_number_from_0_to_1(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        spectrum(np.eye(3), rank=1, tolerance=tolerance)
