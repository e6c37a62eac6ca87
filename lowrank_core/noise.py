"""Laws of random matrices: the distribution of their singular values, and its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import blas_threads
from lowrank_core._validation import as_ratio

__all__ = ["marchenko_pastur_median", "noise_edge", "optimal_threshold"]

Floats = NDArray[np.float64]
Products = Callable[[Floats, Floats], tuple[Floats, Floats]]


class Edge(NamedTuple):
    """The edge of errors, that with fluctuation, and the probabilities of rows and columns that attain it."""

    edge: float
    with_fluctuation: float
    rows: Floats
    columns: Floats


# Halvings of an interval of length π down to float64's grid.
_HALVINGS = 53
# The edge may be this much too high, never too low: about as much as the edge of a finite matrix fluctuates.
_EDGE_TOLERANCE = 0.01
# Iterations until then: about 10 to 30 for weights. To stop here leaves a bound all the same, if not the tightest.
_ITERATIONS = 200
# Entries of a pass over the rows: half a megabyte in float32.
_CACHED_ENTRIES = 1 << 17
# 99 % quantile of the Tracy–Widom law of real matrices: the largest eigenvalue's fluctuation in units of its scale.
_TRACY_WIDOM_99 = 2.02


def marchenko_pastur_median(beta: float) -> float:
    r"""Compute the median of the Marchenko–Pastur law with ratio β.

    The law of the eigenvalues of :math:`X X^T / n` for an m × n matrix X of independent entries of variance 1, with
    β = m / n ≤ 1. Its density is :math:`\sqrt{(b - x)(x - a)} / (2\pi\beta x)` between
    :math:`a, b = (1 \mp \sqrt\beta)^2`.

    Parameters
    ----------
    beta : float
        0 < β ≤ 1.

    Returns
    -------
    float
        To a few units in the last place, for every β.

    Raises
    ------
    ValueError
        If β is outside this range.

    See Also
    --------
    optimal_threshold : For noise of a known size.

    Notes
    -----
    Bisection of the distribution function, which has a closed form: with :math:`\rho = \sqrt\beta` and
    :math:`x = 1 + \rho^2 - 2\rho\,\cos\theta`

    .. math:: F(\theta) = \frac{1}{\pi}\left(\theta + \phi - \frac{\phi - \rho\,\sin\theta}{\rho^2}\right),
       \qquad \phi = \arctan\frac{\rho\,\sin\theta}{1 - \rho\,\cos\theta}.

    References
    ----------
    Marchenko and Pastur, Math. USSR Sbornik 1 (1967) 457; Gavish and Donoho, arXiv:1305.5870, §III, for its median.

    Examples
    --------
    >>> from lowrank_core.noise import marchenko_pastur_median
    >>> round(marchenko_pastur_median(1.0), 6)
    0.652776
    """
    rho = math.sqrt(as_ratio(beta))
    low, high = 0.0, math.pi
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _distribution(middle, rho) < 0.5:
            low = middle
        else:
            high = middle
    # 1 + β − 2√β cos θ, which cancels nowhere in this form.
    return (1 - rho) ** 2 + 4 * rho * math.sin(high / 2) ** 2


def _distribution(theta: float, rho: float) -> float:
    phi = math.atan2(rho * math.sin(theta), 1 - rho * math.cos(theta))
    # For a small ρ this cancels to about eps/ρ, which does not reach the median: its x moves by 2ρ·sin θ per θ.
    return (theta + phi - (phi - rho * math.sin(theta)) / rho**2) / math.pi


def optimal_threshold(beta: float) -> float:
    r"""Compute the optimal hard threshold λ*(β) for singular values in noise of a known size.

    .. math:: \lambda_*(\beta) = \sqrt{2(\beta + 1) + \frac{8\beta}{\beta + 1 + \sqrt{\beta^2 + 14\beta + 1}}}

    Parameters
    ----------
    beta : float
        Ratio of the sides, 0 < β ≤ 1.

    Returns
    -------
    float
        In units of the noise's standard deviation per entry times √max(m, n). The noise alone ends at 1 + √β.

    Raises
    ------
    ValueError
        If β is outside this range.

    See Also
    --------
    lowrank_core.rank_above_noise : Counts the values above the threshold.

    References
    ----------
    Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/√3", arXiv:1305.5870, equation 11.

    Examples
    --------
    >>> from lowrank_core.noise import optimal_threshold
    >>> round(optimal_threshold(1.0) * 3**0.5, 12)
    4.0
    """
    ratio = as_ratio(beta)
    return math.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + math.sqrt(ratio**2 + 14 * ratio + 1)))


def noise_edge(variances: NDArray[Any]) -> tuple[float, float]:
    r"""Compute the edge of the singular values of independent errors, of which each has a variance of its own.

    Parameters
    ----------
    variances : ndarray, shape (m, n)
        Variance of each entry, at least 0; float32 or float64, of a size whose products neither vanish nor overflow.

    Returns
    -------
    edge : float
        Limit of the largest singular value of large matrices with these variances, or at most 1 % above it.
    with_fluctuation : float
        Bound that the largest singular value of one such matrix is below in 99 of 100 draws.

    See Also
    --------
    lowrank_core.rounding_noise.rounding_noise : The edge for the rounding of stored weights.

    Notes
    -----
    Let S be the variances. The edge is both a minimum over positive vectors u, v and a maximum over a probability
    :math:`\pi = (x, y)` on rows and columns:

    .. math::
       E = \min_{u, v > 0} \max\left(\max_i \frac{1}{u_i} + (S v)_i,\; \max_j \frac{1}{v_j} + (S^T u)_j\right)
         = \max_\pi 2 \sum_i \sqrt{x_i (S y)_i} + 2 \sum_j \sqrt{y_j (S^T x)_j},

    with :math:`u_i = \sqrt{x_i / (S y)_i}` and :math:`v_j = \sqrt{y_j / (S^T x)_j}`, under which the terms of the
    first line are the gradient of the second. So :math:`\pi` is multiplied by them until both lines agree; the first
    line, an upper bound at every step, is the result. The largest eigenvalue fluctuates by
    :math:`(\sum x_i^3 / u_i^3 + \sum y_j^3 / v_j^3)^{1/3}` times a Tracy–Widom variable.

    For equal variances :math:`s^2` this is :math:`s(\sqrt m + \sqrt n)` and, on σ², a fluctuation of
    :math:`2.02\, s^2 (\sqrt m + \sqrt n)(1/\sqrt m + 1/\sqrt n)^{1/3}`.

    References
    ----------
    Lehner, Amer. J. Math. 121 (1999) 453, for the minimum; Bandeira, Boedihardjo and van Handel, arXiv:2108.06312, for
    finite matrices; Johnstone, Ann. Statist. 29 (2001) 295, for the fluctuation at equal variances.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.noise import noise_edge
    >>> edge, above = noise_edge(np.ones((400, 100)))
    >>> round(edge, 9), round(above, 2)
    (30.0, 30.53)
    """
    found = edge_of_variances(variances)
    return found.edge, found.with_fluctuation


def edge_of_variances(variances: NDArray[Any], like: Edge | None = None) -> Edge:
    """Compute what :func:`noise_edge` does, from the weights of an edge of similar variances where there is one."""
    with _one_thread():
        row_sums, column_sums = _products(variances, np.ones(variances.shape[0]), np.ones(variances.shape[1]))
    rows, columns = row_sums > 0, column_sums > 0
    if not np.any(rows):
        return Edge(0.0, 0.0, row_sums, column_sums)
    if not (np.all(rows) and np.all(columns)):
        # A row without noise adds nothing but a division by zero.
        variances, row_sums, column_sums = variances[rows][:, columns], row_sums[rows], column_sums[columns]
    if like is not None and like.rows.shape == row_sums.shape and like.columns.shape == column_sums.shape:
        row_sums, column_sums = like.rows, like.columns
    return edge_of_products(partial(_products, variances), row_sums, column_sums)


def edge_of_products(products: Products, rows: Floats, columns: Floats) -> Edge:
    """Compute what :func:`noise_edge` does from (x, y) -> (S y, Sᵀ x) and weights to start from, such as sums of S."""
    x, y = rows / (2 * np.sum(rows)), columns / (2 * np.sum(columns))
    with _one_thread():
        for _ in range(_ITERATIONS):
            from_columns, from_rows = products(x, y)
            u, v = np.sqrt(x / from_columns), np.sqrt(y / from_rows)
            below = 2 * float(np.sum(np.sqrt(x * from_columns)) + np.sum(np.sqrt(y * from_rows)))
            from_v, from_u = products(u, v)
            row_terms, column_terms = 1 / u + from_v, 1 / v + from_u
            edge = float(max(np.max(row_terms), np.max(column_terms)))
            if edge <= below * (1 + _EDGE_TOLERANCE):
                break
            x, y = x * row_terms / below, y * column_terms / below
    scale = float(np.sum((x / u) ** 3) + np.sum((y / v) ** 3)) ** (1 / 3)
    return Edge(edge, math.sqrt(edge**2 + 2 * _TRACY_WIDOM_99 * edge * scale), x, y)


@contextmanager
def _one_thread() -> Iterator[None]:
    # These products are bound by memory: a second BLAS thread waits for the first. Of positive, finite numbers none is
    # invalid, and yet BLAS was seen to raise that flag, as it may for memory that it reads beside them and leaves out.
    with blas_threads(1), np.errstate(invalid="ignore"):
        yield


def _products(variances: NDArray[Any], x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return S y and Sᵀ x, in the precision of S, so that no copy of S is made.

    Some rows at a time, which the second product finds in a core's own cache.
    """
    of_columns, of_rows = np.empty(len(x)), np.zeros(len(y))
    left, right = x.astype(variances.dtype), y.astype(variances.dtype)
    step = max(1, _CACHED_ENTRIES // variances.shape[1])
    for start in range(0, len(variances), step):
        rows = slice(start, start + step)
        of_columns[rows] = variances[rows] @ right
        of_rows += left[rows] @ variances[rows]
    return of_columns, of_rows
