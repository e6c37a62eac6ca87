"""Naive, readable versions of what the library computes: slow, and with nothing clever that could be wrong.

Numbers are exact fractions, mpmath's at 50 digits, or float64; a function here never calls the library.
"""

from contextlib import suppress
from fractions import Fraction

import mpmath
import numpy as np

mpmath.mp.dps = 50


def _exact(matrix):
    return mpmath.matrix(np.asarray(matrix, dtype=np.float64).tolist())


def _values(matrix):
    """Singular values of mpmath's matrix, rounded to float64; of some, mpmath finds none without a few digits more."""
    for digits in (50, 60, 80):
        with suppress(RuntimeError), mpmath.workdps(digits):
            return np.array([float(value) for value in mpmath.svd_r(matrix, compute_uv=False)])
    raise RuntimeError("mpmath finds no singular values")


def singular_values(matrix):
    """Singular values, descending, to 50 digits and then rounded to float64."""
    return _values(_exact(matrix))


def product_singular_values(B, A, scaling=1.0):
    """The min(r, m, n) leading singular values of scaling · B @ A, with the product itself formed to 50 digits."""
    product = mpmath.mpf(scaling) * _exact(B) * _exact(A)
    return _values(product)[: np.shape(B)[1]]


def kronecker_singular_values(left, right, scaling=1.0):
    """All singular values of scaling · (L ⊗ R), formed to 50 digits; a side is its factors: [matrix], or [γB, A]."""
    L, R = (_exact(side[0]) if len(side) == 1 else _exact(side[0]) * _exact(side[1]) for side in (left, right))
    product = mpmath.matrix(L.rows * R.rows, L.cols * R.cols)
    for i, j in np.ndindex(product.rows, product.cols):
        product[i, j] = mpmath.mpf(scaling) * L[i // R.rows, j // R.cols] * R[i % R.rows, j % R.cols]
    return _values(product)


def norm(matrix):
    """Frobenius norm to 50 digits, rounded to float64."""
    squares = [mpmath.mpf(float(entry)) ** 2 for entry in np.asarray(matrix, dtype=np.float64).ravel()]
    return float(mpmath.sqrt(mpmath.fsum(squares)))


def head(values, rank):
    """H_r, exactly."""
    return sum((Fraction(float(value)) ** 2 for value in values[:rank]), Fraction(0))


def tail(values, rank):
    """T_r of a complete spectrum, exactly."""
    return sum((Fraction(float(value)) ** 2 for value in values[rank:]), Fraction(0))


def root(fraction):
    """Square root of a fraction, rounded to float64."""
    return float(mpmath.sqrt(mpmath.mpf(fraction.numerator) / mpmath.mpf(fraction.denominator)))


def variance_captured(values, rank):
    """H_r / N²."""
    return float(head(values, rank) / head(values, len(values)))


def error(values, rank, scaling=1.0):
    """√((1 − γ)² H_r + T_r) / N."""
    lost = (1 - Fraction(float(scaling))) ** 2 * head(values, rank) + tail(values, rank)
    return root(lost / head(values, len(values)))


def dense_error(update, rank, scaling=1.0):
    """The same error the long way: an SVD, the product of its leading part times γ, and the norm of the difference."""
    U, values, Vt = np.linalg.svd(update, full_matrices=False)
    approximation = scaling * (U[:, :rank] * values[:rank]) @ Vt[:rank]
    return np.linalg.norm(update - approximation) / np.linalg.norm(update)


def rank_for_variance(values, fraction):
    """Least r with H_r ≥ t N², and at least 1."""
    wanted = Fraction(float(fraction)) * head(values, len(values))
    return max(1, next(rank for rank in range(len(values) + 1) if head(values, rank) >= wanted))


def rank_for_error(values, relative):
    """Least r with T_r ≤ e² N², and at least 1."""
    allowed = Fraction(float(relative)) ** 2 * head(values, len(values))
    return max(1, next(rank for rank in range(len(values) + 1) if tail(values, rank) <= allowed))


def rank_for_ratio(values, ratio):
    """The number of values of at least ρ σ₁."""
    least = Fraction(float(ratio)) * Fraction(float(values[0]))
    return sum(Fraction(float(value)) >= least for value in values)


def effective_rank(values):
    """Exponential of the entropy of σ / Σσ, with 0 ln 0 = 0."""
    exact = [mpmath.mpf(float(value)) for value in values if value > 0]
    shares = [value / mpmath.fsum(exact) for value in exact]
    return float(mpmath.exp(-mpmath.fsum(share * mpmath.log(share) for share in shares)))


def stable_rank(values):
    """N² / σ₁²."""
    return float(head(values, len(values)) / Fraction(float(values[0])) ** 2)


def starting_factor(seed, repeat, rank, columns, variance):
    """The starting A of a run: the first rows of what the repeat's own stream draws."""
    stream = np.random.default_rng(seed).spawn(repeat + 1)[repeat]
    return np.sqrt(variance) * stream.standard_normal((rank, columns))


def learn(update, A, gamma, *, steps, learning_rate, optimizer="sgd"):
    """Descend on ½‖γBA − Δ‖² from B = 0: the relative error before and after each step, and the gradients' norms."""
    update = np.asarray(update, dtype=np.float64)
    B = np.zeros((len(update), len(A)))
    curve, norms = [], []
    moments = [[np.zeros_like(X), np.zeros_like(X)] for X in (B, A)]
    for step in range(1, steps + 2):
        residual = gamma * B @ A - update
        curve.append(np.linalg.norm(residual) / np.linalg.norm(update))
        if step > steps:
            return np.array(curve), np.array(norms)
        gradients = gamma * residual @ A.T, gamma * B.T @ residual
        norms.append(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients)))
        directions = list(gradients)
        if optimizer == "adam":
            for i, gradient in enumerate(gradients):
                moments[i][0] = 0.9 * moments[i][0] + 0.1 * gradient
                moments[i][1] = 0.999 * moments[i][1] + 0.001 * gradient**2
                mean, square = moments[i][0] / (1 - 0.9**step), moments[i][1] / (1 - 0.999**step)
                directions[i] = mean / (np.sqrt(square) + 1e-8)
        B, A = B - learning_rate * directions[0], A - learning_rate * directions[1]
    raise AssertionError("the loop returns")


