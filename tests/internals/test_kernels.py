"""Kernels against naive oracles, compiled and as plain Python."""

import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import lowrank_core
from lowrank_core._linalg.kernels import compiling, dqds, energies, gram, learning, products, simd, small
from tests import oracles
from tests.compiled import both, plain

EPS = 2.0**-52
RNG = np.random.default_rng(0)
# On either side of a block of partial sums, and of several blocks at once.
SIZES = [1, 2, 3, 63, 64, 65, 127, 128, 129, 255, 256, 257, 320, 511, 512, 513, 700]


def falling(count, kind):
    values = {
        "flat": np.ones(count),
        "linear": np.linspace(3.0, 0.5, count),
        "graded": np.exp2(np.linspace(0.0, -480.0, count)),
        "steep": np.exp2(-np.minimum(1000.0, 4.0 * np.arange(count))),
        "deficient": np.where(np.arange(count) < (count + 1) // 2, np.linspace(1.0, 0.1, count), 0.0),
    }[kind]
    return np.sort(values)[::-1].copy()


def suffix_sums(values):
    """Exact H_r and T_r for each r."""
    squares = [Fraction(float(value)) ** 2 for value in values]
    heads = [Fraction(0)]
    for square in squares:
        heads.append(heads[-1] + square)
    return heads, [heads[-1] - head for head in heads]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["flat", "linear", "graded", "steep", "deficient"])
@pytest.mark.parametrize("power", [0, 901, -400])
def test_energies_are_the_exact_fractions(size, kind, power):
    values = falling(size, kind)
    exact_heads, exact_tails = suffix_sums(values)
    whole = exact_heads[-1]
    stack = np.ldexp(values[np.newaxis], power)
    norms = np.ldexp([oracles.root(whole)], power)
    if power == -400:
        # Where multiplying has rounded them the exact values are other ones.
        exact_heads, exact_tails = suffix_sums(np.ldexp(stack[0], 400))
        whole = exact_heads[-1]
    heads, tails = np.full((1, size + 1), np.nan), np.full((1, size + 1), np.nan)
    energies.energies(stack, norms, True, np.arange(size + 1), heads, tails)
    exact = np.array([float(head / whole) for head in exact_heads])
    assert np.all(np.abs(heads[0] - exact) <= 2 * size * EPS * exact)
    exact = np.array([float(tail / whole) for tail in exact_tails])
    # Squares under 1e-307 lose digits, and under 1e-323 themselves.
    assert np.all(np.abs(tails[0] - exact) <= 2 * size * EPS * exact + 1e-306)
    assert heads[0, 0] == tails[0, -1] == 0
    assert heads[0, -1] == tails[0, 0] == 1
    assert np.all(np.diff(heads) >= 0)
    assert np.all(np.diff(tails) <= 0)


@pytest.mark.parametrize("size", SIZES)
def test_incomplete_energies_are_over_the_whole_norm(size):
    values = falling(size, "linear")
    norms = np.array([1.5 * np.linalg.norm(values)])
    heads, tails = np.empty((1, size + 1)), np.empty((1, size + 1))
    energies.energies(values[np.newaxis], norms, False, np.arange(size + 1), heads, tails)
    exact = np.concatenate([[0.0], np.cumsum(values**2)]) / norms[0] ** 2
    assert np.all(np.abs(heads[0] - exact) <= 4 * size * EPS)
    assert np.array_equal(tails, 1 - heads)


@both(energies.energies)
def test_energies_at_any_ranks_in_any_order(kernel):
    stack = np.stack([falling(70, "linear"), np.zeros(70), falling(70, "graded")])
    norms = np.array([np.linalg.norm(row) for row in stack])
    ranks = np.array([70, 0, 64, 3, 3, 200, 65])
    heads, tails = np.empty((3, ranks.size)), np.empty((3, ranks.size))
    kernel(stack, norms, True, ranks, heads, tails)
    for b in (0, 2):
        for j, rank in enumerate(ranks):
            assert heads[b, j] == pytest.approx(oracles.variance_captured(stack[b], rank), rel=1e-14)
            assert math.sqrt(tails[b, j]) == pytest.approx(oracles.error(stack[b], rank), rel=1e-14)
    assert not heads[1].any()
    assert not tails[1].any()


