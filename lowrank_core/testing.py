"""Hypothesis strategies and verifiers for spectra and low-rank updates, for your own tests too.

The strategies build matrices from drawn singular values, so that they meet what breaks a decomposition: zero,
repeated, clustered, deficient and steeply graded spectra, subnormal numbers, numbers near overflow, in each dtype and
memory layout. The verifiers bound residuals as LAPACK's own tests do, by c·max(m, n)·eps·‖Δ‖.

Examples
--------
A property of one's own routine takes three lines:

>>> import numpy as np
>>> from hypothesis import given
>>> from lowrank_core.testing import assert_spectrum, updates
>>> @given(updates(dtypes=["float64"]))
... def test_my_svd(update):
...     assert_spectrum(update, np.linalg.svd(update, compute_uv=False))
>>> test_my_svd()
"""

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

from lowrank_core.arrays import as_matrices, scaled_to_unit
from lowrank_core.factors import LowRankUpdate
from lowrank_core.spectra import Spectrum

__all__ = [
    "DTYPES",
    "FACTOR_KINDS",
    "KINDS",
    "LAYOUTS",
    "assert_eckart_young",
    "assert_same_update",
    "assert_spectrum",
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
#: "cancelled" ones nearly annul each other.
FACTOR_KINDS = ("ordinary", "unbalanced", "deficient", "padded", "cancelled")

#: Dtypes of matrices; bfloat16 is drawn where ml_dtypes is installed.
DTYPES = ("float64", "float32", "float16", *(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else []))

# Exponents of the least normal and the largest power of two, and the bits of the fraction.
_RANGES = {
    "float64": (-1022, 1023, 52),
    "float32": (-126, 127, 23),
    "float16": (-14, 15, 10),
    "bfloat16": (-126, 127, 7),
}
_EPS64 = 2.0**-52


def _dtype(name: Any) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


@st.composite
def _singular_values(draw: st.DrawFn, count: int, kinds: Sequence[str], dtype: str) -> tuple[Floats, int]:
    """Descending values within 0 … 1, and the power of two to multiply them with."""
    kind = draw(st.sampled_from(kinds))
    lowest, highest, bits = _RANGES[dtype]
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
        exponent = lowest - draw(st.integers(0, bits))
    elif kind == "huge":
        # The norm, at most √count·σ₁, must still fit.
        exponent = highest - count.bit_length()
    return values, exponent


@st.composite
def _matrix(draw: st.DrawFn, shape: tuple[int, int], kinds: Sequence[str], dtype: str) -> NDArray[Any]:
    values, exponent = draw(_singular_values(min(shape), kinds, dtype))
    # Shrinks to a diagonal matrix, which one can read.
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        U = np.linalg.qr(rng.standard_normal((shape[0], min(shape))))[0]
        V = np.linalg.qr(rng.standard_normal((shape[1], min(shape))))[0]
    else:
        U, V = np.eye(shape[0], min(shape)), np.eye(shape[1], min(shape))
    matrix: NDArray[Any] = np.ldexp((U * values) @ V.T, exponent).astype(_dtype(dtype))
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
    """Draw an update of shape (m, n) by its spectrum, in random or coordinate bases.

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
        Longest batch axis; there are one or two.
    dtypes, kinds, layouts : sequence of str
        From :data:`DTYPES`, :data:`KINDS` and :data:`LAYOUTS`; one dtype and layout for the whole stack.

    Returns
    -------
    SearchStrategy of ndarray

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
        Whether the values account for the whole norm; None draws either. A complete one may hold fewer than min(m, n).

    Returns
    -------
    SearchStrategy of Spectrum

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
    # Whatever is missing, the norm is at least that of the values in hand.
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
    """Draw an update as its factors, of rank 1 to `max_rank` (which may be more than min(m, n)).

    Parameters
    ----------
    max_side, max_rank : int
        Largest m and n, and largest r.
    max_dims : int
        Most batch axes; those of the two factors broadcast against each other.
    dtypes, kinds, layouts : sequence of str
        From :data:`DTYPES`, :data:`FACTOR_KINDS` and :data:`LAYOUTS`; each factor has a dtype and a layout of its own.

    Returns
    -------
    SearchStrategy of LowRankUpdate

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
    kind = draw(st.sampled_from(kinds))
    half = (rank + 1) // 2
    if kind == "unbalanced":
        # A float16 normal reaches from 2^-14 to 2^15, and a standard normal seldom beyond 4.
        powers = np.array(draw(st.lists(st.integers(-9, 9), min_size=rank, max_size=rank)))
        B, A = np.ldexp(B, powers), np.ldexp(A, -powers[:, np.newaxis])
    elif kind == "deficient":
        B[..., half:] = B[..., : rank - half]
    elif kind == "padded":
        B[..., half:] = 0.0
        A[..., half:, :] = 0.0
    elif kind == "cancelled":
        B[..., half:] = B[..., : rank - half]
        A[..., half:, :] = -A[..., : rank - half, :] * (1.0 + 2.0 ** -draw(st.integers(1, 20)))
    stored = [
        _laid_out(factor.astype(_dtype(draw(st.sampled_from(dtypes)))), draw(st.sampled_from(layouts)))
        for factor in (B, A)
    ]
    return LowRankUpdate(stored[0], stored[1], draw(st.sampled_from([1.0, 0.25, -2.0, 1e-3, 16.0])))


def ranks_for(of: Any) -> st.SearchStrategy[int]:
    """Draw a rank that can be asked of an update, of its factors, or of its spectrum.

    Parameters
    ----------
    of : array_like, LowRankUpdate or Spectrum

    Returns
    -------
    SearchStrategy of int
        From 0 to min(m, n), or to the number of values of a spectrum that is not complete.

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
    if isinstance(of, Spectrum) and not of.complete:
        return st.integers(0, of.values.shape[-1])
    return st.integers(0, min(of.shape[-2:]))


def assert_spectrum(update: Any, values: Any, *, c: float = 10.0, eps: float = _EPS64) -> None:
    r"""Hold singular values against those that LAPACK finds in float64.

    :math:`|\hat\sigma_i - \sigma_i| \le c \max(m, n)\,(\epsilon\,\sigma_1 + 2^{-1074})`; the last term, the spacing of
    subnormal numbers, matters to nothing else.

    Parameters
    ----------
    update : array_like, torch.Tensor or LowRankUpdate, shape (..., m, n)
    values : array_like, shape (..., k), or Spectrum
        The leading k singular values, descending. The norm of a Spectrum is held to the same bound, relative to itself.
    c : float
        The constant. LAPACK's own tests allow 30, for a spectrum and its vectors together.
    eps : float
        Rounding unit of the arithmetic that found the values: 2⁻⁵² for float64, 2⁻²³ for float32.

    Raises
    ------
    AssertionError
        If a value is out of bound, or values are not descending or are negative; the message gives the worst.

    References
    ----------
    Anderson et al., "LAPACK Users' Guide", 3rd ed., §4.9; LAPACK Working Note 41 for the test ratios.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.testing import assert_spectrum
    >>> assert_spectrum(np.diag([3.0, 4.0]), [4.0, 3.0])
    """
    scaled, exponents = _scaled(update)
    norm = None
    if isinstance(values, Spectrum):
        values, norm = values.values, np.ldexp(values.norm, -exponents[..., 0, 0])
    found = np.ldexp(np.asarray(values, dtype=np.float64), -exponents[..., 0])
    exact = np.linalg.svd(scaled, compute_uv=False)
    if found.shape[:-1] != exact.shape[:-1] or found.shape[-1] > exact.shape[-1]:
        raise AssertionError(f"{found.shape} singular values do not belong to updates of shape {scaled.shape}")
    if np.any(found < 0) or np.any(found[..., 1:] > found[..., :-1]):
        raise AssertionError("singular values are not negative, and descend along the last axis")
    bound = _bound(scaled, exponents, exact[..., 0], c, eps)[..., np.newaxis]
    _assert_within(np.abs(found - exact[..., : found.shape[-1]]), bound, "a singular value")
    if norm is not None:
        true_norm = np.linalg.norm(scaled, axis=(-2, -1))
        _assert_within(np.abs(norm - true_norm), _bound(scaled, exponents, true_norm, c, eps), "the norm")


def assert_same_update(actual: Any, expected: Any, *, c: float = 10.0, eps: float = _EPS64) -> None:
    r"""Hold one update against another.

    :math:`\lVert \hat\Delta - \Delta \rVert_F \le c \max(m, n)\,(\epsilon\,\lVert \Delta \rVert_F + 2^{-1074})`. With
    U Σ Vᵀ as the first, this is the residual of a decomposition in LAPACK's normalised form.

    Parameters
    ----------
    actual, expected : array_like, torch.Tensor or LowRankUpdate, shape (..., m, n)
    c, eps : float
        As in :func:`assert_spectrum`.

    Raises
    ------
    AssertionError
        If the shapes differ or the residual is out of bound, for any matrix of a stack.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.testing import assert_same_update
    >>> U, values, Vt = np.linalg.svd(np.arange(6.0).reshape(2, 3), full_matrices=False)
    >>> assert_same_update((U * values) @ Vt, np.arange(6.0).reshape(2, 3))
    """
    exact, exponents = _scaled(expected)
    found = np.ldexp(_dense(actual), -exponents)
    if found.shape != exact.shape:
        raise AssertionError(f"an update of shape {found.shape} is not one of shape {exact.shape}")
    bound = _bound(exact, exponents, np.linalg.norm(exact, axis=(-2, -1)), c, eps)
    _assert_within(np.linalg.norm(found - exact, axis=(-2, -1)), bound, "the update")


def assert_eckart_young(update: Any, approximation: Any, rank: int, *, c: float = 10.0, eps: float = _EPS64) -> None:
    r"""Hold an approximation of rank r against the best there is, in the Frobenius and the spectral norm.

    With :math:`\tau = c \max(m, n)\,(\epsilon\,\lVert \Delta \rVert_F + 2^{-1074})`: its rank is at most r, that is
    :math:`\sigma_{r+1}(X) \le \tau`; :math:`\lVert \Delta - X \rVert_F \le \sqrt{T_r} + \tau`; and
    :math:`\lVert \Delta - X \rVert_2 \le \sigma_{r+1}(\Delta) + \tau`.

    Parameters
    ----------
    update, approximation : array_like, torch.Tensor or LowRankUpdate, shape (..., m, n)
    rank : int
    c, eps : float
        As in :func:`assert_spectrum`.

    Raises
    ------
    AssertionError
        If the shapes differ or a bound is broken, for any matrix of a stack.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211; Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.testing import assert_eckart_young
    >>> assert_eckart_young(np.diag([3.0, 4.0]), np.diag([0.0, 4.0]), rank=1)
    """
    exact, exponents = _scaled(update)
    found = np.ldexp(_dense(approximation), -exponents)
    if found.shape != exact.shape:
        raise AssertionError(f"an approximation of shape {found.shape} is not one of an update of shape {exact.shape}")
    slack = _bound(exact, exponents, np.linalg.norm(exact, axis=(-2, -1)), c, eps)
    tail = np.linalg.svd(exact, compute_uv=False)[..., rank:]
    beyond = np.linalg.svd(found, compute_uv=False)[..., rank:]
    left = np.linalg.svd(exact - found, compute_uv=False)
    _assert_within(_largest(beyond), slack, f"singular value {rank + 1} of the approximation")
    _assert_within(
        np.linalg.norm(left, axis=-1), np.linalg.norm(tail, axis=-1) + slack, "the Frobenius norm of the rest"
    )
    _assert_within(_largest(left), _largest(tail) + slack, "the spectral norm of the rest")


def _largest(values: NDArray[Any]) -> NDArray[Any]:
    largest: NDArray[Any] = np.max(values, axis=-1, initial=0.0)
    return largest


def _dense(update: Any) -> Floats:
    return update.to_dense() if isinstance(update, LowRankUpdate) else as_matrices(update)[0].astype(np.float64)


def _scaled(update: Any) -> tuple[Floats, NDArray[np.int64]]:
    return scaled_to_unit(_dense(update))


def _bound(scaled: Floats, exponents: NDArray[np.int64], size: NDArray[Any], c: float, eps: float) -> NDArray[Any]:
    spacing = np.ldexp(1.0, -1074 - exponents[..., 0, 0])
    bound: NDArray[Any] = c * max(scaled.shape[-2:]) * (eps * size + spacing)
    return bound


def _assert_within(error: NDArray[Any], bound: NDArray[Any], what: str) -> None:
    # Negated, so that a NaN does not pass.
    broken = ~(error <= bound)
    if not np.any(broken):
        return
    where = np.unravel_index(int(np.argmax(broken)), np.shape(broken))
    place = f" at index {tuple(int(i) for i in where)}" if where else ""
    off, allowed = np.asarray(error)[where], np.broadcast_to(bound, np.shape(error))[where]
    raise AssertionError(
        f"{what}{place}: {off:.3g} where {allowed:.3g} is allowed, in units of the power of two above the largest entry"
    )
