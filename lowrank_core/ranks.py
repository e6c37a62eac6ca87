"""How many ranks an update has, and how many it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core._validation import as_fraction, as_noise
from lowrank_core.noise import marchenko_pastur_median, optimal_threshold
from lowrank_core.spectra import Spectrum, check_complete, energy_fractions, known_ranks, largest_of

__all__ = [
    "effective_rank",
    "numerical_rank",
    "rank_above_noise",
    "rank_for_error",
    "rank_for_ratio",
    "rank_for_variance",
    "stable_rank",
]


def rank_for_variance(spectrum: Spectrum, fraction: ArrayLike) -> Any:
    r"""Least rank that holds a fraction t of the variance: the least r with :math:`H_r \ge t N^2`.

    Parameters
    ----------
    spectrum : Spectrum
    fraction : array_like
        Between 0 and 1; broadcast against the batch axes.

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        At least 1, but 0 for a zero update.

    Raises
    ------
    ValueError
        If the fraction is outside 0 … 1, or an incomplete spectrum does not reach it.

    References
    ----------
    The energy rule of PEFT's ``convert_to_lora``.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import rank_for_variance, spectrum
    >>> rank_for_variance(spectrum(np.diag([4.0, 3.0, 0.1])), 0.99)
    np.int64(2)
    """
    wanted = as_fraction(fraction, "fraction")
    heads, _ = energy_fractions(spectrum, known_ranks(spectrum, None))
    return _least_rank(spectrum, heads < wanted[..., np.newaxis], f"a variance of {fraction!r}")


def rank_for_error(spectrum: Spectrum, error: ArrayLike) -> Any:
    r"""Least rank whose best relative error is at most e: the least r with :math:`T_r \le e^2 N^2`.

    Parameters
    ----------
    spectrum : Spectrum
    error : array_like
        Between 0 and 1, relative, in the Frobenius norm; broadcast against the batch axes.

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        At least 1, but 0 for a zero update.

    Raises
    ------
    ValueError
        If the error is outside 0 … 1, or an incomplete spectrum does not reach it.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import rank_for_error, spectrum
    >>> rank_for_error(spectrum(np.diag([4.0, 3.0, 0.1])), 0.1)
    np.int64(2)
    """
    wanted = as_fraction(error, "error")
    _, tails = energy_fractions(spectrum, known_ranks(spectrum, None))
    # Roots are compared, so that the answer agrees with reconstruction_error to the last bit.
    return _least_rank(spectrum, np.sqrt(tails) > wanted[..., np.newaxis], f"an error of {error!r}")


def _least_rank(spectrum: Spectrum, short: NDArray[np.bool_], what: str) -> Any:
    zero = spectrum.norm == 0
    needed = np.maximum(np.sum(short, axis=-1), 1)
    held = spectrum.values.shape[-1]
    if not spectrum.complete and np.any((needed > held) & ~zero):
        raise ValueError(
            f"{what} needs more than the {held} leading values that this spectrum holds; "
            f"ask for more with spectrum(update, rank=...), up to {min(spectrum.shape)}, or for all of them."
        )
    return np.where(zero, 0, needed)[()]


def rank_for_ratio(spectrum: Spectrum, ratio: ArrayLike) -> Any:
    r"""Count the singular values of at least ρ times the largest: :math:`\#\{\sigma_i \ge \rho\,\sigma_1\}`.

    Parameters
    ----------
    spectrum : Spectrum
    ratio : array_like
        Between 0 and 1; broadcast against the batch axes.

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        At least 1, but 0 for a zero update; min(m, n) at a ratio of 0.

    Raises
    ------
    ValueError
        If the ratio is outside 0 … 1, or every value of an incomplete spectrum passes.

    References
    ----------
    kohya's ``sv_ratio`` with ratio 1/t, without its extra rank.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import rank_for_ratio, spectrum
    >>> rank_for_ratio(spectrum(np.diag([4.0, 3.0, 0.1])), 0.5)
    np.int64(2)
    """
    wanted = as_fraction(ratio, "ratio")
    values, _ = _unit_values(spectrum)
    # A threshold that underflows is still above a value of 0.
    threshold = np.maximum(wanted * largest_of(values), np.where(wanted > 0, 5e-324, 0.0))
    count = _count_at_least(spectrum, values, threshold, f"a ratio of {ratio!r}")
    # Every value, the zeros beyond those held included, is at least nothing.
    everything = np.where(wanted == 0, min(spectrum.shape), count)
    return np.where(spectrum.norm == 0, 0, np.maximum(everything, 1))[()]


def _unit_values(spectrum: Spectrum) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and norm over a power of two near the norm, where squares and thresholds neither vanish nor overflow."""
    if spectrum.values.shape[-1] == 0 and not spectrum.complete:
        raise ValueError("this spectrum holds no values; ask for them with spectrum(update, rank=1) or more.")
    exponents = np.frexp(spectrum.norm)[1]
    return np.ldexp(spectrum.values, -exponents[..., np.newaxis]), np.ldexp(spectrum.norm, -exponents)