@both(energies.energies)
def test_energies_of_no_values(kernel):
    heads, tails = np.full((2, 1), np.nan), np.full((2, 1), np.nan)
    kernel(np.empty((2, 0)), np.array([0.0, 1.0]), False, np.array([0]), heads, tails)
    assert not heads.any()
    assert tails.tolist() == [[0.0], [1.0]]


@both(energies.error_sweep)
@pytest.mark.parametrize("largest", [16.0, 1e200])
def test_errors_by_the_formula(kernel, largest):
    stack = np.stack([falling(9, "linear"), np.zeros(9), falling(9, "deficient")])
    norms = np.array([np.linalg.norm(row) for row in stack])
    ranks = np.array([0, 1, 4, 9])
    scalings = np.array([[0.0, 1.0, 0.5, 1.0], [0.0, -2.0, largest, 1.0 + EPS]])
    errors, optimal = np.empty((3, 2, 4)), np.empty((3, 4))
    kernel(stack, norms, True, ranks, scalings, errors, optimal)
    for b in (0, 2):
        for j, rank in enumerate(ranks):
            assert optimal[b, j] == pytest.approx(oracles.error(stack[b], rank), rel=1e-14)
            for k in range(2):
                assert errors[b, k, j] == pytest.approx(oracles.error(stack[b], rank, scalings[k, j]), rel=1e-14)
    assert not errors[1].any()
    assert not optimal[1].any()


@both(learning._multiply)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 1, 1), (3, 4, 5), (5, 7, 3), (2, 0, 3), (6, 9, 1), (4, 3, 8), (9, 5, 37), (8, 3, 16), (4, 6, 32), (4, 3, 24)],
)
def test_products(kernel, m, k, n):
    X, Y, out = RNG.standard_normal((m, k)), RNG.standard_normal((k, n)), np.full((m, n), np.nan)
    kernel(X, Y, out)
    assert np.all(np.abs(out - X @ Y) <= 2 * (k + 1) * EPS * (np.abs(X) @ np.abs(Y)))


@both(learning._gram)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 3), (7, 5), (9, 2), (3, 6), (5, 16), (3, 48), (7, 21)])
def test_gram_matrices(kernel, m, n):
    X, out = RNG.standard_normal((m, n)), np.full((n, n), np.nan)
    kernel(X, out)
    assert np.all(np.abs(out - X.T @ X) <= 2 * (m + 1) * EPS * (np.abs(X).T @ np.abs(X)))
    assert np.array_equal(out, out.T)


