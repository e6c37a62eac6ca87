"""Laws of noise: where the singular values of a random matrix lie, and end."""

from __future__ import annotations

import math

__all__ = ["marchenko_pastur_median", "optimal_threshold"]

# Series terms k ≥ 2 fall as (1/4)^k: the rest after 30 is below 2^-60.
_SMALL_ROOT = 0.25
_TERMS = range(2, 31)
# Halvings of an interval of length π down to float64's grid.
_HALVINGS = 53


def marchenko_pastur_median(beta: float) -> float:
    r"""Find the median of the Marchenko–Pastur law with ratio β.

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
        To a few units in the last place, for every β: found from the distribution function in closed form.

    Raises
    ------
    ValueError
        If β is outside this range.

    Notes
    -----
    With :math:`x = 1 + \beta - 2\sqrt\beta\cos\theta` and :math:`\rho = \sqrt\beta` the distribution function is

    .. math:: F(\theta) = \frac{1}{\pi}\Big(\theta + \phi - \sum_{k \ge 2} \frac{\rho^{k-2} \sin k\theta}{k}\Big),
       \qquad \phi = \arctan\frac{\rho\sin\theta}{1 - \rho\cos\theta} = \sum_{k \ge 1} \frac{\rho^k \sin k\theta}{k}.

    References
    ----------
    Marchenko and Pastur, Math. USSR Sbornik 1 (1967) 457; its median's use: Gavish and Donoho, arXiv:1305.5870, §III.

    Examples
    --------
    >>> from lowrank_core.noise import marchenko_pastur_median
    >>> round(marchenko_pastur_median(1.0), 6)
    0.652776
    """
    root = math.sqrt(checked_ratio(beta))
    low, high = 0.0, math.pi
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _distribution(middle, root) < 0.5:
            low = middle
        else:
            high = middle
    # 1 + β − 2√β cos θ, which cancels nowhere in this form.
    return (1 - root) ** 2 + 4 * root * math.sin(high / 2) ** 2


def _distribution(theta: float, root: float) -> float:
    angle = math.atan2(root * math.sin(theta), 1 - root * math.cos(theta))
    if root < _SMALL_ROOT:
        # The closed form divides what cancels by β.
        rest = math.fsum(root ** (k - 2) * math.sin(k * theta) / k for k in _TERMS)
    else:
        rest = (angle - root * math.sin(theta)) / root**2
    return (theta + angle - rest) / math.pi


def optimal_threshold(beta: float) -> float:
    r"""Give the optimal hard threshold λ*(β) for singular values in noise of a known size.

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

    References
    ----------
    Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/√3", arXiv:1305.5870, equation 11.

    Examples
    --------
    >>> from lowrank_core.noise import optimal_threshold
    >>> round(optimal_threshold(1.0) * 3**0.5, 12)
    4.0
    """
    ratio = checked_ratio(beta)
    return math.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + math.sqrt(ratio**2 + 14 * ratio + 1)))


def checked_ratio(beta: float) -> float:
    """Take a ratio of sides with 0 < β ≤ 1; anything else is a ValueError."""
    if not 0 < beta <= 1:
        raise ValueError(f"beta must lie in 0 < beta <= 1; got {beta!r}. It is min(m, n) / max(m, n).")
    return float(beta)