def every_allocation(layers, objective):
    """Parameters and variance kept of every choice of ranks for spectra of a few values."""
    whole = sum(np.sum(of.values**2) for of in layers.values())
    parameters, kept = np.zeros(1), np.zeros(1)
    for of in layers.values():
        ranks = np.arange(len(of.values) + 1)
        total = whole if objective == "absolute" else len(layers) * np.sum(of.values**2)
        gains = np.array([np.sum(of.values[:rank] ** 2) / total for rank in ranks])
        parameters = np.add.outer(parameters, ranks * sum(of.shape)).ravel()
        kept = np.add.outer(kept, gains).ravel()
    return parameters, kept


def marchenko_pastur_median(beta):
    """Median of the Marchenko–Pastur law, by integrating its density in an angle to 30 digits."""
    root = mpmath.sqrt(mpmath.mpf(beta))

    def density(t):
        if root == 1:
            return mpmath.cos(t / 2) ** 2
        return mpmath.sin(t) ** 2 / (1 + root**2 - 2 * root * mpmath.cos(t))

    def mass(theta):
        # At β near 1 the integrand turns within an angle of 1 − √β.
        near = sorted({mpmath.mpf(0), *(min(theta, (1 - root) * factor) for factor in (1, 100)), theta})
        return 2 / mpmath.pi * mpmath.quad(density, near)

    with mpmath.workdps(30):
        theta = mpmath.findroot(lambda t: mass(t) - mpmath.mpf(1) / 2, (1.0, 1.6), solver="anderson", tol=1e-20)
        return float(1 + root**2 - 2 * root * mpmath.cos(theta))


def noise_edge(variances):
    """Edge of independent errors: the least z at which 1/u = z − S v, 1/v = z − Sᵀ u has a positive solution."""
    low, high = 0.0, np.sqrt(np.max(np.sum(variances, 0))) + np.sqrt(np.max(np.sum(variances, 1)))
    while high - low > 1e-6 * high:
        z = (low + high) / 2
        v = np.zeros(variances.shape[1])
        # From zero the iteration rises to the least solution, or past every bound where there is none.
        for _ in range(20_000):
            rows = z - variances @ v
            before, columns = v, z - variances.T @ (1 / rows)
            v = 1 / columns
            if np.any(rows <= 0) or np.any(columns <= 0) or np.max(np.abs(v - before)) < 1e-10 * np.max(v):
                break
        if np.all(rows > 0) and np.all(columns > 0):
            high = z
        else:
            low = z
    return high


def comparison(first, second):
    """Two dense updates by NumPy's SVD of each in float64, and angles whose sines and cosines are both computed."""
    spaces, norms = {"columns": [], "rows": []}, [np.linalg.norm(matrix) for matrix in (first, second)]
    for matrix in (first, second):
        U, values, Vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
        rank = int(np.sum(values > 1e-6 * values[0])) if values[0] else 0
        spaces["columns"].append(U[:, :rank])
        spaces["rows"].append(Vt[:rank].T)
    inner = float(np.vdot(first, second))
    sides = {
        "columns": _spaces(*spaces["columns"], first, second),
        "rows": _spaces(*spaces["rows"], first.T, second.T),
    }
    return {"cosine": inner / (norms[0] * norms[1] or 1.0), "sum_norm": np.linalg.norm(first + second), **sides}


def _spaces(U, V, first, second):
    """Angles and overlaps of two bases, and the energy of each update in the leading vectors of the other."""
    overlap = np.zeros((U.shape[1], V.shape[1]))
    for i, j in np.ndindex(*overlap.shape):
        overlap[i, j] = np.linalg.norm(U[:, : i + 1].T @ V[:, : j + 1]) ** 2 / (min(i, j) + 1)
    larger, smaller = (U, V) if U.shape[1] >= V.shape[1] else (V, U)
    cosines = np.linalg.svd(larger.T @ smaller, compute_uv=False)
    sines = np.linalg.svd(smaller - larger @ larger.T @ smaller, compute_uv=False)[::-1]
    energies = [np.linalg.norm(matrix) ** 2 or 1.0 for matrix in (first, second)]
    return {
        "angles": np.arctan2(sines, cosines),
        "overlap": overlap,
        "first_captured": np.cumsum(np.sum((V.T @ first) ** 2, axis=1)) / energies[0],
        "second_captured": np.cumsum(np.sum((U.T @ second) ** 2, axis=1)) / energies[1],
    }
