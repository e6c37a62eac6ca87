"""Learning an update by descent on its factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.simd import TILE_COLUMNS, broadcast, fma, load, load_column, store_rows

__all__ = ["learn"]

# Below this squared relative error the trace form has lost more than four of its sixteen digits to cancellation, and
# the residual itself is formed instead.
RESIDUAL_BELOW = 1e-4

# A stride that the compiler does not know: for a literal 1, Numba would compile what it is given to once more.
ONE: Any = np.int64(1)

# The part of a product that is computed at a time; more rows of AVX-512's tile would leave more of a narrow product.
ROWS, COLUMNS = 4, 16


@kernel
def _tile(
    X: Floats, x: int, across: int, along: int, Y: Floats, y: int, columns: int, inner: int, out: Floats, at: int
) -> None:
    """Fill ROWS rows and COLUMNS columns of a product, where entry (i, k) of X's rows is at x + i·across + k·along."""
    for column in range(0, COLUMNS, TILE_COLUMNS):
        tile = broadcast(0.0, TILE_COLUMNS, ROWS)
        for k in range(inner):
            row = load(Y, y + k * columns + column, TILE_COLUMNS)
            tile = fma(load_column(X, x + k * along, across, ROWS), row, tile)
        store_rows(out, at + column, columns, tile)


@kernel
def _product(X: Floats, across: int, along: int, Y: Floats, rows: int, inner: int, columns: int, out: Floats) -> None:
    """Fill out (rows, columns), flattened, with X Y, where entry (i, k) of X is at i·across + k·along."""
    tall, wide = rows - rows % ROWS, columns - columns % COLUMNS
    for i in range(0, tall, ROWS):
        for j in range(0, wide, COLUMNS):
            _tile(X, i * across, across, along, Y, j, columns, inner, out, i * columns + j)
    for i in range(rows):
        # What tiles do not cover, four rows of Y at a time: a pass over a row of `out` does four fused steps, not one.
        start = wide if i < tall else 0
        for j in range(start, columns):
            out[i * columns + j] = 0.0
        whole = inner - inner % 4
        for k in range(0, whole, 4):
            at, y = i * across + k * along, k * columns
            a0, a1, a2, a3 = X[at], X[at + along], X[at + 2 * along], X[at + 3 * along]
            for j in range(start, columns):
                out[i * columns + j] += (
                    a0 * Y[y + j] + a1 * Y[y + columns + j] + a2 * Y[y + 2 * columns + j] + a3 * Y[y + 3 * columns + j]
                )
        for k in range(whole, inner):
            a0, y = X[i * across + k * along], k * columns
            for j in range(start, columns):
                out[i * columns + j] += a0 * Y[y + j]


@kernel
def _multiply(X: Floats, Y: Floats, out: Floats) -> None:
    """Fill the first rows of out with X @ Y."""
    rows, inner = X.shape
    columns = Y.shape[1]
    _product(X.reshape(X.size), inner, ONE, Y.reshape(Y.size), rows, inner, columns, out.reshape(out.size))


@kernel
def _gram(X: Floats, out: Floats) -> None:
    """Fill out = Xᵀ X: where tiles cover it, those on and above the diagonal; then the mirror image."""
    rows, columns = X.shape
    flat, filled = X.reshape(X.size), out.reshape(out.size)
    if columns % COLUMNS == 0:
        for i in range(0, columns, ROWS):
            for j in range(i - i % COLUMNS, columns, COLUMNS):
                _tile(flat, i, ONE, columns, flat, j, columns, rows, filled, i * columns + j)
    else:
        _product(flat, ONE, columns, flat, columns, rows, columns, filled)
    for i in range(columns):
        for j in range(i):
            out[i, j] = out[j, i]


@kernel
def _inner(X: Floats, Y: Floats) -> float:
    """Sum of the products of the entries, row by row."""
    total = 0.0
    for i in range(X.shape[0]):
        row = 0.0
        for j in range(X.shape[1]):
            row += X[i, j] * Y[i, j]
        total += row
    return total


