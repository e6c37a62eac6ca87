"""Synthetic updates: a low-rank "style" update, a full-rank "facts" update, and any spectrum in random bases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._validation import as_noise, as_rank, as_shape, as_singular_values, check_scalar

__all__ = ["facts_update", "style_update", "update_with_spectrum"]


def style_update(d: int, k: int, *, true_rank: int = 4, noise: float = 0.01, rng: Any) -> NDArray[np.float64]:
    r"""Return an update of low rank: :math:`U \mathrm{diag}(5, \ldots, 0.5) V^T` in random bases, plus noise.

    Parameters
    ----------
    d, k : int
        Rows and columns.
    true_rank : int
        Rank without the noise, from 0 to min(d, k): so many singular values, linearly spaced from 5 to 0.5.
    noise : float
        Standard deviation of the Gaussian noise on each entry.
    rng : int, numpy.random.Generator, SeedSequence or RandomState
        Seed or generator. A ``RandomState`` draws in the order of the article's own program, to the last digit.

    Returns
    -------
    ndarray, shape (d, k)

    Raises
    ------
    ValueError
        If a size is not positive, the rank is out of range, or the noise is negative or not finite.

    See Also
    --------
    facts_update : Of full rank.
    update_with_spectrum : With any singular values, and no noise.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum, style_update
    >>> spectrum(style_update(64, 64, rng=np.random.RandomState(42))).values[:5].round(2)
    array([4.99, 3.5 , 2.01, 0.52, 0.14])
    """
    rows, columns = as_shape(d, k)
    rank = as_rank(true_rank, min(rows, columns))
    return _noisy(np.linspace(5.0, 0.5, rank), (rows, columns), noise, rng)


def facts_update(d: int, k: int, *, noise: float = 0.01, rng: Any) -> NDArray[np.float64]:
    r"""Return an update of full rank: :math:`U \mathrm{diag}(3, \ldots, 0.5) V^T` in random bases, plus noise.

    Its min(d, k) singular values are linearly spaced.

    Parameters
    ----------
    d, k : int
        Rows and columns.
    noise : float
        Standard deviation of the Gaussian noise on each entry.
    rng : int, numpy.random.Generator, SeedSequence or RandomState
        Seed or generator. A ``RandomState`` draws in the order of the article's own program, to the last digit.

    Returns
    -------
    ndarray, shape (d, k)

    Raises
    ------
    ValueError
        If a size is not positive, or the noise is negative or not finite.

    See Also
    --------
    style_update : Of low rank.

    Examples
    --------
    >>> from lowrank_core import facts_update, rank_for_variance, spectrum
    >>> int(rank_for_variance(spectrum(facts_update(64, 64, rng=0)), 0.9))
    41
    """
    rows, columns = as_shape(d, k)
    return _noisy(np.linspace(3.0, 0.5, min(rows, columns)), (rows, columns), noise, rng)


def update_with_spectrum(values: ArrayLike, shape: tuple[int, int], *, rng: Any) -> NDArray[np.float64]:
    r"""Return an update with given singular values in random orthonormal bases: :math:`U \mathrm{diag}(\sigma) V^T`.

    Parameters
    ----------
    values : array_like, shape (..., p)
        Singular values, in any order; p at most min(shape), those left out are zero. Leading axes are batch axes.
    shape : (int, int)
        Rows and columns.
    rng : int, numpy.random.Generator, SeedSequence or RandomState
        Seed or generator.

    Returns
    -------
    ndarray, shape (..., m, n)
        Its singular values are `values` to float64 rounding.

    Raises
    ------
    ValueError
        If a value is negative or not finite, there are too many, or the shape is not two positive sizes.

    See Also
    --------
    style_update, facts_update : The article's two examples, with noise.

    Notes
    -----
    The bases are the Q factors of Gaussian matrices.

    Examples
    --------
    >>> from lowrank_core import spectrum, update_with_spectrum
    >>> spectrum(update_with_spectrum([3.0, 1.0], (5, 4), rng=0)).values.round(12) + 0.0
    array([3., 1., 0., 0.])
    """
    rows, columns = as_shape(*shape)
    sigma = as_singular_values(values, min(rows, columns))
    return _in_random_bases(sigma, (rows, columns), _generator(rng))


def _generator(rng: Any) -> Any:
    # default_rng would take a RandomState's bits for draws of its own: not the article's figures.
    return rng if isinstance(rng, np.random.RandomState) else np.random.default_rng(rng)


def _noisy(values: NDArray[np.float64], shape: tuple[int, int], noise: float, rng: Any) -> NDArray[np.float64]:
    deviation = as_noise(noise)
    check_scalar(deviation, "noise is one standard deviation for all entries", noise)
    generator = _generator(rng)
    update = _in_random_bases(values, shape, generator)
    noisy: NDArray[np.float64] = update + float(deviation) * generator.standard_normal(shape)
    return noisy


def _in_random_bases(values: NDArray[np.float64], shape: tuple[int, int], generator: Any) -> NDArray[np.float64]:
    batch, rank = values.shape[:-1], values.shape[-1]
    U = np.linalg.qr(generator.standard_normal((*batch, shape[0], rank)))[0]
    V = np.linalg.qr(generator.standard_normal((*batch, shape[1], rank)))[0]
    update: NDArray[np.float64] = (U * values[..., np.newaxis, :]) @ np.swapaxes(V, -1, -2)
    return update