def _count_at_least(spectrum: Spectrum, values: NDArray[np.float64], threshold: NDArray[np.float64], what: str) -> Any:
    return _count(spectrum, values >= threshold[..., np.newaxis], what)


def _count(spectrum: Spectrum, passed: NDArray[np.bool_], what: str) -> Any:
    count = np.sum(passed, axis=-1)
    held = spectrum.values.shape[-1]
    if not spectrum.complete and np.any((count == held) & (spectrum.norm > 0)):
        raise ValueError(
            f"{what} is passed by all {held} leading values that this spectrum holds; "
            f"ask for more with spectrum(update, rank=...), up to {min(spectrum.shape)}, or for all of them."
        )
    return count


def numerical_rank(spectrum: Spectrum) -> Any:
    r"""Count the singular values that stand above rounding.

    The threshold is the largest of :math:`\max(m, n)\,\epsilon_{64}\,\sigma_1`, for float32 and below
    :math:`10\,\epsilon_{32}\,\sigma_1` (the error of the decomposition), and :math:`\frac12 \epsilon_{dtype} N` (the
    error of storing the update).

    Parameters
    ----------
    spectrum : Spectrum

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        At least 1, but 0 for a zero update.

    Raises
    ------
    ValueError
        If every value of an incomplete spectrum passes.

    References
    ----------
    Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import numerical_rank, spectrum
    >>> numerical_rank(spectrum(np.ones((5, 4))))
    np.int64(1)
    """
    values, norm = _unit_values(spectrum)
    relative = max(spectrum.shape) * FLOATS["float64"].eps
    if spectrum.dtype != "float64":
        relative = max(relative, 10 * FLOATS["float32"].eps)
    threshold = np.maximum(relative * largest_of(values), FLOATS[spectrum.dtype].eps / 2 * norm)
    count = _count_at_least(spectrum, values, threshold, "the rounding threshold")
    return np.where(spectrum.norm == 0, 0, np.maximum(count, 1))[()]