@kernel
def _pull(diagonal: Floats, dense: Floats, X: Floats, out: Floats) -> None:
    """Fill out = Δ @ X, for Δ dense or, where `dense` is empty, diagonal."""
    if dense.size > 0:
        _multiply(dense, X, out)
        return
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = diagonal[i] * X[i, j] if i < diagonal.size else 0.0


@kernel
def _residual(diagonal: Floats, dense: Floats, B: Floats, A_rows: Floats, weight: float, block: Floats) -> float:
    """‖weight · B A − Δ‖², in blocks of rows."""
    total = 0.0
    for start in range(0, B.shape[0], block.shape[0]):
        stop = min(start + block.shape[0], B.shape[0])
        _multiply(B[start:stop], A_rows, block)
        for i in range(start, stop):
            row = 0.0
            for j in range(A_rows.shape[1]):
                target = 0.0
                if dense.size > 0:
                    target = dense[i, j]
                elif i == j:
                    target = diagonal[i]
                difference = weight * block[i - start, j] - target
                row += difference * difference
            total += row
    return total


@kernel
def _gradient(X: Floats, gram: Floats, pull: Floats, gamma: float, weight: float, out: Floats) -> float:
    """Fill a factor's gradient γ(weight·X·gram − pull), from the other factor's Gram matrix; return its norm."""
    _multiply(X, gram, out)
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            out[i, j] = gamma * (weight * out[i, j] - pull[i, j])
    return math.sqrt(_inner(out, out))


@kernel
def _descend(
    X: Floats, gradient: Floats, means: Floats, squares: Floats, adam: bool, step: int, rate: float, epsilon: float
) -> None:
    """Take a step of gradient descent, or of Adam, β 0.9 and 0.999 (Kingma and Ba, arXiv:1412.6980, algorithm 1)."""
    mean_bias, square_bias = 1.0 - 0.9**step, 1.0 - 0.999**step
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            g = gradient[i, j]
            if not adam:
                X[i, j] -= rate * g
                continue
            means[i, j] = mean = 0.9 * means[i, j] + 0.1 * g
            squares[i, j] = square = 0.999 * squares[i, j] + 0.001 * (g * g)
            X[i, j] -= rate * (mean / mean_bias) / (math.sqrt(square / square_bias) + epsilon)


@kernel
def _energy(values: Floats) -> float:
    """Return the sum of squares of a descending row, from the small end."""
    total = 0.0
    for i in range(values.size - 1, -1, -1):
        total += values[i] * values[i]
    return total


@kernel
def _power_of_two(exponent: int) -> float:
    # Clipped where float64 ends: a factor that large has diverged whatever its last digits.
    return math.ldexp(1.0, int(min(exponent, 1023)))


