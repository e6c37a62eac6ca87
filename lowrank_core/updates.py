"""Updates in factored form, scaling · B @ A, and their weighted sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._linalg import scaled_by, scaled_to_unit
from lowrank_core._results import html_table, shape_text
from lowrank_core._scaled_update import ScaledUpdate, as_left_operand, as_right_operand, check_product
from lowrank_core._validation import (
    all_finite,
    as_factors,
    as_finite,
    as_real,
    broadcast_batches,
    check_finite,
    check_scalar,
)

__all__ = [
    "Components",
    "LowRankUpdate",
    "are_in_range",
    "assembled",
    "check_terms",
    "low_rank_sum",
    "unit_components",
    "with_factors",
]

Floats = NDArray[np.float64]

# Beyond 2^±500 a factor has no square in float64.
_LARGEST_EXPONENT = 500
# Largest entries of two factors, and a scaling, whose products stay in the range of float64.
_IN_RANGE = 2.0**-200, 2.0**200
# Of zero, below every exponent of float64.
_NO_EXPONENT = -(2**20)
# Up to this rank the norm of an update is computed for its one line of text.
_LARGEST_SHOWN = 256


@dataclass(frozen=True, eq=False, repr=False)
class LowRankUpdate(ScaledUpdate):
    r"""Low-rank update in factored form: :math:`\Delta = \gamma B A`.

    Parameters
    ----------
    B : array_like, shape (..., m, r)
        PEFT's ``lora_B``; NumPy array or CPU tensor, kept in its own dtype and not copied.
    A : array_like, shape (..., r, n)
        PEFT's ``lora_A``; its batch axes broadcast against those of `B`.
    scaling : float
        Effective scale γ, finite, of either sign.

    Attributes
    ----------
    shape : tuple of int
        Shape (..., m, n) of the dense update.
    dtype : str
        Coarser of the two dtypes in which the factors are stored.

    Raises
    ------
    ValueError
        If a factor is not a real matrix or stack, the ranks or batch axes disagree, or the scaling is not finite.

    See Also
    --------
    truncate : The best update of a rank.
    spectrum : Singular values through the r × r core of the factors; B·A is never formed.

    Notes
    -----
    Operators keep the factored form: ``c * u``, ``u / c`` and ``-u`` change the scaling alone, ``u + v`` and ``u - v``
    are :func:`low_rank_sum`, and ``u @ v`` is the product of two updates. ``u @ X`` and ``X @ u`` with an array are
    arrays. An array is never added to an update: call :meth:`to_dense` first.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import LowRankUpdate
    >>> update = LowRankUpdate(np.ones((4, 1)), np.ones((1, 3)), scaling=2.0)
    >>> update.rank, update.shape
    (1, (4, 3))
    >>> update.apply(np.array([1.0, 0.0, 1.0]))
    array([4., 4., 4., 4.])
    >>> update - 0.5 * update
    <LowRankUpdate 4 × 3: rank 2, γ = 1, norm 3.464, float64>
    >>> update @ np.ones((3, 2))
    array([[6., 6.],
           [6., 6.],
           [6., 6.],
           [6., 6.]])
    """

    B: NDArray[Any]
    A: NDArray[Any]
    scaling: float = 1.0
    shape: tuple[int, ...] = field(init=False, repr=False)
    dtype: str = field(init=False)

    def __post_init__(self) -> None:
        B, A, shape, dtype = as_factors(self.B, self.A)
        scaling = as_finite(self.scaling, "scaling")
        check_scalar(scaling, "scaling is one number for all updates of the stack", self.scaling)
        for name, value in (("B", B), ("A", A), ("scaling", float(scaling)), ("shape", shape), ("dtype", dtype)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        norm = "" if self.B.ndim + self.A.ndim > 4 or self.rank > _LARGEST_SHOWN else f", norm {_norm(self):.4g}"
        scale = f"γ = {self.scaling:.4g}"
        return f"<LowRankUpdate {shape_text(self.shape)}: rank {self.rank}, {scale}{norm}, {self.dtype}>"

    def _repr_html_(self) -> str:
        factors = [[name, shape_text(factor.shape), factor.dtype] for name, factor in (("B", self.B), ("A", self.A))]
        return html_table(repr(self), ["factor", "shape", "dtype"], factors)

    def __add__(self, other: Any) -> Any:
        """Return the sum in factored form, exactly, as :func:`low_rank_sum`."""
        return low_rank_sum([self, other]) if isinstance(other, LowRankUpdate) else super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        """Return the update itself for the 0 that ``sum`` begins with."""
        return self if isinstance(other, int) and other == 0 else super().__add__(other)

    def __sub__(self, other: Any) -> Any:
        return low_rank_sum([self, other], [1.0, -1.0]) if isinstance(other, LowRankUpdate) else super().__add__(other)

    def __matmul__(self, other: Any) -> Any:
        """Compute Δ · X in float64 without forming Δ; the product with a LowRankUpdate is one, of its rank."""
        if isinstance(other, LowRankUpdate):
            return _product(self, other)
        if isinstance(other, ScaledUpdate):
            return NotImplemented
        B, A, scale = _float64_factors(self)
        return scale * (B @ (A @ as_right_operand(other, self.shape)))

    def __rmatmul__(self, other: Any) -> NDArray[np.float64]:
        """Compute X · Δ in float64 without forming Δ."""
        B, A, scale = _float64_factors(self)
        return scale * ((as_left_operand(other, self.shape) @ B) @ A)

    @property
    def rank(self) -> int:
        """Number of columns of B and rows of A, an upper bound on the rank of the product."""
        return int(self.B.shape[-1])

    def to_dense(self) -> NDArray[np.float64]:
        """Return scaling · B @ A, shape (..., m, n), in float64."""
        B, A, scale = _float64_factors(self)
        return scale * (B @ A)

    def apply(self, x: ArrayLike) -> NDArray[np.float64]:
        """Compute x · Δᵀ, as ``torch.nn.Linear`` applies a weight, in O((m + n) r) for each vector.

        Parameters
        ----------
        x : array_like, shape (..., n)
            Vectors; their leading axes broadcast against the batch axes of the update.

        Returns
        -------
        ndarray, shape (..., m)

        Raises
        ------
        ValueError
            If the last axis of `x` is not n, or `x` is not real.
        """
        vectors = as_real(x, "x")
        if vectors.ndim == 0 or vectors.shape[-1] != self.A.shape[-1]:
            raise ValueError(f"x has shape {vectors.shape}; its last axis must be n = {self.A.shape[-1]}.")
        B, A, scale = _float64_factors(self)
        A_t, B_t = np.swapaxes(A, -1, -2), np.swapaxes(B, -1, -2)
        if len(self.shape) == 2:
            return scale * (vectors @ A_t @ B_t)
        return scale * np.asarray((vectors[..., np.newaxis, :] @ A_t @ B_t)[..., 0, :])

    def balanced(self) -> LowRankUpdate:
        r"""Return the same update with factors of equal size: :math:`\lVert b_i \rVert = \lVert a_i \rVert`.

        For a truncation (B = UΣ, A = Vᵀ) each factor gets √Σ, so that neither overflows in half precision and both
        have gradients of one size. Column i of B and row i of A are multiplied by reciprocal numbers.

        Returns
        -------
        LowRankUpdate
            Factors in float64; the product is unchanged to rounding.
        """
        B, A, B_exponents, A_exponents = unit_components(self)
        exponent = (B_exponents + A_exponents)[..., np.newaxis, np.newaxis]
        # An odd power of two has no half: its last factor goes to A before the norms are taken.
        A, half = scaled_by(A, exponent % 2), exponent // 2
        B_norm = np.linalg.norm(B, axis=-2, keepdims=True)
        A_norm = np.linalg.norm(A, axis=-2, keepdims=True)
        # A component that is zero in one factor is zero whatever the other is.
        nonzero = (B_norm > 0) & (A_norm > 0)
        ratio = np.sqrt(np.where(nonzero, A_norm, 0.0) / np.where(nonzero, B_norm, 1.0))
        inverse = np.sqrt(np.where(nonzero, B_norm, 0.0) / np.where(nonzero, A_norm, 1.0))
        return LowRankUpdate(
            np.swapaxes(scaled_by(B * ratio, half)[..., 0], -1, -2),
            scaled_by(A * inverse, half)[..., 0],
            self.scaling,
        )


def _norm(update: LowRankUpdate) -> float:
    """Return ‖γBA‖ for one line of text, of a core of triangles; NaN where an entry is, infinity beyond float64."""
    with np.errstate(all="ignore"):
        B, A, B_exponents, A_exponents = unit_components(update)
        is_term = B.any(axis=(-2, -1)) & A.any(axis=(-2, -1))
        exponents = np.where(is_term, B_exponents + A_exponents, _NO_EXPONENT)
        largest = np.max(exponents, initial=_NO_EXPONENT)
        scale, exponent = np.frexp(update.scaling)
        try:
            R_B, R_A = (np.asarray(np.linalg.qr(components[..., 0].T, mode="r")) for components in (B, A))
        except np.linalg.LinAlgError:
            return float("nan")
        core = np.ldexp(R_B, exponents - largest) @ R_A.T
        return float(np.ldexp(np.linalg.norm(core) * abs(scale), largest + exponent))


def _float64_factors(update: LowRankUpdate) -> tuple[Floats, Floats, float]:
    """Return B, A and γ of an update in float64, so that neither their product nor a part of it leaves its range.

    Where it could, powers of two are moved, which round nothing.
    """
    B, A = update.B.astype(np.float64), update.A.astype(np.float64)
    if are_in_range(B, A, np.asarray(update.scaling)) or not (all_finite(B) and all_finite(A)):
        return B, A, update.scaling
    scale, exponent = math.frexp(update.scaling)
    components = unit_components(update)
    scaled = components._replace(B_exponents=components.B_exponents + exponent)
    moved = assembled(scaled, "the update", "divide it by a power of two first")
    return moved.B, moved.A, scale


def are_in_range(*arrays: NDArray[Any]) -> bool:
    """Whether no product of two arrays and a number leaves the range of float64, by the largest entry of each."""
    least, most = _IN_RANGE
    largest = [max(float(array.max()), -float(array.min())) for array in arrays if array.size]
    return all(each == 0.0 or least <= each <= most for each in largest)


def _product(left: LowRankUpdate, right: LowRankUpdate) -> LowRankUpdate:
    """Return the product of two updates, of the rank of the right one, with factors in float64 and scaling 1."""
    check_product(left.shape, right.shape)
    for update, side in ((left, "left"), (right, "right")):
        check_finite(update.B, f"B of the {side} side")
        check_finite(update.A, f"A of the {side} side")
    one, other = unit_components(left), unit_components(right)
    core, core_exponents = np.frexp(one.A[..., 0] @ np.swapaxes(other.B[..., 0], -1, -2))
    # Each column of the new B is a sum over components of this update, of any size: it is taken over its largest term.
    is_term = (core != 0) & np.asarray(one.B.any(axis=(-2, -1)))[..., np.newaxis]
    terms = core_exponents + (one.B_exponents + one.A_exponents)[..., np.newaxis]
    exponents = np.where(is_term, terms, _NO_EXPONENT)
    largest = exponents.max(axis=-2, initial=_NO_EXPONENT)
    weights = np.ldexp(core, exponents - largest[..., np.newaxis, :])
    rows = np.swapaxes(weights, -1, -2) @ one.B[..., 0]
    product = Components(rows[..., np.newaxis], other.A, largest + other.B_exponents, other.A_exponents)
    scaled = with_factors(product, left.scaling, right.scaling)
    return assembled(scaled, "the product of the updates", "divide a factor by a power of two first")


class Components(NamedTuple):
    """Components b_i (..., r, m, 1) and a_i (..., r, n, 1) of a product, each divided by a power of two (..., r)."""

    B: Floats
    A: Floats
    B_exponents: NDArray[np.int64]
    A_exponents: NDArray[np.int64]


def unit_components(update: LowRankUpdate) -> Components:
    """Return the columns of B and the rows of A, each with its largest entry in [½, 1); without the scaling."""
    # Each with a power of two of its own: 1e200 has no square.
    B, B_exponents = scaled_to_unit(np.swapaxes(update.B, -1, -2)[..., np.newaxis])
    A, A_exponents = scaled_to_unit(update.A[..., np.newaxis])
    return Components(B, A, B_exponents, A_exponents)


def low_rank_sum(updates: Sequence[LowRankUpdate], weights: ArrayLike | None = None) -> LowRankUpdate:
    r"""Return a weighted sum of updates in factored form, exactly: their factors, stacked.

    .. math:: \sum_k w_k \gamma_k B_k A_k = [w_1 \gamma_1 B_1, w_2 \gamma_2 B_2, \ldots]\,[A_1; A_2; \ldots]

    Parameters
    ----------
    updates : sequence of LowRankUpdate, each of shape (..., m, n)
        At least one, of one shape; batch axes broadcast.
    weights : array_like, shape (len(updates),), optional
        Finite numbers of either sign; None for 1 each.

    Returns
    -------
    LowRankUpdate
        Of rank Σ r_k, with factors in float64 and scaling 1. Weights and scales are in B; where a factor would leave
        the range of float64, a power of two of its components moves to the other.

    Raises
    ------
    ValueError
        If an update is not a LowRankUpdate, has another shape or an entry that is not finite; if there is not one
        finite weight for each; if the sum does not fit float64.

    See Also
    --------
    truncate : The sum at a smaller rank.
    low_rank_hadamard : The entry-by-entry product.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import LowRankUpdate, low_rank_sum, truncate
    >>> first = LowRankUpdate(np.ones((3, 1)), np.ones((1, 4)))
    >>> second = LowRankUpdate(np.eye(3, 2), np.eye(2, 4), scaling=2.0)
    >>> merged = low_rank_sum([first, second], [0.5, 0.25])
    >>> merged.rank
    3
    >>> merged.to_dense()
    array([[1. , 0.5, 0.5, 0.5],
           [0.5, 1. , 0.5, 0.5],
           [0.5, 0.5, 0.5, 0.5]])
    """
    terms = {f"updates[{i}]": update for i, update in enumerate(updates)}
    if not terms:
        raise ValueError("updates is empty; at least one LowRankUpdate is needed.")
    check_terms(terms)
    factors = as_finite(np.ones(len(terms)) if weights is None else weights, "weights")
    if factors.shape != (len(terms),):
        raise ValueError(f"weights have shape {factors.shape}; one for each of the {len(terms)} updates is needed.")
    scaled = [
        with_factors(unit_components(term), w, term.scaling) for term, w in zip(terms.values(), factors, strict=True)
    ]
    joined = (_joined([components[k] for components in scaled], core) for k, core in enumerate((3, 3, 1, 1)))
    return assembled(Components(*joined), "the weighted sum", "take smaller weights")


def check_terms(terms: dict[str, Any]) -> None:
    """Check that updates are in factored form, finite, and of one shape."""
    for name, update in terms.items():
        if not isinstance(update, LowRankUpdate):
            raise ValueError(  # noqa: TRY004 - bad input is a ValueError throughout
                f"{name} is a {type(update).__name__}; a LowRankUpdate is accepted. Give its two factors, or its best "
                "update of a rank, truncate(update, rank)."
            )
    shapes = {name: update.shape for name, update in terms.items()}
    if len({shape[-2:] for shape in shapes.values()}) > 1:
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the shapes disagree: {described}; updates of one shape (m, n) are needed.")
    broadcast_batches({name: shape[:-2] for name, shape in shapes.items()})
    for name, update in terms.items():
        check_finite(update.B, f"B of {name}")
        check_finite(update.A, f"A of {name}")


def with_factors(components: Components, *factors: float) -> Components:
    """Multiply the components of B by numbers whose product may be beyond float64."""
    mantissas, exponents = np.frexp(np.array(factors))
    return components._replace(
        B=components.B * np.prod(mantissas), B_exponents=components.B_exponents + int(np.sum(exponents))
    )


def _joined(parts: list[NDArray[Any]], core: int) -> NDArray[Any]:
    """Concatenate parts (..., r, ...) along the first of their last `core` axes; batch axes broadcast."""
    batch = np.broadcast_shapes(*(part.shape[: part.ndim - core] for part in parts))
    return np.concatenate(
        [np.broadcast_to(part, (*batch, *part.shape[part.ndim - core :])) for part in parts], axis=len(batch)
    )


def assembled(components: Components, what: str, advice: str) -> LowRankUpdate:
    """Return the product of components, their powers of two where they are as far as float64 has the range."""
    B, A, B_exponents, A_exponents = components
    largest = max(np.max(np.abs(exponents), initial=0) for exponents in (B_exponents, A_exponents))
    if largest > _LARGEST_EXPONENT:
        # A component that is zero in one factor is zero whatever the other is.
        is_zero = ~(B.any(axis=(-2, -1)) & A.any(axis=(-2, -1)))
        exponents = np.where(is_zero, 0, B_exponents + A_exponents)
        is_far = is_zero | (np.abs(B_exponents) > _LARGEST_EXPONENT) | (np.abs(A_exponents) > _LARGEST_EXPONENT)
        B_exponents = np.where(is_far, exponents // 2, B_exponents)
        A_exponents = np.where(is_far, exponents - exponents // 2, A_exponents)
    with np.errstate(over="ignore", under="ignore"):
        columns = np.ldexp(B, B_exponents[..., np.newaxis, np.newaxis])[..., 0]
        rows = np.ldexp(A, A_exponents[..., np.newaxis, np.newaxis])[..., 0]
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        raise ValueError(f"{what} does not fit float64 (beyond 1.8e308); {advice}.")
    return LowRankUpdate(np.ascontiguousarray(np.swapaxes(columns, -1, -2)), rows)
