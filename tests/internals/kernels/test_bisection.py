"""Eigenvalues of three diagonals by bisection, against exact ones, compiled and as plain Python."""

import mpmath
import numpy as np
import pytest

from lowrank_core._linalg.kernels import bisection
from lowrank_core._linalg.threads import Team
from lowrank_core._linalg.two_stage import tridiagonal_eigenvalues
from tests.bounds import EPS64
from tests.compiled import plain

SIZES = [1, 2, 3, 4, 5, 31, 32, 33, 70]


def eigenvalues(diagonal, squares, workers=1):
    with Team(workers) as team:
        return tridiagonal_eigenvalues(np.array(diagonal, float), np.array([*squares, 0.0]), len(diagonal), team)


@pytest.fixture(params=["compiled", "python"], autouse=True)
def kernel(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(bisection, "bisect", plain(bisection.bisect))
        monkeypatch.setattr(bisection, "_counts_below", plain(bisection._counts_below))


def second_difference(n):
    """2 on the diagonal and −1 beside it: 4 sin²(kπ / (2n + 2))."""
    k = np.arange(1, n + 1)
    return np.full(n, 2.0), np.ones(n - 1), 4.0 * np.sin(k * np.pi / (2 * n + 2)) ** 2


def clement(n):
    """Clement's matrix (SIAM Review 1 (1959) 50), moved by n − 1: 0, 2, …, 2n − 2."""
    k = np.arange(1, n)
    return np.full(n, n - 1.0), k * (n - k), 2.0 * np.arange(n)


def repeated(n):
    """Pairs without a coupling, of eigenvalues 1 and 3, and where one is left over 2."""
    exact = np.repeat([1.0, 2.0, 3.0], [n // 2, n % 2, n // 2])
    return np.full(n, 2.0), (np.arange(n - 1) % 2 == 0).astype(float), exact


def rank_one(n):
    """Of zeros but for one entry, as what is left of a constant matrix."""
    return np.where(np.arange(n) < 1, 5.0, 0.0), np.zeros(n - 1), np.where(np.arange(n) == n - 1, 5.0, 0.0)


@pytest.mark.parametrize("matrix", [second_difference, clement, repeated, rank_one])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("power", [0, 40, -40])
def test_exact_eigenvalues_to_a_rounding_of_the_largest(matrix, size, power):
    diagonal, squares, exact = matrix(size)
    found = eigenvalues(np.ldexp(diagonal, power), np.ldexp(squares, 2 * power))
    assert np.all(np.abs(np.ldexp(found, -power) - exact) <= 2 * EPS64 * exact[-1])


@pytest.mark.parametrize("seed", range(3))
def test_drawn_eigenvalues_against_mpmath(seed):
    rng = np.random.default_rng(seed)
    below = np.exp2(-rng.uniform(0, 60, 24)) if seed else rng.standard_normal(24)
    # L Lᵀ is not negative; its three diagonals are those of a bidiagonal L with `below` on its own.
    beside = rng.standard_normal(23) * np.abs(below[:-1])
    diagonal, squares = below**2, (beside * below[:-1]) ** 2
    diagonal[1:] += beside**2
    with mpmath.workdps(40):
        T = mpmath.diag([mpmath.mpf(entry) for entry in diagonal])
        for k, square in enumerate(squares):
            T[k, k + 1] = T[k + 1, k] = mpmath.sqrt(mpmath.mpf(square))
        exact = np.array([float(value) for value in mpmath.eigsy(T, eigvals_only=True)])
    assert np.all(np.abs(eigenvalues(diagonal, squares) - np.maximum(exact, 0.0)) <= 2 * EPS64 * exact[-1])


def test_a_zero_matrix_and_what_is_zero_in_another_are_exactly_zero():
    assert not eigenvalues(np.zeros(40), np.zeros(39)).any()
    found = eigenvalues([0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    assert np.array_equal(found[:4], np.zeros(4))
    assert found[4] == pytest.approx(2.0, rel=EPS64)


def test_what_rounding_makes_negative_is_zero():
    assert eigenvalues([1.0, -1e-17, 1.0], [0.0, 0.0])[0] == 0.0


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_coupling_that_rounding_would_lose_is_left_out_and_no_other(share, monkeypatch):
    seen = []
    monkeypatch.setattr(bisection, "bisect", lambda *arguments: seen.append(arguments[1].copy()))
    eigenvalues([0.75, 0.5], [(share * 0.75 * 2.0**-55) ** 2])
    assert (seen[0] > 0.0).tolist() == [False, share > 1.0]


@pytest.mark.parametrize("small", [2.0**-20, 2.0**-44])
def test_determinants_do_not_underflow_where_many_eigenvalues_are_small(small):
    # Near them each determinant is about `small` times the one before: of a hundred the last would be 2⁻²⁰⁰⁰.
    diagonal = np.append(small * np.linspace(1.0, 2.0, 99), 1.0)
    found = eigenvalues(diagonal, np.full(99, (small * 2.0**-30) ** 2 + 2.0**-109))
    assert np.all(np.abs(found - diagonal) <= 2 * EPS64)


def below(shift, diagonal, couplings):
    """How many eigenvalues are found below a shift, in each lane."""
    counts = np.empty(bisection.SHIFTS)
    bisection._counts_below(np.array(diagonal), np.array(couplings), np.full(bisection.SHIFTS, shift), counts)
    return set(counts)


def test_an_eigenvalue_is_not_below_itself_in_any_lane():
    assert below(0.5, [0.5], [0.0]) == {0.0}
    assert below(0.5 + 2.0**-40, [0.5], [0.0]) == {1.0}


def test_a_determinant_of_zero_does_not_end_what_has_no_coupling_with_it():
    assert below(0.5, [0.5, 0.25], [0.0, 0.0]) == {1.0}


def test_determinants_do_not_grow():
    large, coupled = 1.0 - 2.0**-10, 2.0**-60
    assert below(2.0**-20, [*[large] * 5000, 0.0], [0.0, *[coupled] * 5000]) == {1.0}


@pytest.mark.parametrize("value", [1.0, 3.0, 0.1])
def test_a_multiple_of_the_identity_is_found_to_the_bit_or_the_one_below(value):
    found = eigenvalues(np.full(50, value), np.zeros(49))
    assert np.all((found == value) | (found == np.nextafter(value, 0.0)))


def test_threads_share_them_out_to_the_bit():
    diagonal, squares, _ = clement(70)
    found = {eigenvalues(diagonal, squares, workers).tobytes() for workers in (1, 2, 3)}
    assert len(found) == 1


def test_they_ascend():
    rng = np.random.default_rng(5)
    found = eigenvalues(rng.uniform(0.5, 1.0, 70), rng.uniform(0.0, 0.06, 69))
    assert np.all(np.diff(found) >= 0)


def test_interlacing_with_one_row_fewer():
    """Cauchy's theorem: the eigenvalues of a leading part lie between those of the whole."""
    rng = np.random.default_rng(6)
    diagonal, squares = rng.uniform(0.5, 1.0, 70), rng.uniform(0.0, 0.06, 69)
    whole, part = eigenvalues(diagonal, squares), eigenvalues(diagonal[:-1], squares[:-1])
    assert np.all(whole[:-1] <= part + EPS64)
    assert np.all(part <= whole[1:] + EPS64)