@both(products.gram_matrices)
@pytest.mark.parametrize(
    ("length", "rank"), [(1, 1), (7, 3), (8, 8), (65, 9), (64, 16), (131, 24), (130, 17), (70, 32)]
)
def test_gram_matrices_of_float32_factors(kernel, length, rank):
    factors = RNG.standard_normal((3, length, rank), dtype=np.float32)
    exact = np.swapaxes(factors, 1, 2).astype(float) @ factors.astype(float)
    room = 2 * (length + 1) * EPS * (np.swapaxes(np.abs(factors), 1, 2).astype(float) @ np.abs(factors).astype(float))
    across = np.ascontiguousarray(np.swapaxes(factors, 1, 2))
    for held, of_rows in ((factors, False), (across, True)):
        grams, alone = np.full((3, rank, rank), np.nan), np.full((1, rank, rank), np.nan)
        kernel(held, of_rows, grams)
        assert np.all(np.abs(grams - exact) <= room)
        assert np.array_equal(grams, np.swapaxes(grams, 1, 2))
        kernel(held[1:2], of_rows, alone)
        assert np.array_equal(alone[0], grams[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of_rows", [False, True])
def test_a_gram_matrix_has_a_finite_diagonal_just_where_its_factor_is_finite(bad, of_rows):
    extreme = np.full((2, 70, 70), np.finfo(np.float32).max)
    extreme[1, 69, 3] = bad
    grams = np.empty((2, 70, 70))
    products.gram_matrices(extreme.astype(np.float32), of_rows, grams)
    finite = np.isfinite(np.diagonal(grams, axis1=1, axis2=2))
    assert finite[0].all()
    assert np.flatnonzero(~finite[1]).tolist() == [69 if of_rows else 3]


@both(products.balance)
def test_balanced_gram_matrices_share_the_size_of_each_component(kernel):
    B, A = RNG.standard_normal((2, 4, 9, 4))
    B *= np.exp2([0, 60, -90, 3])
    A *= np.exp2([0, -40, 95, 3])
    # Zero on one side, however large on the other; and a product that is small as a whole.
    A[1, :, 3], B[1, :, 3] = 0.0, 2.0**200 * B[1, :, 3]
    B[2, :, 2], A[2, :, 2] = 0.0, 2.0**200 * A[2, :, 2]
    B[3] *= 2.0**-60
    dead = [[], [3], [2], []]
    B_grams, A_grams = (np.swapaxes(X, 1, 2) @ X for X in (B, A))
    exponents, bounds = np.empty(4, np.int64), np.empty((4, 2))
    B_core, A_core = B_grams.copy(), A_grams.copy()
    kernel(B_core, A_core, exponents, bounds)
    for item in range(4):
        b, a = np.diagonal(B_core[item]), np.diagonal(A_core[item])
        lives = [i for i in range(4) if i not in dead[item]]
        assert np.all((b[lives] / a[lives] >= 1 / 16) & (b[lives] / a[lives] <= 16))
        assert 1 / 16 <= np.max(b * a) <= 16
        sizes = np.sqrt(np.diagonal(B_grams[item]) * np.diagonal(A_grams[item]))
        assert np.allclose(np.sqrt(b * a) * np.exp2(exponents[item]), sizes, rtol=1e-14)
        # A power of two for each row and column: the angles between columns stay to the bit but for rounding.
        for core, gram_ in ((B_core[item], B_grams[item]), (A_core[item], A_grams[item])):
            kept = np.ix_(lives, lives)
            roots = [np.sqrt(np.diagonal(X)[lives]) for X in (core, gram_)]
            assert np.allclose(core[kept] / np.outer(*[roots[0]] * 2), gram_[kept] / np.outer(*[roots[1]] * 2))
        for core in (B_core[item], A_core[item]):
            assert not core[dead[item]].any()
            assert not core[:, dead[item]].any()
        sides = (B_core[item], A_core[item])
        assert np.allclose(bounds[item], [np.max(np.sum(np.abs(X), axis=1)) for X in sides], rtol=1e-14)


@both(learning._inner)
def test_inner_products(kernel):
    X, Y = RNG.standard_normal((2, 5, 7))
    assert kernel(X, Y) == pytest.approx(np.sum(X * Y), abs=40 * EPS * np.sum(np.abs(X * Y)))


@both(learning._residual)
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_residuals_keep_the_digits_that_the_trace_form_loses(kernel, rows):
    m, n, r = 21, 17, 4
    B, A = RNG.standard_normal((m, r)), RNG.standard_normal((r, n))
    block, none = np.empty((rows, n)), np.empty((0, 0))
    near = 0.25 * B @ A + 1e-9 * RNG.standard_normal((m, n))
    exact = np.linalg.norm(0.25 * B @ A - near) ** 2
    assert kernel(np.empty(0), near, B, A, 0.25, block) == pytest.approx(exact, rel=1e-5)
    values = np.linspace(2.0, 1.0, n)
    target = np.zeros((m, n))
    target[:n] = np.diag(values)
    exact = np.linalg.norm(0.25 * B @ A - target) ** 2
    assert kernel(values, none, B, A, 0.25, block) == pytest.approx(exact, rel=1e-13)
    assert kernel(np.empty(0), np.array([[2.0]]), np.ones((1, 1)), np.ones((1, 1)), 0.5, np.empty((1, 1))) == 2.25


@both(learning._pull)
def test_pulls_towards_diagonal_and_dense_targets(kernel):
    X, out = RNG.standard_normal((5, 2)), np.full((7, 2), np.nan)
    kernel(np.array([3.0, 2.0, 1.0]), np.empty((0, 0)), X, out)
    assert np.array_equal(out[:3], np.array([[3.0], [2.0], [1.0]]) * X[:3])
    assert not out[3:].any()
    dense = RNG.standard_normal((7, 5))
    kernel(np.empty(0), dense, X, out)
    assert np.allclose(out, dense @ X, rtol=0, atol=1e-14)
    one = np.empty((1, 1))
    kernel(np.empty(0), np.array([[2.0]]), np.array([[3.0]]), one)
    assert one == 6.0


@both(learning._descend_adam)
def test_adams_first_steps(kernel):
    X, means, squares = np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3))
    gradient = np.array([[2.0, -1e-8, 0.0]])
    kernel(X, gradient, means, squares, 1, 0.1, 1e-8)
    # Corrected for their bias, both moments are the gradient's own: a step of the rate, but for ε.
    assert X[0] == pytest.approx([-0.1, 0.05, 0.0], rel=1e-7)
    assert means[0] == pytest.approx([0.2, -1e-9, 0.0], rel=1e-12)
    assert squares[0] == pytest.approx([0.004, 1e-19, 0.0], rel=1e-12)
    kernel(X, gradient, means, squares, 2, 0.1, 1e-8)
    assert X[0] == pytest.approx([-0.2, 0.1, 0.0], rel=1e-6)


