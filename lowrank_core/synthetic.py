"""Updates to try things on: a low-rank "style" update, a full-rank "facts" update, any spectrum in random bases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._validation import as_noise, as_rank, as_real, as_shape, check_scalar

__all__ = ["facts_update", "style_update", "update_with_spectrum"]


def style_update(d: int, k: int, *, true_rank: int = 4, noise: float = 0.01, rng: Any) -> NDArray[np.float64]:
    """Make an update of low rank: singular values linspace(5, 0.5, true_rank) in random bases, plus noise.

    Parameters
    ----------
    d, k : int
        Rows and columns.
    true_rank : int
        Rank without the noise, from 0 to min(d, k).
    noise : float
        Standard deviation of the Gaussian noise on each entry.
    rng : int, numpy.random.Generator, SeedSequence or RandomState
        A seed or a generator. A ``RandomState`` draws in the order of the article's own program, to the last digit.

    Returns
    -------
    ndarray, shape (d, k)

    Raises
    ------
    ValueError
        If a size is not positive, the rank is out of range, or the noise is negative or not finite.

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
    """Make an update of full rank: singular values linspace(3, 0.5, min(d, k)) in random bases, plus noise.

    Parameters, returns and errors are those of :func:`style_update`.

    Examples
    --------
    >>> from lowrank_core import facts_update, rank_for_variance, spectrum
    >>> int(rank_for_variance(spectrum(facts_update(64, 64, rng=0)), 0.9))
    41
    """
    rows, columns = as_shape(d, k)
    return _noisy(np.linspace(3.0, 0.5, min(rows, columns)), (rows, columns), noise, rng)


def update_with_spectrum(values: ArrayLike, shape: tuple[int, int], *, rng: Any) -> NDArray[np.float64]:
    """Make an update with these singular values between random orthonormal bases.

    Parameters
    ----------
    values : array_like, shape (..., p)
        Singular values, in any order; p at most min(shape), the missing ones are zero. Leading axes make a stack.
    shape : (int, int)
        Rows and columns.
    rng : int, numpy.random.Generator, SeedSequence or RandomState

    Returns
    -------
    ndarray, shape (..., m, n)
        Its singular values are `values` to float64 rounding.

    Raises
    ------
    ValueError
        If a value is negative or not finite, there are too many, or the shape is not two positive sizes.

    Examples
    --------
    >>> from lowrank_core import spectrum, update_with_spectrum
    >>> spectrum(update_with_spectrum([3.0, 1.0], (5, 4), rng=0)).values.round(12) + 0.0
    array([3., 1., 0., 0.])
    """
    rows, columns = as_shape(*shape)
    sizes = as_real(values, "values")
    if sizes.ndim == 0 or sizes.shape[-1] > min(rows, columns):
        raise ValueError(
            f"values of shape {sizes.shape} do not fit an update of {rows} × {columns}: at most min(m, n)."
        )
    if not np.all(np.isfinite(sizes) & (sizes >= 0)):
        raise ValueError("values must be finite and not negative: they are singular values.")
    return _in_random_bases(sizes, (rows, columns), _generator(rng))


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
