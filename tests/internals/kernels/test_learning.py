"""Gradient descent on factors against a plain loop over dense matrices, and each of its products."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import learning
from tests import oracles
from tests.compiled import both

EPS = 2.0**-52
RNG = np.random.default_rng(0)


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


@both(learning._descend)
def test_adams_first_steps(kernel):
    X, means, squares = np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3))
    gradient = np.array([[2.0, -1e-8, 0.0]])
    kernel(X, gradient, means, squares, True, 1, 0.1, 1e-8)
    # Corrected for their bias, both moments are the gradient's own: a step of the rate, but for ε.
    assert X[0] == pytest.approx([-0.1, 0.05, 0.0], rel=1e-7)
    assert means[0] == pytest.approx([0.2, -1e-9, 0.0], rel=1e-12)
    assert squares[0] == pytest.approx([0.004, 1e-19, 0.0], rel=1e-12)
    kernel(X, gradient, means, squares, True, 2, 0.1, 1e-8)
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
    updates = diagonals, held, np.ascontiguousarray(np.swapaxes(held, 1, 2)), np.full(2, exponent)
    kernel(*(span or (0, 4 * len(ranks))), updates, initial, np.array(ranks), scalings, (adam, rate, 1e-8), out)
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
    updates = values, none, none, np.zeros(1, np.int64)
    kernel(0, 1, updates, initial, np.array([2]), np.ones((1, 1)), (False, 0.1, 0.0), out)
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
    updates = values, none, none, np.zeros(2, np.int64)
    kernel(0, 2, updates, initial, np.array([1]), one, (False, 0.1, 0.0), (curves, norms, finals))
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