@both(learning._power_of_two)
def test_powers_of_two(kernel):
    assert [kernel(e) for e in (0, 3, -1074, 1023, 1024, 4000)] == [1.0, 8.0, 5e-324, 2.0**1023, 2.0**1023, 2.0**1023]


def run(kernel, *, adam, dense, span=None, exponent=0, rate=0.01, ranks=(1, 3), steps=5):
    """Learn two updates under two rules with two repeats, by a kernel."""
    m, n = 5, 4
    rng = np.random.default_rng(3)
    initial = rng.standard_normal((2, n, max(ranks)))
    values = np.array([[3.0, 2.0, 1.0, 0.5], [1.0, 1.0, 0.0, 0.0]])
    matrices = np.zeros((2, m, n))
    matrices[:, range(n), range(n)] = values
    if dense:
        matrices = rng.standard_normal((2, m, n))
    scalings = np.array([[1.0, 0.5], [2.0, 0.25]])
    shape = (2, 2, len(ranks))
    out = np.zeros((*shape, steps + 1)), np.zeros((*shape, steps)), np.zeros((*shape, 2))
    diagonals = np.empty((2, 0)) if dense else values
    held = matrices if dense else np.empty((2, 0, 0))
    kernel(
        *(span or (0, 4 * len(ranks))), diagonals, held, np.ascontiguousarray(np.swapaxes(held, 1, 2)),
        np.full(2, exponent), initial, np.array(ranks), scalings, adam, rate, 1e-8, *out,
    )  # fmt: skip
    return matrices, initial, scalings, ranks, steps, out


@both(learning.learn)
@pytest.mark.parametrize(("adam", "dense"), [(False, False), (True, True), (False, True), (True, False)])
@pytest.mark.parametrize("exponent", [0, 2, -3])
def test_learning_is_the_dense_loop(kernel, adam, dense, exponent):
    matrices, initial, scalings, ranks, steps, out = run(kernel, adam=adam, dense=dense, exponent=exponent)
    curves, norms, finals = out
    for item, rule, at in np.ndindex(2, 2, len(ranks)):
        runs = [
            oracles.learn(
                np.ldexp(matrices[item], exponent), initial[repeat, :, : ranks[at]].T, scalings[rule, at],
                steps=steps, learning_rate=0.01, optimizer="adam" if adam else "sgd",
            )
            for repeat in range(2)
        ]  # fmt: skip
        curve, norm = (np.mean([part[i] for part in runs], axis=0) for i in (0, 1))
        assert np.allclose(curves[item, rule, at], curve, rtol=1e-10)
        assert np.allclose(norms[item, rule, at], norm, rtol=1e-9)
        assert np.allclose(finals[item, rule, at], [part[0][-1] for part in runs], rtol=1e-10)