def rank_above_noise(spectrum: Spectrum, noise: ArrayLike | None = None) -> Any:
    r"""Count the singular values that stand above noise: those worth keeping when each entry has an error of its own.

    The threshold is optimal for the mean squared error of what is kept. With :math:`\beta = \min(m, n) / \max(m, n)`,

    .. math:: \tau = \lambda_*(\beta)\, s \sqrt{\max(m, n)}

    for noise of standard deviation s per entry. For unknown noise, s is taken from the median singular value:
    :math:`\tau = \lambda_*(\beta) / \sqrt{\mu_\beta} \cdot \mathrm{median}\,\sigma`, where :math:`\mu_\beta` is the
    median of the Marchenko–Pastur law.

    Parameters
    ----------
    spectrum : Spectrum
        Complete, for unknown noise.
    noise : array_like, optional
        Standard deviation per entry, at least 0, broadcast against the batch axes. None: unknown.

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        0 where nothing stands above the noise, and for a zero update.

    Raises
    ------
    ValueError
        If the noise is negative or not finite; if every value of an incomplete spectrum passes; for unknown noise, if
        the spectrum is not complete, or the median of an update that is not zero is zero.

    Notes
    -----
    Unknown noise is told from the signal by the smaller half of the values, so the rank of the signal must be under
    half of min(m, n). An update that is exactly of low rank has no noise to estimate: `numerical_rank` counts it.

    References
    ----------
    Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/√3", arXiv:1305.5870, equations 10 to 12.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import rank_above_noise, spectrum, update_with_spectrum
    >>> noise = 0.1 * np.random.default_rng(0).standard_normal((200, 100))
    >>> s = spectrum(update_with_spectrum([9.0, 8.0, 7.0], (200, 100), rng=0) + noise)
    >>> rank_above_noise(s), rank_above_noise(s, noise=0.1), rank_above_noise(s, noise=1.0)
    (np.int64(3), np.int64(3), np.int64(0))
    """
    beta = min(spectrum.shape) / max(spectrum.shape)
    if noise is None:
        check_complete(spectrum, "an estimate of unknown noise", ", or give the noise")
        values, norm = _unit_values(spectrum)
        middle = _median(values, min(spectrum.shape))
        if np.any((middle == 0) & (norm > 0)):
            raise ValueError(
                "the median singular value is 0, so there is no noise to estimate: this update is exactly of a rank "
                "under half of min(m, n). Count its rank with numerical_rank, or give the noise."
            )
        threshold = optimal_threshold(beta) / np.sqrt(marchenko_pastur_median(beta)) * middle
    else:
        given = as_noise(noise)
        values, _ = _unit_values(spectrum)
        # Divided by the same power of two as the values; what overflows is above all of them.
        with np.errstate(over="ignore", under="ignore"):
            unit = np.ldexp(given, -np.frexp(spectrum.norm)[1])
            threshold = optimal_threshold(beta) * np.sqrt(max(spectrum.shape)) * unit
    # Strictly above, so that no noise at all leaves the values that are not 0.
    return _count(spectrum, values > threshold[..., np.newaxis], f"a noise of {noise!r}")[()]


def _median(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Median of `count` descending values, of which those beyond the ones held are zero."""
    held = values.shape[-1]
    middle = [(count - 1) // 2, count // 2]
    two = [values[..., i] if i < held else np.zeros(values.shape[:-1]) for i in middle]
    median: NDArray[np.float64] = (two[0] + two[1]) / 2
    return median


def stable_rank(spectrum: Spectrum) -> Any:
    r"""Ratio of the squared norms: :math:`N^2 / \sigma_1^2`, between 1 and the rank; 0 for a zero update.

    Parameters
    ----------
    spectrum : Spectrum

    Returns
    -------
    float64 or ndarray, shape (...)

    Raises
    ------
    ValueError
        If an incomplete spectrum holds no value.

    References
    ----------
    Rudelson and Vershynin, J. ACM 54 (2007) 21, §1.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum, stable_rank
    >>> stable_rank(spectrum(np.diag([2.0, 1.0, 1.0]))).round(12)
    np.float64(1.5)
    """
    values, norm = _unit_values(spectrum)
    zero = norm == 0
    # np.square, because ** of a lone number is another routine, which may differ in the last bit.
    return np.where(zero, 0.0, np.square(norm / np.where(zero, 1.0, largest_of(values))))[()]


def effective_rank(spectrum: Spectrum) -> Any:
    r"""Exponential of the spectrum's entropy: :math:`\exp(-\sum_i p_i \ln p_i)`, :math:`p_i = \sigma_i / \sum\sigma`.

    Parameters
    ----------
    spectrum : Spectrum
        Complete.

    Returns
    -------
    float64 or ndarray, shape (...)
        Between 1 and the rank; 0 for a zero update.

    Raises
    ------
    ValueError
        If the spectrum is not complete.

    References
    ----------
    Roy and Vetterli, EUSIPCO 2007, definition 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import effective_rank, spectrum
    >>> effective_rank(spectrum(np.eye(3))).round(12)
    np.float64(3.0)
    """
    check_complete(spectrum, "the effective rank")
    relative, norm = _unit_values(spectrum)
    zero = norm == 0
    total = np.sum(relative, axis=-1)
    # ln Σσ − Σσ ln σ / Σσ, with σ ln σ → 0: no logarithm of a vanishing share.
    weighted = np.sum(relative * np.log(np.where(relative > 0, relative, 1.0)), axis=-1)
    safe = np.where(zero, 1.0, total)
    return np.where(zero, 0.0, np.exp(np.log(safe) - weighted / safe))[()]
