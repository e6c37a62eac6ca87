"""Rounding noise of stored weights: what storing adds to an update, and where its singular values end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core._validation import as_pair
from lowrank_core.noise import Edge, edge_of_variances
from lowrank_core.ranks import count_passing
from lowrank_core.spectra import Spectrum, check_spectrum, energy_fractions, known_ranks

__all__ = ["NoiseLevel", "RoundingNoise", "rounding_noise"]

# Steps 2^-31 of the largest and less add less than 1e-9 to the edge, and their squares would vanish in float32.
_NEGLIGIBLE = 31
# With more than half of the entries unchanged, rounding is no longer independent of the update: in simulated bfloat16
# pairs the rounding's largest singular value passes the edge from there on.
_MOST_UNCHANGED = 0.5
# What two roundings to float32, of a number and of its step, may differ by.
_SAME_NUMBER = 2.0**-21
# Entries taken at a time, which stay in a core's own cache as float32.
_BLOCK = 1 << 16
_FLOAT32_FRACTION_BITS, _FLOAT32_BIAS = 23, 127


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
            If it is not a Spectrum of one update, or every value of an incomplete spectrum is above the edge.
        """
        check_spectrum(spectrum)
        if spectrum.values.ndim != 1:
            raise ValueError(
                f"spectrum is a batch of spectra, of shape {spectrum.values.shape}; that of one update is needed. Pass "
                "the spectrum of each of its matrices by itself."
            )
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

    @property
    def base_is_coarser(self) -> bool:
        """Whether the base's rounding errors are larger than the tuned matrix's, by a factor of √3 or more.

        It is so where a quantised base is compared with weights in 16 bits. If these were tuned from a finer copy of
        the base, the difference is mostly the base's rounding, which only `two_sides` accounts for.
        """
        return self.two_sides.std >= 2 * self.one_side.std


def rounding_noise(base: Any, tuned: Any, *, base_step: Any = None, tuned_step: Any = None) -> RoundingNoise:
    r"""Compute how much of the difference of two matrices is the rounding that they were stored with.

    A number stored with a step of ulp(w) is off by a random error of variance :math:`\mathrm{ulp}(w)^2 / 12`. Large
    weights have large steps, so rows and entries of different magnitude have errors of different size; the edge of the
    errors' singular values is that of :func:`~lowrank_core.noise.noise_edge` for exactly these variances.

    Parameters
    ----------
    base, tuned : array_like or torch.Tensor, shape (m, n)
        As they are stored: their dtypes say how they were rounded.
    base_step, tuned_step : array_like, shape (m, n), optional
        The step of rounding at each entry, where the dtype does not say it because a matrix was quantised: of 8 bits
        with a scale, the step of the stored number times the scale. Shapes that broadcast to (m, n) are accepted: one
        number, or (m, 1) for a step in each row. None: the ulp of the dtype.

    Returns
    -------
    RoundingNoise

    Raises
    ------
    ValueError
        If the two are not matrices of one shape, an entry is not finite, or a step is negative or not finite.

    See Also
    --------
    lowrank_core.rank_above_noise : For noise of one size, known or unknown.
    lowrank_core.noise.noise_edge : The theory of the edge.

    Notes
    -----
    Rows and columns in which nothing has changed are left out of the edge: the difference is zero there, rounding
    included. For entries of about one size the edge on σ² is

    .. math:: s^2 \left[(\sqrt m + \sqrt n)^2 + 2.02 (\sqrt m + \sqrt n)(1/\sqrt m + 1/\sqrt n)^{1/3}\right].

    Where steps are given, an entry counts as unchanged if it is the same multiple of the two steps, and the difference
    is less than a step: two quantised matrices with scales of their own may differ in every entry and have the same
    stored numbers.

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

    Rounded to multiples of 1/16 of no dtype, which the original is compared with:

    >>> fine = np.random.default_rng(2).standard_normal((100, 80))
    >>> rounded = np.round(16 * fine) / 16
    >>> rounding_noise(fine, rounded, tuned_step=1 / 16).one_side.rank(spectrum(rounded - fine))
    0
    """
    (before, before_dtype), (after, after_dtype) = as_pair(base, tuned)
    changed = _changed_entries(before, after)
    rows, columns = np.any(changed, axis=1), np.any(changed, axis=0)
    count = int(np.sum(changed))
    compared = rows, columns
    if not count:
        # Two equal matrices: the noise that a change would have had is still known.
        rows, columns = ~rows, ~columns
    base_steps = _as_steps(base_step, "base_step", before, before_dtype)
    tuned_steps = _as_steps(tuned_step, "tuned_step", after, after_dtype)
    one, two = _noise_levels(base_steps, tuned_steps, rows, columns)
    if base_step is not None or tuned_step is not None:
        count = changed.size - _count_same_numbers(before, after, base_steps, tuned_steps)
    return RoundingNoise(one, two, 1 - count / changed.size, applies_to(count, *compared))