@both(learning.learn)
def test_an_update_of_lower_rank_is_learnt_to_the_last_digits(kernel):
    values, initial = np.array([[2.0, 0.0, 0.0, 0.0]]), np.random.default_rng(5).standard_normal((1, 4, 2))
    out = np.zeros((1, 1, 1, 301)), np.zeros((1, 1, 1, 300)), np.zeros((1, 1, 1, 1))
    none = np.empty((1, 0, 0))
    kernel(
        0, 1, values, none, none, np.zeros(1, np.int64), initial, np.array([2]), np.ones((1, 1)), False, 0.1, 0.0, *out
    )
    curve, _ = oracles.learn(np.diag(values[0]), initial[0].T, 1.0, steps=300, learning_rate=0.1)
    # Below 0.01 the trace form would cancel: the residual is formed in rows of A, which are longer than its rank.
    assert curve[-1] < 1e-10
    sure = curve > 1e-12
    assert np.allclose(out[0][0, 0, 0, sure], curve[sure], rtol=1e-3)


@both(learning.learn)
def test_a_zero_update_stops_no_other(kernel):
    values, initial = np.array([[0.0, 0.0], [2.0, 1.0]]), np.random.default_rng(6).standard_normal((1, 2, 1))
    curves, norms, finals = np.zeros((2, 1, 1, 4)), np.zeros((2, 1, 1, 3)), np.zeros((2, 1, 1, 1))
    none, one = np.empty((2, 0, 0)), np.ones((1, 1))
    kernel(
        0, 2, values, none, none, np.zeros(2, np.int64), initial, np.array([1]), one, False, 0.1, 0.0,
        curves, norms, finals,
    )  # fmt: skip
    curve, _ = oracles.learn(np.diag(values[1]), initial[0].T, 1.0, steps=3, learning_rate=0.1)
    assert np.allclose(curves[1, 0, 0], curve, rtol=1e-12)
    assert not curves[0].any()


def test_settings_can_be_cut_anywhere():
    whole = run(learning.learn, adam=False, dense=False)[-1]
    parts = [run(learning.learn, adam=False, dense=False, span=span)[-1] for span in ((0, 3), (3, 8))]
    for all_of_it, first, second in zip(whole, *parts, strict=True):
        assert np.array_equal(all_of_it, first + second)
        assert not np.any((first != 0) & (second != 0))


@both(learning.learn)
def test_a_run_that_diverges_is_inf_from_there_on(kernel):
    with np.errstate(all="ignore"):
        curves, norms, finals = run(kernel, adam=False, dense=False, rate=1e3, steps=40)[-1]
    assert np.all(np.isposinf(finals))
    for curve, norm in zip(curves.reshape(-1, 41), norms.reshape(-1, 40), strict=True):
        first = np.flatnonzero(np.isinf(curve))[0]
        assert first > 0
        assert np.all(np.isfinite(curve[:first]))
        assert np.all(np.isinf(curve[first:]))
        assert np.all(np.isinf(norm[first:]))


KINDS = {
    "zero": np.zeros,
    "equal": np.ones,
    "clustered": lambda p: 1 + 1e-12 * np.arange(p),
    "close": lambda p: np.linspace(1.0, 1.001, p),
    "repeated": lambda p: 1.0 + np.arange(p) % 3,
    "graded": lambda p: np.exp2(-np.linspace(0, 1000, p)),
    "deficient": lambda p: 1.0 * (np.arange(p) < (p + 1) // 3),
    "one above noise": lambda p: np.where(np.arange(p), 1e-9, 1.0),
    "drawn": lambda p: np.random.default_rng(p).random(p),
}


def with_values(count, m, n, values):
    rng = np.random.default_rng([m, n])
    left, right = (np.linalg.qr(rng.standard_normal((count, side, min(m, n))))[0] for side in (m, n))
    return np.ascontiguousarray(left * values @ np.swapaxes(right, 1, 2))


def small_values(matrices, kernel=small.small_values):
    values = np.empty((len(matrices), min(matrices.shape[1:])))
    exponents = np.empty(len(matrices), np.int64)
    assert kernel(matrices, values, exponents) == 0
    return values, exponents


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (2, 2), (2, 3), (3, 2), (5, 17), (17, 5), (16, 16), (33, 31)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0, -1060, 1000])
def test_small_values_are_lapacks(shape, kind, power):
    matrices = np.ldexp(with_values(3, *shape, KINDS[kind](min(shape))), power)
    values, exponents = small_values(matrices)
    back = 1060 if power < 0 else -power  # where LAPACK loses no digit
    exact = np.linalg.svd(np.ldexp(matrices, back), compute_uv=False)
    found = np.ldexp(values, exponents[:, np.newaxis] + back)
    assert np.all(np.diff(found) <= 0)
    assert np.all(np.abs(found - exact) <= 4 * max(shape) * EPS * exact[:, :1])


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(20), np.eye(20, k=1), np.eye(20)[::-1].copy(), np.ones((20, 20)), np.tri(20), np.tri(20) - np.eye(20),
        np.diag(np.arange(20.0)), np.kron(np.eye(5), np.ones((4, 4))), np.diag([1.0, 1e-200, 5e-324]),
        np.full((20, 20), -1e300),
    ],
)  # fmt: skip
def test_small_values_of_matrices_with_structure(matrix):
    values, exponents = small_values(matrix[np.newaxis])
    exact = np.linalg.svd(matrix, compute_uv=False)
    assert np.all(np.abs(np.ldexp(values[0], exponents[0]) - exact) <= 20 * EPS * exact[0])


