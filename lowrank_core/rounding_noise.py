"""Rounding noise of stored weights: what storing adds to an update, and where its singular values end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core._validation import as_pair
from lowrank_core.noise import noise_edge
from lowrank_core.ranks import count_passing
from lowrank_core.spectra import Spectrum, energy_fractions, known_ranks

__all__ = ["NoiseLevel", "RoundingNoise", "rounding_noise"]

# Steps 2^-31 of the largest and less add less than 1e-9 to the edge, and their squares would vanish in float32.
_NEGLIGIBLE = 31
# With more than half of the entries unchanged, rounding is no longer independent of the update: in simulated bfloat16
# pairs the rounding's largest singular value passes the edge from there on.
_MOST_UNCHANGED = 0.5
# Entries of a float64 copy: 8 MB at a time, however large the matrix.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class NoiseLevel:
    """Size of the noise that rounding adds to an update, and the edge of its singular values.

    :func:`rounding_noise` estimates it from two stored matrices.

    Attributes
    ----------
    std : float
        Standard deviation, the root of the mean over all entries of ulp²/12.
    edge : float
        Bound on the largest singular value of rounding alone, which 99 of 100 draws stay below.

    Examples
    --------
    >>> from lowrank_core import Spectrum
    >>> from lowrank_core.rounding_noise import NoiseLevel
    >>> level, s = NoiseLevel(std=0.1, edge=1.5), Spectrum([4.0, 2.0, 1.0], 21**0.5, (9, 3), complete=True)
    >>> level.rank(s), round(level.variance_below(s), 4)
    (2, 0.0476)
    """

    std: float
    edge: float

    def rank(self, spectrum: Spectrum) -> int:
        """Return the number of singular values above the edge; in 1 of 100 updates one of them is rounding.

        Parameters
        ----------
        spectrum : Spectrum
            Of one update. Its values below the edge cannot be told from rounding by their size.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If every value of an incomplete spectrum is above the edge.
        """
        return int(count_passing(spectrum, spectrum.values > self.edge, f"the edge {self.edge:.4g}"))

    def variance_below(self, spectrum: Spectrum) -> float:
        """Return the fraction of the update's variance in singular values that are not above the edge.

        Parameters and errors are those of :meth:`rank`.

        Returns
        -------
        float
            0 for a zero update.
        """
        _, tails = energy_fractions(spectrum, known_ranks(spectrum, self.rank(spectrum)))
        return float(tails)


@dataclass(frozen=True)
class RoundingNoise:
    """Rounding noise in the difference of two stored matrices, as :func:`rounding_noise` estimates it.

    Attributes
    ----------
    one_side : NoiseLevel
        Only the tuned matrix was rounded: the tuning started from the base as it is stored, which is the usual case.
    two_sides : NoiseLevel
        Both were rounded: the tuning started from a finer copy of the base.
    unchanged : float
        Fraction of the entries that are equal in both.
    applies : bool
        Whether rounding is independent of the update, as the two levels assume: it is where the update is about a step
        (ulp) of the stored numbers or more. Much smaller updates vanish in most entries, and what remains is neither
        the update nor noise. False where more than half of the entries are unchanged, apart from entirely unchanged
        rows and columns.
    """

    one_side: NoiseLevel
    two_sides: NoiseLevel
    unchanged: float
    applies: bool


def rounding_noise(base: Any, tuned: Any) -> RoundingNoise:
    r"""Compute how much of the difference of two matrices is the rounding of their stored dtypes.

    A number stored with a step of ulp(w) is off by a random error of variance :math:`\mathrm{ulp}(w)^2 / 12`. Large
    weights have large steps, so rows and entries of different magnitude have errors of different size; the edge of the
    errors' singular values is that of :func:`~lowrank_core.noise.noise_edge` for exactly these variances.

    Parameters
    ----------
    base, tuned : array_like or torch.Tensor, shape (m, n)
        As they are stored: their dtypes say how they were rounded.

    Returns
    -------
    RoundingNoise

    Raises
    ------
    ValueError
        If the two are not matrices of one shape, or an entry is not finite.

    See Also
    --------
    lowrank_core.rank_above_noise : For noise of one size, known or unknown.
    lowrank_core.noise.noise_edge : The theory of the edge.

    Notes
    -----
    Rows and columns in which nothing has changed are left out of the edge: the difference is zero there, rounding
    included. For entries of about one size the edge on σ² is

    .. math:: s^2 \left[(\sqrt m + \sqrt n)^2 + 2.02 (\sqrt m + \sqrt n)(1/\sqrt m + 1/\sqrt n)^{1/3}\right].

    References
    ----------
    Widrow and Kollár, "Quantization Noise", Cambridge 2008, ch. 4, for the variance and for its independence of what is
    rounded.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum, update_with_spectrum
    >>> from lowrank_core.rounding_noise import rounding_noise
    >>> base = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float16)
    >>> tuned = (base + update_with_spectrum([0.5, 0.4], (100, 80), rng=1)).astype(np.float16)
    >>> noise = rounding_noise(base, tuned)
    >>> noise.applies, noise.one_side.rank(spectrum(tuned.astype(float) - base.astype(float)))
    (True, 2)
    """
    (before, before_dtype), (after, after_dtype) = as_pair(base, tuned)
    changed = _changed_entries(before, after)
    rows, columns = np.any(changed, axis=1), np.any(changed, axis=0)
    count = int(np.sum(changed))
    compared = int(np.sum(rows)) * int(np.sum(columns))
    if not count:
        # Two equal matrices: the noise that a change would have had is still known.
        rows, columns = ~rows, ~columns
    tuned_steps = _steps(after, after_dtype)
    one = _noise_level([tuned_steps], rows, columns)
    two = _noise_level([_steps(before, before_dtype), tuned_steps], rows, columns)
    return RoundingNoise(one, two, 1 - count / changed.size, compared - count <= _MOST_UNCHANGED * compared)


def _changed_entries(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    changed = np.empty(before.shape, dtype=np.bool_)
    for block in _blocks(before.shape):
        changed[block] = before[block].astype(np.float64) != after[block].astype(np.float64)
    return changed


def _steps(matrix: NDArray[Any], dtype: str) -> NDArray[np.int16]:
    """Compute the exponent of each entry's step: ulp(w) = 2^(e − bits) for |w| in [2^(e−1), 2^e), or subnormal."""
    bits, smallest = FLOATS[dtype].significand_bits, FLOATS[dtype].subnormal_exponent
    steps = np.empty(matrix.shape, dtype=np.int16)
    for block in _blocks(matrix.shape):
        mantissa, exponents = np.frexp(matrix[block].astype(np.float64))
        steps[block] = np.where(mantissa == 0, smallest, np.maximum(exponents - bits, smallest))
    return steps


def _noise_level(sides: list[NDArray[np.int16]], rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> NoiseLevel:
    largest = max(int(np.max(steps)) for steps in sides)
    # Squared steps over the largest, of which float32 has every power of two that matters.
    squares = np.ldexp(1.0, -2 * np.arange(_NEGLIGIBLE + 1)).astype(np.float32)
    squares[_NEGLIGIBLE] = 0.0
    variances = np.zeros(sides[0].shape, dtype=np.float32)
    for steps in sides:
        variances += squares[np.minimum(largest - steps, _NEGLIGIBLE)]
    unit = math.ldexp(math.sqrt(1 / 12), largest)
    std = unit * math.sqrt(float(np.mean(variances, dtype=np.float64)))
    if not (np.all(rows) and np.all(columns)):
        variances = variances[rows][:, columns]
    return NoiseLevel(std, unit * noise_edge(variances)[1])


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    rows = max(1, _BLOCK // shape[1])
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]
