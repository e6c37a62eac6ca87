"""Strategies draw what they document and shrink to readable matrices; verifiers refuse wrong results."""

import importlib.util
import sys

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from lowrank_core import LowRankUpdate, Spectrum, spectrum, truncate
from lowrank_core.testing import (
    DTYPES,
    FACTOR_KINDS,
    KINDS,
    LAYOUTS,
    assert_eckart_young,
    assert_same_update,
    assert_spectrum,
    kronecker_updates,
    low_rank_updates,
    ranks_for,
    spectra,
    stacks_of_updates,
    strategies,
    updates,
)
from tests.drawing import UNSHRUNK

UPDATE = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
LARGEST = {"float64": 2.0**1023, "float32": 2.0**127, "float16": 2.0**15, "bfloat16": 2.0**127}


def values_of(update):
    scaled = np.ldexp(update.astype(np.float64), -int(np.frexp(np.abs(update.astype(np.float64)).max())[1]))
    return np.linalg.svd(scaled, compute_uv=False)


KIND_OF = {
    "ordinary": lambda v: v[0] < 2000 * v[-1],
    "zero": lambda v: v[0] == 0,
    "repeated": lambda v: len(v) >= 3 and (np.diff(v) > -1e-12).any() and v[-1] > 0,
    "clustered": lambda v: len(v) >= 3 and v[0] - v[-1] < 1e-4,
    "deficient": lambda v: 1e-12 * v[0] > v[-1],
    "graded": lambda v: len(v) >= 3 and v[-1] < 1e-250 * v[0],
    "subnormal": lambda v: v[0] > 0,
    "huge": lambda v: v[0] > 0,
}
# Shrinks what it finds, for tests of the smallest examples.
once = settings(max_examples=2000, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_is_drawn_in_every_dtype(kind, dtype):
    def drawn(update):
        size = np.abs(update.astype(np.float64)).max()
        if kind == "graded" and dtype != "float64":
            return 0 < values_of(update)[-1] < 1e-3
        if kind == "subnormal":
            return 0 < size < SMALLEST[dtype]
        if kind == "huge":
            return size > LARGEST[dtype] / 64
        return KIND_OF[kind](values_of(update))

    example = find(updates(kinds=[kind], dtypes=[dtype]), drawn, settings=UNSHRUNK)
    assert example.dtype.name == dtype
    assert np.all(np.isfinite(example.astype(np.float64)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_updates_and_repeated_rows_are_drawn_in_every_dtype(dtype):
    def dense(update):
        return min(update.shape) >= 3 and update.all()

    def repeats(update):
        return dense(update) and np.ptp(update[2:], axis=0).max() == 0 and np.ptp(update, axis=0).all()

    drawn = updates(max_side=4, kinds=["deficient"], dtypes=[dtype])
    constant = find(drawn, lambda update: dense(update) and np.ptp(update) == 0, settings=UNSHRUNK)
    values = np.linalg.svd(constant.astype(np.float64), compute_uv=False)[:3] / abs(float(constant[0, 0]))
    assert np.allclose(values, [np.sqrt(constant.size), 0.0, 0.0], atol=1e-14)
    assert find(drawn, repeats, settings=UNSHRUNK).dtype.name == dtype


@given(updates(kinds=["clustered"], dtypes=["float64"]))
def test_bases_keep_the_spectrum(update):
    # Values within 2⁻²⁰ of each other where the bases are orthonormal.
    values = values_of(update)
    assert values[0] - values[-1] <= 1e-5 * values[0]


@pytest.mark.parametrize("kinds", [(np.ndarray, np.ndarray), (np.ndarray, LowRankUpdate), (LowRankUpdate, np.ndarray)])
def test_sides_of_kronecker_products_are_matrices_and_products(kinds):
    drawn = find(
        kronecker_updates(max_side=2, dtypes=["float32"]),
        lambda update: (type(update.left), type(update.right)) == kinds and update.to_dense().any(),
        settings=UNSHRUNK,
    )
    assert drawn.dtype == "float32"
    assert max(drawn.shape) <= 4
    assert_same_update(drawn, np.float64(drawn.scaling) * drawn.to_dense() / drawn.scaling)
    with pytest.raises(AssertionError, match="the update"):
        assert_same_update(drawn, 1.5 * drawn.to_dense())
    assert_spectrum(drawn, spectrum(drawn), eps=2.0**-23, c=100)


def test_graded_spectra_fall_over_300_orders_of_magnitude():
    example = find(spectra(kinds=["graded"]), lambda s: s.values[-1] < 1e-300 * s.values[0], settings=UNSHRUNK)
    assert example.values[-1] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_drawn(layout):
    def drawn(update):
        flags = update.flags
        return {
            "C": flags.c_contiguous and flags.writeable,
            "F": flags.f_contiguous and not flags.c_contiguous,
            "strided": not flags.c_contiguous and not flags.f_contiguous,
            "read-only": not flags.writeable,
        }[layout]

    for strategy in (updates, stacks_of_updates):
        find(strategy(layouts=[layout]), drawn, settings=UNSHRUNK)


@given(updates(max_side=5), stacks_of_updates(max_side=4, max_items=2), spectra(max_side=6), spectra(complete=None))
def test_sizes_are_kept_and_numbers_finite(update, stack, s, other):
    assert update.ndim == 2
    assert max(update.shape) <= 5
    assert 3 <= stack.ndim <= 4
    assert max(stack.shape[-2:]) <= 4
    assert max(stack.shape[:-2]) <= 2
    assert max(s.shape) <= 6
    assert s.complete
    for array in (update, stack, s.values, other.values):
        assert np.all(np.isfinite(array.astype(np.float64)))


@given(st.data())
def test_drawn_ranks_are_legal(data):
    s = data.draw(spectra(complete=None))
    assert 0 <= data.draw(ranks_for(s)) <= (min(s.shape) if s.complete else len(s.values))
    update = data.draw(stacks_of_updates())
    assert 0 <= data.draw(ranks_for(update)) <= min(update.shape[-2:])


def test_the_least_and_the_largest_rank_are_drawn():
    for s in (UPDATE, spectrum(UPDATE), spectrum(UPDATE, rank=1), LowRankUpdate(UPDATE, np.eye(2))):
        largest = 1 if isinstance(s, Spectrum) and not s.complete else 2
        assert find(ranks_for(s), lambda _: True, settings=once) == 0
        assert find(ranks_for(s), lambda rank: rank == largest, settings=once) == largest  # noqa: B023


def test_short_and_incomplete_spectra_are_drawn():
    find(spectra(), lambda s: len(s.values) < min(s.shape), settings=UNSHRUNK)
    find(spectra(complete=False), lambda s: s.norm > np.linalg.norm(s.values) * 1.01, settings=UNSHRUNK)
    find(spectra(complete=None), lambda s: s.complete, settings=UNSHRUNK)
    find(spectra(complete=None), lambda s: not s.complete, settings=UNSHRUNK)


FACTORS_OF = {
    "ordinary": lambda B, _, product: np.linalg.matrix_rank(product) == B.shape[1] > 1,
    "unbalanced": lambda B, *_: np.ptp(np.frexp(np.abs(B).max(axis=0))[1]) > 12,
    "deficient": lambda B, *_: np.linalg.matrix_rank(B) < min(B.shape),
    "padded": lambda B, A, product: not B[:, -1].any() and not A[-1].any() and product.any(),
    "cancelled": lambda B, A, product: 0 < np.linalg.norm(product) < 1e-4 * np.linalg.norm(B) * np.linalg.norm(A),
}


@pytest.mark.parametrize("kind", FACTOR_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_factors_is_drawn(kind, dtype):
    def drawn(update):
        B, A = update.B.astype(np.float64), update.A.astype(np.float64)
        return FACTORS_OF[kind](B, A, B @ A)

    if kind == "cancelled" and dtype in {"float16", "bfloat16"}:
        return  # Their rounding leaves differences of 1e-3 and more, or none.
    example = find(low_rank_updates(kinds=[kind], dtypes=[dtype]), drawn, settings=UNSHRUNK)
    assert example.dtype == dtype


@given(low_rank_updates(max_side=5, max_rank=3, max_dims=2))
def test_drawn_factors_are_within_the_requested_sizes(update):
    assert 1 <= update.rank <= 3
    assert max(update.shape[-2:]) <= 5
    assert len(update.shape) <= 4
    assert np.all(np.isfinite(update.to_dense()))


def test_factors_that_broadcast_and_ranks_beyond_the_shape_are_drawn():
    find(low_rank_updates(max_dims=2), lambda u: u.B.ndim != u.A.ndim and len(u.shape) > 2, settings=UNSHRUNK)
    find(low_rank_updates(), lambda u: u.rank > min(u.shape), settings=UNSHRUNK)
    find(low_rank_updates(), lambda u: u.scaling < 0, settings=UNSHRUNK)


def test_failures_shrink_to_small_diagonal_matrices():
    smallest = find(updates(), lambda update: min(update.shape) >= 2, settings=once)
    assert smallest.shape == (2, 2)
    assert np.array_equal(smallest, np.diag(np.diag(smallest)))
    assert smallest.dtype == np.float64
    assert smallest.flags.c_contiguous
    assert smallest.flags.writeable


def test_verifiers_accept_right_answers():
    U, values, Vt = np.linalg.svd(UPDATE, full_matrices=False)
    assert_spectrum(UPDATE, values)
    assert_spectrum(UPDATE, values[:1])
    assert_spectrum(UPDATE, spectrum(UPDATE))
    assert_spectrum(LowRankUpdate(UPDATE, np.eye(2)), values)
    assert_same_update((U * values) @ Vt, UPDATE)
    assert_same_update(LowRankUpdate(U * values, Vt), UPDATE)
    for rank in range(3):
        assert_eckart_young(UPDATE, truncate(UPDATE, rank), rank)
    zero = np.zeros((2, 3))
    assert_spectrum(zero, [0.0, 0.0])
    assert_same_update(zero, zero)
    assert_eckart_young(zero, zero, 0)
    assert_eckart_young(np.eye(3), np.diag([1.0, 0.0, 0.0]), 1)


@pytest.mark.parametrize("size", [1.0, 1e-310, 1e300])
@pytest.mark.parametrize("stack", [False, True])
def test_verifiers_refuse_wrong_answers(size, stack):
    update = size * (np.stack([UPDATE, UPDATE]) if stack else UPDATE)

    def spoilt(array, change):
        array = array.astype(np.float64)
        array[(1, ...) if stack else ...] *= change
        return array

    values = np.linalg.svd(update / size, compute_uv=False) * size
    off = 1 + 1e-12 if size > 1e-300 else 1 + 1e-9
    off = 1.5 if size == 1e-310 else off
    for wrong in (
        spoilt(values, off),
        spoilt(values, np.nan),
        -values,
        values[..., ::-1],
        values[..., :1] * [2.0, 1.0],
    ):
        with pytest.raises(AssertionError):
            assert_spectrum(update, wrong)
    with pytest.raises(AssertionError, match="the update"):
        assert_same_update(spoilt(update, off), update)
    best = truncate(update, 1).to_dense()
    with pytest.raises(AssertionError, match="Frobenius"):
        assert_eckart_young(update, spoilt(best, 0.5), 1)
    with pytest.raises(AssertionError, match="singular value 2 of the approximation"):
        assert_eckart_young(update, update, 1)


def test_verifiers_refuse_a_wrong_norm_a_wrong_shape_and_too_many_values():
    s = spectrum(UPDATE, rank=1)
    with pytest.raises(AssertionError, match="the norm"):
        assert_spectrum(UPDATE, Spectrum(s.values, s.norm * (1 + 1e-10), s.shape, complete=False))
    for values in ([3.0, 2.0, 0.0], [[3.0, 2.0]]):
        with pytest.raises(AssertionError, match="do not belong"):
            assert_spectrum(UPDATE, values)
    stack = np.stack([np.diag([3.0, 2.0, 1.0])] * 2)
    for values in ([3.0, 2.0, 1.0], [[3.0, 2.0, 1.0]], [[[3.0, 2.0, 1.0]] * 2]):
        with pytest.raises(AssertionError, match="do not belong"):
            assert_spectrum(stack, values)
    with pytest.raises(AssertionError, match="must descend"):
        assert_spectrum(stack[0], [3.0, 1.0, 2.0])
    for check in (lambda x: assert_same_update(x, UPDATE), lambda x: assert_eckart_young(UPDATE, x, 2)):
        with pytest.raises(AssertionError, match=r"shape \(2, 3\)"):
            check(UPDATE.T)


def test_the_best_in_one_norm_is_not_enough():
    # What is left of diag(1, ½ …) by diag(0.6, 0 …) is the least in the spectral norm, and more in the other.
    with pytest.raises(AssertionError, match="Frobenius"):
        assert_eckart_young(np.diag([1.0, 0.5, 0.5]), np.diag([0.6, 0.0, 0.0]), 1)
    # Beside a hundred values left over, 0.6 instead of ½ is 0.04 more in the Frobenius norm and 0.1 in the spectral.
    update, rival = (np.diag([first, *np.full(100, rest)]) for first, rest in ((1.0, 0.5), (0.4, 0.0)))
    slack = 0.07 / (101 * np.linalg.norm(update))
    with pytest.raises(AssertionError, match="spectral"):
        assert_eckart_young(update, rival, 1, c=slack, eps=1.0)


def test_c_and_eps_set_the_bound():
    wrong = np.array([3.0, 2.0]) * (1 + 1e-8)
    with pytest.raises(AssertionError):
        assert_spectrum(UPDATE, wrong)
    assert_spectrum(UPDATE, wrong, eps=2.0**-23)
    assert_spectrum(UPDATE, wrong, c=1e9)


def test_the_bound_of_a_long_stack_is_that_of_its_matrices():
    stack, values = np.stack([np.diag([3.0, 2.0])] * 100), np.array([[3.0, 2.0]] * 100)
    assert_spectrum(stack, values * (1 + 1e-15))
    with pytest.raises(AssertionError):
        assert_spectrum(stack, values * (1 + 1e-13))


def test_without_hypothesis_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    example = importlib.util.spec_from_file_location("strategies_again", strategies.__file__)
    with pytest.raises(ImportError, match=r'pip install "lowrank_core\[testing\]"'):
        example.loader.exec_module(importlib.util.module_from_spec(example))


def test_the_bounds_are_those_documented():
    # Of the identity of side 4, every bound is c · 4 · eps.
    update, eps = np.eye(4), 2.0**-52
    for check, c in (
        (lambda error: assert_spectrum(update, np.ones(4) + error), 10),
        (lambda error: assert_same_update(update * (1 + error), update), 30),
    ):
        check(4 * c * eps)
        with pytest.raises(AssertionError):
            check(4 * (c + 0.5) * eps)


IN_UNITS = "is allowed, in units of the power of two above the largest entry"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: assert_spectrum(UPDATE, [2.0, 3.0]),
            "singular values must not be negative, and must descend along the last axis",
        ),
        # 3 is 0.75 in units of 4; 10 · 3 · eps · 0.75.
        (
            lambda: assert_spectrum(UPDATE, [6.0, 2.0]),
            f"a singular value at index (0,): 0.75 where at most 5e-15 {IN_UNITS}",
        ),
        (
            lambda: assert_spectrum(UPDATE, Spectrum(np.array([3.0]), np.array(6.0), (3, 2), complete=False)),
            f"the norm: 0.599 where at most 6e-15 {IN_UNITS}",
        ),
        (lambda: assert_same_update(UPDATE.T, UPDATE), "an update of shape (3, 2) is expected; got shape (2, 3)"),
        (
            lambda: assert_eckart_young(UPDATE, UPDATE, 1),
            f"singular value 2 of the approximation: 0.5 where at most 1.8e-14 {IN_UNITS}",
        ),
        (
            lambda: assert_eckart_young(np.eye(3), np.diag([0.0, 3.0, 0.0]), 1),
            f"the Frobenius norm of the residual: 1.22 where at most 0.707 {IN_UNITS}",
        ),
        (
            lambda: assert_eckart_young(np.diag([1.0, *[0.5] * 100]), np.diag([0.4, *[0.0] * 100]), 1, c=7e-5, eps=1.0),
            f"the spectral norm of the residual: 0.3 where at most 0.268 {IN_UNITS}",
        ),
    ],
)
def test_what_is_wrong_is_said(check, message):
    with pytest.raises(AssertionError) as refused:
        check()
    assert str(refused.value) == message
