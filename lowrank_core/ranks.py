"""Ranks that an update has, and ranks that it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core._validation import as_fraction, as_noise
from lowrank_core.noise import marchenko_pastur_median, optimal_threshold
from lowrank_core.spectra import Spectrum, check_complete, check_spectrum, energy_fractions, known_ranks, largest_of

__all__ = [
    "above_rounding",
    "count_passing",
    "effective_rank",
    "numerical_rank",
    "rank_above_noise",
    "rank_for_error",
    "rank_for_ratio",
    "rank_for_variance",
    "stable_rank",
]


def rank_for_variance(spectrum: Spectrum, fraction: ArrayLike) -> Any:
    r"""Return the least rank that captures a fraction t of the variance: the least r with :math:`H_r \ge t N^2`.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).
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

    See Also
    --------
    variance_captured : The fraction at each rank.
    rank_for_error : By error instead.
    allocate_ranks : For many layers with one budget.

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
    target = as_fraction(fraction, "fraction")
    heads, _ = energy_fractions(spectrum, known_ranks(spectrum, None))
    return _least_rank(spectrum, heads < target[..., np.newaxis], f"a variance of {fraction!r}")


def rank_for_error(spectrum: Spectrum, error: ArrayLike) -> Any:
    r"""Return the least rank whose best relative error is at most e: the least r with :math:`T_r \le e^2 N^2`.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).
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

    See Also
    --------
    reconstruction_error : The error at each rank.
    rank_for_variance : By variance instead.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211; Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import rank_for_error, spectrum
    >>> rank_for_error(spectrum(np.diag([4.0, 3.0, 0.1])), 0.1)
    np.int64(2)
    """
    target = as_fraction(error, "error")
    _, tails = energy_fractions(spectrum, known_ranks(spectrum, None))
    # Roots are compared, so that the answer agrees with reconstruction_error to the last bit.
    return _least_rank(spectrum, np.sqrt(tails) > target[..., np.newaxis], f"an error of {error!r}")


def _least_rank(spectrum: Spectrum, insufficient: NDArray[np.bool_], criterion: str) -> Any:
    """Return the first rank that is sufficient, at least 1; 0 for a zero update."""
    zero = spectrum.norm == 0
    needed = np.maximum(np.sum(insufficient, axis=-1), 1)
    p = spectrum.values.shape[-1]
    if not spectrum.complete and np.any((needed > p) & ~zero):
        raise ValueError(f"{criterion} needs more than the {p} leading values of this spectrum; {_more(spectrum)}")
    return np.where(zero, 0, needed)[()]


def _more(spectrum: Spectrum) -> str:
    return f"ask for more with spectrum(update, rank=...), up to {min(spectrum.shape)}, or for all of them."


def rank_for_ratio(spectrum: Spectrum, ratio: ArrayLike) -> Any:
    r"""Return the number of singular values of at least ρ times the largest: :math:`\#\{\sigma_i \ge \rho\,\sigma_1\}`.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).
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

    See Also
    --------
    numerical_rank : With the ratio that rounding implies.

    References
    ----------
    kohya's ``sv_ratio`` with ratio 1/ρ, without its extra rank.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import rank_for_ratio, spectrum
    >>> rank_for_ratio(spectrum(np.diag([4.0, 3.0, 0.1])), 0.5)
    np.int64(2)
    """
    fraction = as_fraction(ratio, "ratio")
    values, _ = _unit_values(spectrum)
    # A threshold that underflows is still above a value of 0.
    threshold = np.maximum(fraction * largest_of(values), np.where(fraction > 0, 5e-324, 0.0))
    count = count_passing(spectrum, values >= threshold[..., np.newaxis], f"a ratio of {ratio!r}")
    # At ratio 0 every value passes, including the zeros that a product's spectrum leaves out.
    count = np.where(fraction == 0, min(spectrum.shape), count)
    return np.where(spectrum.norm == 0, 0, np.maximum(count, 1))[()]


def _unit_values(spectrum: Spectrum) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values and norm over a power of two near the norm, so that no square and no threshold overflows."""
    check_spectrum(spectrum)
    if spectrum.values.shape[-1] == 0 and not spectrum.complete:
        raise ValueError("this spectrum has no values; ask for them with spectrum(update, rank=1) or more.")
    exponents = np.frexp(spectrum.norm)[1]
    return np.ldexp(spectrum.values, -exponents[..., np.newaxis]), np.ldexp(spectrum.norm, -exponents)


def count_passing(spectrum: Spectrum, passing: NDArray[np.bool_], criterion: str) -> NDArray[np.int64]:
    """Return the number of values that pass; a ValueError where all values of an incomplete spectrum do."""
    count: NDArray[np.int64] = np.sum(passing, axis=-1)
    p = spectrum.values.shape[-1]
    if not spectrum.complete and np.any((count == p) & (spectrum.norm > 0)):
        raise ValueError(f"{criterion} is passed by all {p} leading values of this spectrum; {_more(spectrum)}")
    return count


def numerical_rank(spectrum: Spectrum) -> Any:
    r"""Return the number of singular values above rounding.

    The threshold is the largest of :math:`\max(m, n)\,\epsilon_{64}\,\sigma_1`, for float32 and below
    :math:`10\,\epsilon_{32}\,\sigma_1` (the error of the decomposition), and
    :math:`\frac12 \epsilon_{\mathrm{dtype}} N` (the error of storing the update).

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        At least 1, but 0 for a zero update.

    Raises
    ------
    ValueError
        If every value of an incomplete spectrum is above the threshold.

    See Also
    --------
    rank_above_noise : For noise larger than rounding.

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
    count = count_passing(spectrum, above_rounding(spectrum), "the rounding threshold")
    return np.where(spectrum.norm == 0, 0, np.maximum(count, 1))[()]