@kernel
def _learn_once(target: Any, A: Floats, B: Floats, gamma: float, descent: Any, curve: Floats, norms: Floats) -> None:
    """Run once from the A and B given; fill the relative errors and the gradient norms, inf from where it diverged.

    Δ is over 2^e, so that updates of 1e±200 stay in range, and B over 2^c: gradient descent takes B to the size of Δ,
    c = e; Adam by about the rate whatever Δ, c = e only where Δ is the smaller. B's gradient is then over 2^e, and A's
    over 2^(e + c). Adam does not see the scale of a gradient; only its ε does.
    """
    diagonal, dense, transposed, total, exponent = target
    adam, learning_rate, epsilon = descent
    rank, columns = A.shape[1], A.shape[0]
    A_gradient, A_pull, A_means, A_squares = np.empty_like(A), np.empty_like(A), np.zeros_like(A), np.zeros_like(A)
    B_gradient, B_pull, B_means, B_squares = np.empty_like(B), np.empty_like(B), np.zeros_like(B), np.zeros_like(B)
    A_gram, B_gram = np.empty((rank, rank)), np.empty((rank, rank))
    A_rows, block = np.empty((rank, columns)), np.empty((16, columns))
    of_B = min(exponent, 0) if adam else exponent
    B_unit, A_unit = _power_of_two(exponent), _power_of_two(exponent + of_B)
    weight = gamma * _power_of_two(of_B - exponent)
    B_rate = learning_rate * (_power_of_two(-of_B) if adam else 1.0)
    A_rate = learning_rate * (1.0 if adam else A_unit)
    B_epsilon, A_epsilon = epsilon * _power_of_two(-exponent), epsilon * _power_of_two(-exponent - of_B)
    for t in range(curve.size):  # pragma: no branch - the last error returns
        _gram(A, A_gram)
        _gram(B, B_gram)
        _pull(diagonal, dense, A, B_pull)
        squared = (weight * weight * _inner(A_gram, B_gram) - 2.0 * weight * _inner(B, B_pull)) / total + 1.0
        if squared < RESIDUAL_BELOW:
            A_rows[:, :] = A.T
            squared = _residual(diagonal, dense, B, A_rows, weight, block) / total
        if not squared < math.inf:
            curve[t:] = norms[t:] = math.inf
            return
        curve[t] = math.sqrt(squared)
        if t == norms.size:
            return
        _pull(diagonal, transposed, B, A_pull)
        B_norm = _gradient(B, A_gram, B_pull, gamma, weight, B_gradient)
        A_norm = _gradient(A, B_gram, A_pull, gamma, weight, A_gradient)
        norms[t] = math.hypot(B_unit * B_norm, A_unit * A_norm)
        _descend(B, B_gradient, B_means, B_squares, adam, t + 1, B_rate, B_epsilon)
        _descend(A, A_gradient, A_means, A_squares, adam, t + 1, A_rate, A_epsilon)


@kernel
def learn(
    first: int, last: int, updates: Any, initial: Floats, ranks: Integers, scalings: Floats, descent: Any, results: Any
) -> None:
    """Learn Δ by descent on ½‖γBA − Δ‖² from B = 0, for the settings first … last − 1, with all their repeats.

    A setting is (rank, batch item, rule), flattened in that order. ``updates`` are diagonals (batch, p) in their
    singular bases, or empty; dense (batch, m, n) and transposed (batch, n, m), or empty; and the exponents (batch,) of
    the powers of two that they are over, so that squares are in range. ``initial`` (repeats, n, largest rank) is the
    first A, transposed; scalings are (rules, ranks); ``descent`` is whether by Adam, the rate, and Adam's ε. Of shape
    (batch, rules, ranks, …) and zero on entry, ``results`` are mean relative errors (steps + 1), mean norms of both
    gradients (steps), and each repeat's last error (repeats).
    """
    (diagonals, dense, transposed, exponents), (curves, gradient_norms, finals) = updates, results
    rules, repeats, steps = scalings.shape[0], initial.shape[0], gradient_norms.shape[3]
    batch, rows = diagonals.shape[0], max(diagonals.shape[1], dense.shape[1])
    curve, norms = np.empty(steps + 1), np.empty(steps)
    for setting in range(first, last):
        rule, item, at = setting % rules, (setting // rules) % batch, setting // (rules * batch)
        total = _energy(diagonals[item]) + _inner(dense[item], dense[item])
        if total == 0.0:
            continue  # A zero update is learnt before the first step: error and gradients stay 0.
        target = diagonals[item], dense[item], transposed[item], total, exponents[item]
        for repeat in range(repeats):
            A, B = initial[repeat, :, : ranks[at]].copy(), np.zeros((rows, ranks[at]))
            _learn_once(target, A, B, scalings[rule, at], descent, curve, norms)
            curves[item, rule, at] += curve / repeats
            gradient_norms[item, rule, at] += norms / repeats
            finals[item, rule, at, repeat] = curve[steps]