def applies_to(changed: int, rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> bool:
    """Whether at most half of the entries are unchanged, of those in rows and columns where something changed."""
    compared = int(np.sum(rows)) * int(np.sum(columns))
    return compared - changed <= _MOST_UNCHANGED * compared


def code_steps(levels: NDArray[np.floating[Any]], limit: float) -> NDArray[np.float32]:
    r"""Compute the step of each level of a non-uniform code: that of a uniform one with an error of the same variance.

    Numbers of up to `limit` in size are rounded to the nearest level. Those that become a level extend by a below it
    and by b above it, half of the way to the next; spread evenly, their errors have the mean square
    :math:`(a^3 + b^3) / 3(a + b)`, which is :math:`\mathrm{step}^2 / 12` where a = b = step/2. (Gersho and Gray,
    "Vector Quantization and Signal Compression", 1992, section 5.2.)
    """
    distinct, index = np.unique(levels.astype(np.float64), return_inverse=True)
    half = np.diff(distinct) / 2
    below = np.concatenate([[max(limit + distinct[0], 0.0)], half])
    above = np.concatenate([half, [max(limit - distinct[-1], 0.0)]])
    width = below + above
    squares = np.divide(below**3 + above**3, width, out=np.zeros_like(width), where=width > 0)
    steps: NDArray[np.float32] = (2 * np.sqrt(squares)).astype(np.float32)[index]
    return steps


def ulps(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the distance of each entry of a matrix to the next number of its dtype."""
    return np.ldexp(1.0, step_exponents(matrix, matrix.dtype.name))


def _changed_entries(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    changed = np.empty(before.shape, dtype=np.bool_)
    # Either has every number of both dtypes, which NumPy would compare one at a time.
    common = np.float64 if np.float64 in (before.dtype, after.dtype) else np.float32
    for block in _blocks(before.shape):
        np.not_equal(before[block].astype(common), after[block].astype(common), out=changed[block])
    return changed


def step_exponents(matrix: NDArray[Any], dtype: str) -> NDArray[np.int16]:
    """Compute the exponent of each entry's step: ulp(w) = 2^(e − bits) for |w| in [2^(e−1), 2^e), or subnormal.

    The entries are numbers of the dtype, or of a finer one that they are in the array's.
    """
    own, stored = FLOATS[matrix.dtype.name], FLOATS[dtype]
    unsigned = np.dtype(f"u{matrix.dtype.itemsize}").newbyteorder(matrix.dtype.byteorder)
    fraction_bits, bias = own.significand_bits - 1, 1 - own.min_exponent
    largest_field = (1 << (8 * matrix.dtype.itemsize - own.significand_bits)) - 1
    steps = np.empty(matrix.shape, dtype=np.int16)
    for block in _blocks(matrix.shape):
        # From the bits: frexp takes twenty times as long. The field of a subnormal number, or of zero, is 0.
        fields = matrix[block].view(unsigned) >> fraction_bits
        fields &= largest_field
        steps[block] = fields
        steps[block] -= bias + stored.significand_bits - 1
        np.maximum(steps[block], stored.subnormal_exponent, out=steps[block])
    return steps


class _Steps(NamedTuple):
    """The step of each entry: given ones, or those of numbers of a dtype, which are powers of two."""

    array: NDArray[Any]
    dtype: str | None

    def at(self, block: slice) -> NDArray[Any]:
        """Return the steps of some rows, as exponents where they are powers of two."""
        return self.array[block] if self.dtype is None else step_exponents(self.array[block], self.dtype)

    def in_float64(self, block: slice) -> NDArray[np.float64]:
        """Return the steps of some rows."""
        steps = self.at(block)
        return steps.astype(np.float64) if self.dtype is None else np.ldexp(1.0, steps)

    @property
    def largest_exponent(self) -> int:
        """An exponent e with steps of at most 2^e."""
        if self.dtype is not None:
            return int(np.max(step_exponents(_extremes(self.array), self.dtype)))
        largest = float(np.max(self.array))
        return math.frexp(largest)[1] if largest else FLOATS["float64"].subnormal_exponent


def _extremes(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return numbers of a matrix, one of which is the largest in size, as (1, 2)."""
    signed, unsigned = (
        np.dtype(f"{kind}{matrix.dtype.itemsize}").newbyteorder(matrix.dtype.byteorder) for kind in "iu"
    )
    # As integers the largest is the largest positive number, or, without a sign, the largest negative one.
    bits = [matrix.view(signed).max().view(unsigned), matrix.view(unsigned).max()]
    return np.array([bits], unsigned).view(matrix.dtype)


def _as_steps(step: Any, name: str, matrix: NDArray[Any], dtype: str) -> _Steps:
    if step is None:
        return _Steps(matrix, dtype)
    steps = np.asarray(step)
    if steps.dtype.kind not in "fiu" or not (np.isfinite(steps).all() and np.all(steps >= 0)):
        raise ValueError(f"{name} contains what is not a step: steps are finite numbers that are not negative")
    try:
        floats = steps.astype(np.float64, copy=False) if steps.dtype.kind != "f" else steps
        return _Steps(np.broadcast_to(floats, matrix.shape), None)
    except ValueError:
        raise ValueError(
            f"{name} has shape {steps.shape}, which does not broadcast to the matrices' {matrix.shape}; give one step, "
            "or one for each row, column or entry"
        ) from None


def _count_same_numbers(before: NDArray[Any], after: NDArray[Any], base_steps: _Steps, tuned_steps: _Steps) -> int:
    """Count the entries whose stored numbers are the same, as equal multiples of their steps, whatever their scales."""
    count = 0
    for block in _blocks(before.shape):
        first, second = before[block].astype(np.float64), after[block].astype(np.float64)
        first_step, second_step = (steps.in_float64(block) for steps in (base_steps, tuned_steps))
        multiples_differ = np.abs(first * second_step - second * first_step)
        is_same = multiples_differ <= _SAME_NUMBER * np.abs(second) * first_step
        is_same &= np.abs(second - first) < np.minimum(first_step, second_step)
        count += int(np.count_nonzero(is_same | (first == second)))
    return count


def _noise_levels(
    base: _Steps, tuned: _Steps, rows: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> tuple[NoiseLevel, NoiseLevel]:
    """Compute the noise of the tuned side's rounding, and that of both sides'; in one array of the matrix's size."""
    variances = np.empty(tuned.array.shape, dtype=np.float32)
    own = tuned.largest_exponent
    for block in _blocks(variances.shape):
        variances[block] = relative_squares(tuned.at(block), own)
    one, edge = _noise_level(variances, own, rows, columns)
    largest = max(own, base.largest_exponent)
    scale = np.float32(math.ldexp(1.0, 2 * (own - largest)))
    for block in _blocks(variances.shape):
        variances[block] *= scale
        variances[block] += relative_squares(base.at(block), largest)
    return one, _noise_level(variances, largest, rows, columns, edge)[0]


def _noise_level(
    variances: NDArray[np.float32],
    largest: int,
    rows: NDArray[np.bool_],
    columns: NDArray[np.bool_],
    like: Edge | None = None,
) -> tuple[NoiseLevel, Edge]:
    """Compute the level of errors from the squares of their steps over 4^largest, and their edge."""
    unit = math.ldexp(math.sqrt(1 / 12), largest)
    std = unit * math.sqrt(float(np.mean(variances, dtype=np.float64)))
    if not (np.all(rows) and np.all(columns)):
        variances = variances[rows][:, columns]
    edge = edge_of_variances(variances, like)
    return NoiseLevel(std, unit * edge.with_fluctuation), edge


def relative_squares(steps: NDArray[Any], largest: int) -> NDArray[np.float32]:
    """Return the squares of steps over 2^largest, of which float32 has every one that matters."""
    if steps.dtype.kind == "i":
        # The bits of powers of two, made in place: a table of their squares takes ten times as long.
        fields = np.minimum(np.subtract(largest, steps, dtype=np.int16), _NEGLIGIBLE)
        fields *= -2
        fields += _FLOAT32_BIAS
        fields *= fields != _FLOAT32_BIAS - 2 * _NEGLIGIBLE
        bits = fields.astype(np.int32)
        bits <<= _FLOAT32_FRACTION_BITS
        relative: NDArray[np.float32] = bits.view(np.float32)
        return relative
    return np.square(np.ldexp(steps.astype(np.float64), -largest)).astype(np.float32)


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    rows = max(1, _BLOCK // shape[1])
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]