def above_rounding(spectrum: Spectrum) -> NDArray[np.bool_]:
    """Return which values (..., p) are above the threshold of :func:`numerical_rank`."""
    values, norm = _unit_values(spectrum)
    single = 0.0 if spectrum.dtype == "float64" else 10 * FLOATS["float32"].eps
    relative = max(max(spectrum.shape) * FLOATS["float64"].eps, single)
    threshold = np.maximum(relative * largest_of(values), FLOATS[spectrum.dtype].eps / 2 * norm)
    return np.asarray(values >= threshold[..., np.newaxis])


def rank_above_noise(spectrum: Spectrum, noise: ArrayLike | None = None) -> Any:
    r"""Return the number of singular values above noise: those worth keeping when every entry has a random error.

    The threshold minimises the asymptotic mean squared error of the truncation:

    .. math:: \tau = \lambda_*(\beta)\, s \sqrt{\max(m, n)}, \qquad \beta = \min(m, n) / \max(m, n),

    for noise of standard deviation s per entry. For unknown noise, s is taken from the median singular value:
    :math:`\tau = \lambda_*(\beta) / \sqrt{\mu_\beta} \cdot \mathrm{median}\,\sigma`, where :math:`\mu_\beta` is the
    median of the Marchenko–Pastur law.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...); complete, for unknown noise.
    noise : array_like, optional
        Standard deviation of each entry, at least 0; broadcast against the batch axes. None: unknown.

    Returns
    -------
    int64 or ndarray of int64, shape (...)
        0 where no value is above the noise, and for a zero update.

    Raises
    ------
    ValueError
        If the noise is negative or not finite; if every value of an incomplete spectrum is above it; for unknown noise,
        if the spectrum is not complete, or the median singular value of a nonzero update is zero.

    See Also
    --------
    numerical_rank : For an update without noise, which is exactly of low rank.
    lowrank_core.rounding_noise.rounding_noise : For the rounding of stored weights.
    lowrank_core.noise : The threshold and the law.

    Notes
    -----
    Unknown noise is estimated from the smaller half of the values, so the rank of the signal must be under half of
    min(m, n).

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
    if noise is None:
        check_complete(spectrum, "an estimate of unknown noise", ", or give the noise")
    values, norm = _unit_values(spectrum)
    beta = min(spectrum.shape) / max(spectrum.shape)
    if noise is None:
        median = _median(values, min(spectrum.shape))
        if np.any((median == 0) & (norm > 0)):
            raise ValueError(
                "the median singular value is 0, so there is no noise to estimate: this update is exactly of a rank "
                "under half of min(m, n). Count its rank with numerical_rank, or give the noise."
            )
        threshold = optimal_threshold(beta) / np.sqrt(marchenko_pastur_median(beta)) * median
    else:
        std = as_noise(noise)
        # Divided by the same power of two as the values; a threshold that overflows is above all of them.
        with np.errstate(over="ignore", under="ignore"):
            unit_std = np.ldexp(std, -np.frexp(spectrum.norm)[1])
            threshold = optimal_threshold(beta) * np.sqrt(max(spectrum.shape)) * unit_std
    # Strictly above, so that a noise of 0 counts the values that are not 0.
    return count_passing(spectrum, values > threshold[..., np.newaxis], f"a noise of {noise!r}")[()]


def _median(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the median of `count` descending values, of which those that are left out are zero."""
    middle = ((count - 1) // 2, count // 2)
    lower, upper = (values[..., i] if i < values.shape[-1] else np.zeros(values.shape[:-1]) for i in middle)
    return np.asarray((lower + upper) / 2)


def stable_rank(spectrum: Spectrum) -> Any:
    r"""Return the ratio of the squared Frobenius and spectral norms: :math:`N^2 / \sigma_1^2`.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).

    Returns
    -------
    float64 or ndarray, shape (...)
        Between 1 and the rank; 0 for a zero update.

    Raises
    ------
    ValueError
        If an incomplete spectrum has no value.

    See Also
    --------
    effective_rank : By the entropy of all values.

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
    # np.square, because ** of a scalar is another routine, which may differ in the last bit.
    return np.where(zero, 0.0, np.square(norm / np.where(zero, 1.0, largest_of(values))))[()]


def effective_rank(spectrum: Spectrum) -> Any:
    r"""Return the exponential of the entropy: :math:`\exp(-\sum_i p_i \ln p_i)`, :math:`p_i = \sigma_i / \sum \sigma`.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...), complete.

    Returns
    -------
    float64 or ndarray, shape (...)
        Between 1 and the rank; 0 for a zero update.

    Raises
    ------
    ValueError
        If the spectrum is not complete.

    See Also
    --------
    stable_rank : Needs the largest value and the norm alone.

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
    values, norm = _unit_values(spectrum)
    zero = norm == 0
    total = np.where(zero, 1.0, np.sum(values, axis=-1))
    # ln Σσ − Σσ ln σ / Σσ, with σ ln σ → 0: no logarithm of a vanishing p.
    weighted = np.sum(values * np.log(np.where(values > 0, values, 1.0)), axis=-1)
    return np.where(zero, 0.0, np.exp(np.log(total) - weighted / total))[()]