@pytest.mark.parametrize("n", [1, 5, 8, 33])
def test_what_the_other_lanes_hold_changes_no_bit(n):
    # Lanes that split, fail, finish early or have nothing to do, beside ordinary ones.
    matrices = np.concatenate([with_values(3, n, n, kind(n)) for kind in KINDS.values()])
    values, exponents = small_values(matrices)
    order = np.random.default_rng(0).permutation(len(matrices))
    for chosen in ([i] for i in range(len(matrices))), [order], [order[:5]]:
        for part in chosen:
            again = small_values(matrices[part])
            assert np.array_equal(again[0], values[part])
            assert np.array_equal(again[1], exponents[part])


def test_small_values_as_plain_python():
    matrices = np.concatenate([with_values(1, 4, 6, kind(4)) for kind in KINDS.values()])
    found = [
        np.ldexp(v, e[:, np.newaxis])
        for v, e in (small_values(matrices), small_values(matrices, plain(small.small_values)))
    ]
    assert np.allclose(*found, rtol=0, atol=1e-15 * found[0].max())


def test_small_matrices_that_do_not_converge_are_left_at_nan(monkeypatch):
    # No step allowed: a diagonal matrix needs none.
    monkeypatch.setattr(dqds, "NBIG", 0)
    monkeypatch.setattr(small, "dqds", plain(dqds.dqds))
    matrices = np.stack([np.diag([1.0, 3.0, 2.0]), with_values(1, 3, 3, KINDS["drawn"](3))[0]])
    values, exponents = np.empty((2, 3)), np.empty(2, np.int64)
    assert plain(small.small_values)(matrices, values, exponents) == 1
    assert np.allclose(np.ldexp(values[0], exponents[0]), [3.0, 2.0, 1.0], rtol=4 * EPS)
    assert np.isnan(values[1, 0])


def gram_values(grams, reduce=gram.tridiagonals, solve=gram.tridiagonal_values):
    diagonals, squares, values = (np.empty(grams.shape[:2]) for _ in range(3))
    exponents = np.empty(len(grams), np.int64)
    reduce(grams, diagonals, squares, exponents)
    assert solve(diagonals, squares, values) == 0
    return np.ldexp(values, exponents[:, np.newaxis])


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 33, 70])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0, -150, 250])
def test_roots_of_a_gram_matrix_are_within_float32s_rounding(n, kind, power):
    matrices = with_values(3, n + 3, n, KINDS[kind](n))
    values = gram_values(np.ldexp(np.swapaxes(matrices, 1, 2) @ matrices, 2 * power))
    exact = np.linalg.svd(matrices, compute_uv=False)
    assert np.all(np.diff(values) <= 0)
    # A square is known to a few ulp of the largest: √(4 · 2⁻⁵²) where σ is zero, an ulp or two where it is not.
    room = np.minimum(2.0**-24, 8 * max(n, 4) * EPS / np.maximum(exact / exact[:, :1].clip(1e-300), 1e-300))
    assert np.all(np.abs(np.ldexp(values, -power) - exact) <= room * exact[:, :1])


