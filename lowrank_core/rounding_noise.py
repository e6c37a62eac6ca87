"""What storing weights adds to their update: rounding noise, and where its singular values end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core._validation import as_matrices, check_finite
from lowrank_core.noise import noise_edge
from lowrank_core.spectra import Spectrum, energy_fractions, known_ranks

__all__ = ["Rounding", "StorageNoise", "storage_noise"]

# Steps 2^-31 of the largest and less add less than 1e-9 to the edge, and their squares would vanish in float32.
_NEGLIGIBLE = 31
# With more than half of the entries unchanged, rounding is no longer independent of the update: in simulated bfloat16
# pairs the rounding's largest singular value passes the edge from there on.
_MOST_UNCHANGED = 0.5
# Entries of the float64 copies that are made at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Rounding:
    """Noise that rounding to a stored dtype adds to an update.

    Attributes
    ----------
    noise : float
        Standard deviation, the root of the mean over all entries of ulp²/12.
    edge : float
        The largest singular value of rounding alone stays below it in 99 of 100 draws.

    Examples
    --------
    >>> from lowrank_core import Spectrum
    >>> from lowrank_core.rounding_noise import Rounding
    >>> rounding, s = Rounding(noise=0.1, edge=1.5), Spectrum([4.0, 2.0, 1.0], 21**0.5, (9, 3), complete=True)
    >>> rounding.rank(s), round(rounding.variance_below(s), 4)
    (2, 0.0476)
    """

    noise: float
    edge: float

    def rank(self, spectrum: Spectrum) -> int:
        """Count the singular values above the edge: at most one time in a hundred is one of them rounding.

        Parameters
        ----------
        spectrum : Spectrum
            Of one update. Those of its values that are below the edge cannot be told from rounding by their size.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If every value of an incomplete spectrum is above the edge.
        """
        rank, held = int(np.sum(spectrum.values > self.edge)), spectrum.values.shape[-1]
        if rank == held and not spectrum.complete:
            raise ValueError(
                f"all {held} leading values that this spectrum holds are above the edge {self.edge:.4g}; "
                f"ask for more with spectrum(update, rank=...), up to {min(spectrum.shape)}, or for all of them."
            )
        return rank

    def variance_below(self, spectrum: Spectrum) -> float:
        """Give the share of the update's variance in singular values that are not above the edge.

        Parameters
        ----------
        spectrum : Spectrum

        Returns
        -------
        float
            0 for a zero update.

        Raises
        ------
        ValueError
            As :meth:`rank`.
        """
        _, tails = energy_fractions(spectrum, known_ranks(spectrum, self.rank(spectrum)))
        return float(tails)


@dataclass(frozen=True)
class StorageNoise:
    """What is rounding in the difference of two stored matrices.

    Attributes
    ----------
    one_side : Rounding
        Only the tuned matrix was rounded: the tuning started from the base as it is stored, which is the usual case.
    two_sides : Rounding
        Both were: the tuning started from a finer copy of the base.
    unchanged : float
        Share of the entries that are equal in both.
    holds : bool
        Whether the model holds: rounding is independent of the update where that is about a step (ulp) of the stored
        numbers or more. Much smaller updates vanish in most entries; what remains is neither the update nor noise.
        False where more than half of the entries are unchanged, rows and columns unchanged as a whole set aside.
    """

    one_side: Rounding
    two_sides: Rounding
    unchanged: float
    holds: bool


def storage_noise(base: Any, tuned: Any) -> StorageNoise:
    r"""Estimate how much of the difference of two matrices is the rounding of their stored dtypes.

    A number stored with a step of ulp(w) is off by a random error of variance :math:`\mathrm{ulp}(w)^2 / 12`. Large
    weights have large steps, so rows and entries of different magnitude have errors of different size; the edge of the
    errors' singular values is that of :func:`~lowrank_core.noise.noise_edge` for exactly these variances.

    Parameters
    ----------
    base, tuned : array_like or torch.Tensor, shape (m, n)
        As they are stored: their dtypes say how they were rounded.

    Returns
    -------
    StorageNoise

    Raises
    ------
    ValueError
        If the two are not matrices of one shape, or an entry is not finite.

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
    >>> from lowrank_core.rounding_noise import storage_noise
    >>> base = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float16)
    >>> tuned = (base + update_with_spectrum([0.5, 0.4], (100, 80), rng=1)).astype(np.float16)
    >>> noise = storage_noise(base, tuned)
    >>> noise.holds, noise.one_side.rank(spectrum(tuned.astype(float) - base.astype(float)))
    (True, 2)
    """
    (before, before_dtype), (after, after_dtype) = as_matrices(base, "base"), as_matrices(tuned, "tuned")
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            f"base has shape {before.shape} and tuned {after.shape}; two matrices of one shape (m, n) are needed. "
            "Ask for the matrices of a stack one by one."
        )
    check_finite(before, "base")
    check_finite(after, "tuned")
    changed = _changed(before, after)
    rows, columns = np.any(changed, axis=1), np.any(changed, axis=0)
    moved = int(np.sum(changed))
    touched = int(np.sum(rows)) * int(np.sum(columns))
    if not moved:
        # Nothing to explain; the noise that would have been there is still known.
        rows, columns = ~rows, ~columns
    tuned_steps = _steps(after, after_dtype)
    one = _rounding([tuned_steps], rows, columns)
    two = _rounding([_steps(before, before_dtype), tuned_steps], rows, columns)
    return StorageNoise(one, two, 1 - moved / changed.size, touched - moved <= _MOST_UNCHANGED * touched)


def _changed(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    changed = np.empty(before.shape, dtype=np.bool_)
    for block in _blocks(before.shape):
        changed[block] = before[block].astype(np.float64) != after[block].astype(np.float64)
    return changed


def _steps(matrix: NDArray[Any], dtype: str) -> NDArray[np.int16]:
    """Exponent of each entry's step: ulp(w) = 2^(e − bits) for |w| in [2^(e−1), 2^e), and the smallest one below."""
    bits, smallest = FLOATS[dtype].significand_bits, FLOATS[dtype].subnormal_exponent
    steps = np.empty(matrix.shape, dtype=np.int16)
    for block in _blocks(matrix.shape):
        mantissa, exponents = np.frexp(matrix[block].astype(np.float64))
        steps[block] = np.where(mantissa == 0, smallest, np.maximum(exponents - bits, smallest))
    return steps


def _rounding(sides: list[NDArray[np.int16]], rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> Rounding:
    largest = max(int(np.max(steps)) for steps in sides)
    # Squared steps over the largest, of which float32 holds every power of two that matters.
    squares = np.ldexp(1.0, -2 * np.arange(_NEGLIGIBLE + 1)).astype(np.float32)
    squares[_NEGLIGIBLE] = 0.0
    profile = np.zeros(sides[0].shape, dtype=np.float32)
    for steps in sides:
        profile += squares[np.minimum(largest - steps, _NEGLIGIBLE)]
    unit = math.ldexp(math.sqrt(1 / 12), largest)
    noise = unit * math.sqrt(float(np.mean(profile, dtype=np.float64)))
    if not (np.all(rows) and np.all(columns)):
        profile = profile[rows][:, columns]
    return Rounding(noise, unit * noise_edge(profile)[1])


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    rows = max(1, _BLOCK // shape[1])
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]
