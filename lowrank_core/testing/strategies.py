"""Strategies that draw updates, spectra and factors from drawn singular values."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise ImportError('lowrank_core.testing needs Hypothesis: pip install "lowrank_core[testing]"') from error

from lowrank_core._dtypes import FLOATS, WRITTEN_FLOATS, as_dtype
from lowrank_core.kronecker_updates import KroneckerUpdate
from lowrank_core.spectra import Spectrum
from lowrank_core.updates import LowRankUpdate

__all__ = [
    "DTYPES",
    "FACTOR_KINDS",
    "KINDS",
    "LAYOUTS",
    "kronecker_updates",
    "low_rank_updates",
    "ranks_for",
    "spectra",
    "stacks_of_updates",
    "updates",
]

Floats = NDArray[np.float64]

#: Kinds of spectrum. Graded ones fall over 300 orders of magnitude where the dtype has them.
KINDS = ("ordinary", "zero", "repeated", "clustered", "deficient", "graded", "subnormal", "huge")

#: Memory layouts. "strided" is every second row and column of a larger array; "F" has the batch axes innermost.
LAYOUTS = ("C", "F", "strided", "read-only")

#: Kinds of factors. "unbalanced" components are large in one factor and small in the other, "padded" ones are zero,
#: "cancelled" ones nearly cancel each other.
FACTOR_KINDS = ("ordinary", "unbalanced", "deficient", "padded", "cancelled")

#: Dtypes that matrices have unless others are given; bfloat16 is drawn where ml_dtypes is installed.
DTYPES = tuple(name for name in WRITTEN_FLOATS if name != "bfloat16" or importlib.util.find_spec("ml_dtypes"))


@st.composite
def _singular_values(draw: st.DrawFn, count: int, kinds: Sequence[str], dtype: str) -> tuple[Floats, int]:
    """Draw descending values between 0 and 1, and the power of two to multiply them by."""
    kind = draw(st.sampled_from(kinds))
    lowest, highest = FLOATS[dtype].min_exponent, FLOATS[dtype].max_exponent
    drawn = draw(st.lists(st.floats(2.0**-10, 1.0), min_size=count, max_size=count))
    values = np.sort(np.array(drawn))[::-1]
    exponent = 0
    if kind == "zero":
        values = np.zeros(count)
    elif kind == "repeated":
        values = np.where(values >= values[draw(st.integers(0, count - 1))], values[0], values[-1])
    elif kind == "clustered":
        values = values[0] * (1.0 - 2.0 ** -draw(st.integers(20, 50)) * np.arange(count))
    elif kind == "deficient":
        values[draw(st.integers(1, count)) :] = 0.0
    elif kind == "graded":
        fall = draw(st.integers(1, min(1000, highest - lowest)))
        values = np.exp2(-fall * np.arange(count) / max(count - 1, 1))
        exponent = draw(st.integers(lowest + fall, highest - 3)) if lowest + fall < highest - 3 else 0
    elif kind == "subnormal":
        exponent = lowest - draw(st.integers(0, lowest - FLOATS[dtype].subnormal_exponent))
    elif kind == "huge":
        # The norm, at most √count·σ₁, must still fit.
        exponent = highest - count.bit_length()
    return values, exponent


@st.composite
def _basis(draw: st.DrawFn, side: int, count: int) -> Floats:
    """Draw orthonormal columns, shape (side, count)."""
    # Shrinks to coordinates, and so a matrix to a diagonal one, which is easy to read.
    kind = draw(st.sampled_from(["coordinates", "Helmert", "random"]))
    if kind == "random":
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return np.linalg.qr(rng.standard_normal((side, count)))[0]
    if kind == "Helmert":
        # (1, 1, 1, 1 …), (1, −1, 0, 0 …), (1, 1, −2, 0 …) and so on: from row r on the first r columns are constant.
        columns = np.triu(np.ones((side, count)), 1) - np.eye(side, count) * np.arange(count)
        columns[:, 0] = 1.0
        columns /= np.linalg.norm(columns, axis=0)
        return columns
    return np.eye(side, count)


@st.composite
def _matrix(draw: st.DrawFn, shape: tuple[int, int], kinds: Sequence[str], dtype: str) -> NDArray[Any]:
    values, exponent = draw(_singular_values(min(shape), kinds, dtype))
    U, V = (draw(_basis(side, min(shape))) for side in shape)
    matrix: NDArray[Any] = np.ldexp((U * values) @ V.T, exponent).astype(as_dtype(dtype))
    return matrix


def _laid_out(array: NDArray[Any], layout: str) -> NDArray[Any]:
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        *batch, m, n = array.shape
        larger = np.zeros((*batch, 2 * m, 2 * n), dtype=array.dtype)
        larger[..., ::2, ::2] = array
        return larger[..., ::2, ::2]
    copy = np.array(array, order="C")
    copy.flags.writeable = layout != "read-only"
    return copy


def _sides(max_side: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, max_side), st.integers(1, max_side))


@st.composite
def updates(
    draw: st.DrawFn,
    *,
    max_side: int = 8,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[str] = KINDS,
    layouts: Sequence[str] = LAYOUTS,
) -> NDArray[Any]:
    """Draw an update of shape (m, n) from drawn singular values in coordinate, Helmert or random bases.

    With a Helmert basis [1]_ a matrix of rank r has equal rows, or columns, from the r-th on, and one of rank 1 equal
    entries, so that where it cancels its rounding errors are exactly zero, or exactly repeated.

    Parameters
    ----------
    max_side : int
        Largest m and n.
    dtypes, kinds, layouts : sequence of str
        From :data:`DTYPES`, :data:`KINDS` and :data:`LAYOUTS`.

    Returns
    -------
    SearchStrategy of ndarray
        Shrinks towards a small diagonal float64 matrix in C order.

    See Also
    --------
    stacks_of_updates : With batch axes.
    low_rank_updates : In factored form.

    References
    ----------
    .. [1] Lancaster, "The Helmert Matrices", Am. Math. Monthly 72 (1965) 4.

    Examples
    --------
    >>> from hypothesis import given
    >>> from lowrank_core import spectrum
    >>> from lowrank_core.testing import updates
    >>> @given(updates(max_side=4, kinds=["zero"]))
    ... def test_zero_has_no_norm(update):
    ...     assert spectrum(update).norm == 0
    >>> test_zero_has_no_norm()
    """
    dtype = draw(st.sampled_from(dtypes))
    matrix = draw(_matrix(draw(_sides(max_side)), kinds, dtype))
    return _laid_out(matrix, draw(st.sampled_from(layouts)))


@st.composite
def stacks_of_updates(
    draw: st.DrawFn,
    *,
    max_side: int = 6,
    max_items: int = 3,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[str] = KINDS,
    layouts: Sequence[str] = LAYOUTS,
) -> NDArray[Any]:
    """Draw a stack of updates, shape (..., m, n), each with a spectrum of its own kind.

    Parameters
    ----------
    max_side : int
        Largest m and n.
    max_items : int
        Largest length of a batch axis; there are one or two.
    dtypes, kinds, layouts : sequence of str
        From :data:`DTYPES`, :data:`KINDS` and :data:`LAYOUTS`; one dtype and layout for the whole stack.

    Returns
    -------
    SearchStrategy of ndarray

    See Also
    --------
    updates : One matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given
    >>> from lowrank_core import spectrum
    >>> from lowrank_core.testing import stacks_of_updates
    >>> @given(stacks_of_updates(max_side=3))
    ... def test_a_stack_changes_nothing(stack):
    ...     assert np.array_equal(spectrum(stack).values[0], spectrum(stack[0]).values)
    >>> test_a_stack_changes_nothing()
    """
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(_sides(max_side))
    batch = draw(hnp.array_shapes(max_dims=2, max_side=max_items))
    items = [draw(_matrix(shape, kinds, dtype)) for _ in range(math.prod(batch))]
    return _laid_out(np.array(items).reshape(*batch, *shape), draw(st.sampled_from(layouts)))


@st.composite
def spectra(
    draw: st.DrawFn, *, max_side: int = 8, kinds: Sequence[str] = KINDS, complete: bool | None = True
) -> Spectrum:
    """Draw the spectrum of one update.

    Parameters
    ----------
    max_side : int
        Largest m and n.
    kinds : sequence of str
        From :data:`KINDS`.
    complete : bool, optional
        Whether the values account for the whole norm; None draws either. A complete one may have fewer than min(m, n).

    Returns
    -------
    SearchStrategy of Spectrum

    See Also
    --------
    updates : The matrix itself.

    Examples
    --------
    >>> from hypothesis import given
    >>> from lowrank_core import stable_rank
    >>> from lowrank_core.testing import spectra
    >>> @given(spectra(kinds=["ordinary", "repeated"]))
    ... def test_stable_rank_is_at_most_the_rank(spectrum):
    ...     assert stable_rank(spectrum) <= len(spectrum.values) * (1 + 1e-15)
    >>> test_stable_rank_is_at_most_the_rank()
    """
    shape = draw(_sides(max_side))
    values, exponent = draw(_singular_values(draw(st.integers(1, min(shape))), kinds, "float64"))
    whole = draw(st.booleans()) if complete is None else complete
    # The norm of an incomplete spectrum is at least that of its values.
    rest = 0.0 if whole else draw(st.floats(0.0, 1.0))
    norm = math.sqrt(math.fsum([*values**2, rest * values[-1] ** 2]))
    return Spectrum(np.ldexp(values, exponent), np.array(math.ldexp(norm, exponent)), shape, whole)


@st.composite
def low_rank_updates(
    draw: st.DrawFn,
    *,
    max_side: int = 8,
    max_rank: int = 4,
    max_dims: int = 0,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[str] = FACTOR_KINDS,
    layouts: Sequence[str] = LAYOUTS,
) -> LowRankUpdate:
    """Draw an update in factored form, of rank 1 to `max_rank` (which may be more than min(m, n)).

    Parameters
    ----------
    max_side, max_rank : int
        Largest m and n, and largest r.
    max_dims : int
        Largest number of batch axes; those of the two factors broadcast against each other.
    dtypes, kinds, layouts : sequence of str
        From :data:`DTYPES`, :data:`FACTOR_KINDS` and :data:`LAYOUTS`; each factor has a dtype and a layout of its own.

    Returns
    -------
    SearchStrategy of LowRankUpdate

    See Also
    --------
    updates : A dense matrix.

    Examples
    --------
    >>> from hypothesis import given
    >>> from lowrank_core.testing import assert_same_update, low_rank_updates
    >>> @given(low_rank_updates(dtypes=["float64"], kinds=["ordinary"]))
    ... def test_balancing_keeps_the_update(update):
    ...     assert_same_update(update.balanced(), update, c=100)
    >>> test_balancing_keeps_the_update()
    """
    shapes = draw(
        hnp.mutually_broadcastable_shapes(
            signature="(m,r),(r,n)->(m,n)", min_dims=0, max_dims=max_dims, min_side=1, max_side=max(max_side, max_rank)
        ).filter(lambda drawn: max(drawn.result_shape[-2:]) <= max_side and drawn.input_shapes[0][-1] <= max_rank)
    )
    B_shape, A_shape = shapes.input_shapes
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, A = rng.standard_normal(B_shape), rng.standard_normal(A_shape)
    rank = B_shape[-1]
    kind, names = draw(st.sampled_from(kinds)), [draw(st.sampled_from(dtypes)) for _ in "BA"]
    half = (rank + 1) // 2
    if kind == "unbalanced":
        # A float16 normal reaches from 2^-14 to 2^15, and a standard normal seldom beyond 4.
        reach = 9 if "float16" in names else 40
        powers = np.array(draw(st.lists(st.integers(-reach, reach), min_size=rank, max_size=rank)))
        B, A = np.ldexp(B, powers), np.ldexp(A, -powers[:, np.newaxis])
    elif kind == "deficient":
        B[..., half:] = B[..., : rank - half]
    elif kind == "padded":
        B[..., half:] = 0.0
        A[..., half:, :] = 0.0
    elif kind == "cancelled":
        B[..., half:] = B[..., : rank - half]
        A[..., half:, :] = -A[..., : rank - half, :] * (1.0 + 2.0 ** -draw(st.integers(1, 20)))
    left, right = (
        _laid_out(factor.astype(as_dtype(name)), draw(st.sampled_from(layouts)))
        for factor, name in zip((B, A), names, strict=True)
    )
    return LowRankUpdate(left, right, draw(st.sampled_from([1.0, 0.25, -2.0, 1e-3, 16.0])))


@st.composite
def kronecker_updates(
    draw: st.DrawFn, *, max_side: int = 3, dtypes: Sequence[str] = DTYPES, layouts: Sequence[str] = LAYOUTS
) -> KroneckerUpdate:
    """Draw a Kronecker product of two sides, each a matrix or a product of two factors.

    Parameters
    ----------
    max_side : int
        Largest m and n of a side.
    dtypes, layouts : sequence of str
        From :data:`DTYPES` and :data:`LAYOUTS`; each side has its own.

    Returns
    -------
    SearchStrategy of KroneckerUpdate
        Its matrices are of those :data:`KINDS` whose products fit float64.

    See Also
    --------
    updates, low_rank_updates : What its sides are drawn from.

    Examples
    --------
    >>> from hypothesis import given
    >>> from lowrank_core.testing import kronecker_updates
    >>> @given(kronecker_updates())
    ... def test_the_dense_update_has_the_documented_shape(update):
    ...     assert update.to_dense().shape == update.shape
    >>> test_the_dense_update_has_the_documented_shape()
    """
    matrices = updates(max_side=max_side, dtypes=dtypes, kinds=KINDS[:5], layouts=layouts)
    side = matrices | low_rank_updates(max_side=max_side, max_rank=max_side, dtypes=dtypes, layouts=layouts)
    return KroneckerUpdate(draw(side), draw(side), draw(st.sampled_from([1.0, -2.0, 1e-3])))


def ranks_for(update: Any) -> st.SearchStrategy[int]:
    """Draw a legal rank of an update, of its factors, or of its spectrum.

    Parameters
    ----------
    update : array_like, LowRankUpdate, KroneckerUpdate or Spectrum
        Of shape (..., m, n).

    Returns
    -------
    SearchStrategy of int
        From 0 to min(m, n), or to the number of values of a spectrum that is not complete.

    See Also
    --------
    updates, low_rank_updates, kronecker_updates, spectra : What a rank is drawn for.

    Examples
    --------
    >>> from hypothesis import given, strategies as st
    >>> from lowrank_core import truncate
    >>> from lowrank_core.testing import assert_eckart_young, ranks_for, updates
    >>> @given(st.data(), updates(max_side=4, dtypes=["float64"]))
    ... def test_truncation_is_the_best(data, update):
    ...     rank = data.draw(ranks_for(update))
    ...     assert_eckart_young(update, truncate(update, rank), rank)
    >>> test_truncation_is_the_best()
    """
    if isinstance(update, Spectrum) and not update.complete:
        return st.integers(0, update.values.shape[-1])
    return st.integers(0, min(update.shape[-2:]))