def test_tridiagonal_matrices_are_similar_to_what_they_came_from():
    grams = with_values(2, 30, 21, KINDS["drawn"](21))
    grams = np.ascontiguousarray(np.swapaxes(grams, 1, 2) @ grams)
    for reduce in (gram.tridiagonals, plain(gram.tridiagonals)):
        diagonals, squares, exponents = np.empty((2, 21)), np.empty((2, 21)), np.empty(2, np.int64)
        reduce(grams, diagonals, squares, exponents)
        for matrix, diagonal, square in zip(
            np.ldexp(grams, -2 * exponents[:, None, None]), diagonals, squares, strict=True
        ):
            beside = np.sqrt(square[:-1])
            three = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
            assert np.allclose(np.linalg.eigvalsh(three), np.linalg.eigvalsh(matrix), rtol=0, atol=100 * EPS)


def test_what_stands_beside_a_gram_matrix_changes_no_bit():
    matrices = np.concatenate([with_values(2, 11, 9, kind(9)) for kind in KINDS.values()])
    grams = np.ascontiguousarray(np.swapaxes(matrices, 1, 2) @ matrices)
    values = gram_values(grams)
    for i in range(len(grams)):
        assert np.array_equal(gram_values(grams[i : i + 1])[0], values[i])


def test_tridiagonal_values_do_not_depend_on_size():
    matrices = with_values(9, 12, 10, KINDS["drawn"](10))
    diagonals, squares, exponents = np.empty((9, 10)), np.empty((9, 10)), np.empty(9, np.int64)
    gram.tridiagonals(np.ascontiguousarray(np.swapaxes(matrices, 1, 2) @ matrices), diagonals, squares, exponents)
    found = []
    for power in (0, -100, 100):
        values = np.empty((9, 10))
        assert gram.tridiagonal_values(np.ldexp(diagonals, 2 * power), np.ldexp(squares, 4 * power), values) == 0
        found.append(np.ldexp(values, -power))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_a_matrix_that_is_no_gram_matrix_is_left_at_nan():
    diagonals, squares = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]), np.zeros((2, 3))
    for solve in (gram.tridiagonal_values, plain(gram.tridiagonal_values)):
        values = np.empty((2, 3))
        assert solve(diagonals, squares, values) == 1
        assert np.allclose(values[0], 1.0, rtol=EPS)
        assert np.isnan(values[1, 0])


def test_lanes_that_reach_the_limit_of_steps_are_told_from_those_that_are_done(monkeypatch):
    # Two entries that hang together in all lanes but the first, and no step allowed; 2 × 2 blocks need none.
    monkeypatch.setattr(dqds, "NBIG", 0)
    q, e, state = np.ones(4 * simd.WIDTH), np.zeros(4 * simd.WIDTH), np.full(dqds.STATE, np.nan)
    e[1 : simd.WIDTH] = e[simd.WIDTH + 1 : 2 * simd.WIDTH] = 1.0
    plain(dqds.dqds)(3, q, e, np.empty_like(q), np.empty_like(q), np.empty_like(q), state, 0.0)
    assert state[dqds.N0 : dqds.N0 + simd.WIDTH].tolist() == [-1] + [2] * 7


def test_every_kernel_is_compiled_for_one_set_of_types(tmp_path):
    code = """
import numpy as np, lowrank_core as lc
stack = np.random.default_rng(0).standard_normal((3, 9, 8))
frozen_stack = stack.copy(); frozen_stack.flags.writeable = False
lc.spectrum(stack.astype(int)), lc.spectrum(stack, method="gram"), lc.spectrum(stack[:1], method="gram")
lc.spectrum(frozen_stack), lc.spectrum(stack[:, ::2, ::-1])
for update in (stack, stack.astype("f4"), stack[0], stack[:0], np.asfortranarray(stack), lc.truncate(stack, 2)):
    of = lc.spectrum(update)
    frozen = np.array([1, 2]); frozen.flags.writeable = False
    for ranks in (None, [1], 1, frozen, [], np.array([[1], [2]])):
        lc.variance_captured(of, ranks), lc.reconstruction_error(of, ranks)
    lc.error_sweep(of, frozen), lc.error_sweep(of, None, alpha=[1.0, 2.0]), lc.rank_for_variance(of, 0.5)
    for optimizer in ("sgd", "adam"):
        lc.learning_sweep(update, [1, 2], steps=2, optimizer=optimizer)
    lc.learning_sweep(of, None, steps=2)
import pkgutil, importlib, lowrank_core._linalg.kernels
for module in pkgutil.iter_modules(lowrank_core._linalg.kernels.__path__):
    for name, kernel in vars(importlib.import_module("lowrank_core._linalg.kernels." + module.name)).items():
        if hasattr(kernel, "signatures"):
            print(module.name + "." + name, len(kernel.signatures))
"""
    # A kernel that is found in a cache brings none of those that it calls with it.
    env = os.environ | {"NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    counts = dict(line.split() for line in found.stdout.splitlines())
    assert {
        "energies.energies",
        "energies.error_sweep",
        "learning.learn",
        "small.small_values",
        "gram.tridiagonals",
        "products.gram_matrices",
    } <= set(counts)
    # A row with the bounds of blocks, and one without.
    assert {name for name, count in counts.items() if count not in {"0", "1"}} <= {"dqds._row"}


def test_without_compilation_answers_are_the_same_up_to_rounding():
    code = """
import sys, numpy as np, lowrank_core as lc
of = lc.Spectrum(v := np.linspace(3, .5, 300), np.linalg.norm(v), (300, 310), complete=True)
update = np.random.default_rng(0).standard_normal((6, 5))
answers = [
    lc.variance_captured(of), lc.error_sweep(of, [0, 1, 64, 257, 300]).errors,
    lc.learning_sweep(update, [0, 2, 5], steps=6, repeats=2).curves,
    lc.learning_sweep(update, [0, 2, 5], steps=6, optimizer="adam").curves,
]
sys.stdout.buffer.write(np.concatenate([a.ravel() for a in answers]).tobytes())
"""
    found = []
    for disabled in ("0", "1"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env=os.environ | {"NUMBA_DISABLE_JIT": disabled},
        )
        found.append(np.frombuffer(ran.stdout))
    assert found[0].size == 301 + 10 + 2 * 2 * 3 * 7
    assert np.allclose(*found, rtol=1e-10, atol=0)


def test_kernels_work_where_no_cache_can_be_written(tmp_path):
    package = tmp_path / "lowrank_core"
    shutil.copytree(Path(lowrank_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    nowhere = tmp_path / "a file, not a folder"
    nowhere.touch()
    code = """
import sys, lowrank_core as lc, numba.core.caching as caching
# As where neither the package's folder nor the user's can be written, for a user who may write anywhere too.
for locator in caching.CacheImpl._locator_classes:
    locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
print(lc.__file__, lc.error_sweep(lc.Spectrum([4.0, 3.0], 5.0, (2, 2), True), [1]).optimal[0])
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path), "HOME": str(nowhere), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=tmp_path
    )
    assert ran.stdout.split() == [str(package / "__init__.py"), "0.6"]
    assert not list(package.rglob("__pycache__"))


def test_a_kernel_is_compiled_without_a_cache_where_numba_finds_no_folder_for_it(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if "cache" in options:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: ("compiled", function)

    monkeypatch.setattr(compiling.numba, "njit", njit)
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "no_cfunc_wrapper": True}
    assert compiling.kernel(plain) == ("compiled", plain)
    assert asked == [{"cache": True} | options, options]


def test_a_helper_is_kept_on_disk_with_the_kernels_that_call_it_and_not_beside_them(tmp_path):
    code = "import lowrank_core as lc; lc.learning_sweep([[2.0, 1.0], [0.0, 1.0]], [1], steps=1)"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    kept = {index.name.split("-")[0] for index in tmp_path.rglob("*.nbi")}
    assert "learning.learn" in kept
    assert not {name for name in kept if name.split(".")[-1].startswith("_")}


def test_an_uncompiled_kernel_is_silent(monkeypatch):
    monkeypatch.setattr(compiling.numba, "njit", lambda **_: lambda function: function)
    assert compiling.kernel(lambda x: x * x)(np.float64(1e200)) == np.inf


@both(products.balance)
def test_balanced_products_are_over_the_floor_of_half_their_exponents(kernel):
    small_and_one = np.array([2.0**-8, 1.0, 0.0]).reshape(3, 1, 1), np.array([1.0, 2.0**-8, 1.0]).reshape(3, 1, 1)
    exponents = np.empty(3, np.int64)
    kernel(*small_and_one, exponents, np.empty((3, 2)))
    assert exponents.tolist() == [-4, -4, 0]
