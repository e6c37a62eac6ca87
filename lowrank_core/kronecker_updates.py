"""Updates that are Kronecker products, scaling · (L ⊗ R)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._dtypes import coarsest
from lowrank_core._linalg import Dense, Product, scaled_to_unit
from lowrank_core._results import html_table, shape_text
from lowrank_core._scaled_update import ScaledUpdate, as_left_operand, as_right_operand, check_product
from lowrank_core._validation import all_finite, as_finite, as_matrices, as_real, broadcast_batches, check_scalar
from lowrank_core.updates import LowRankUpdate, are_in_range

__all__ = ["KroneckerUpdate", "sides"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerUpdate(ScaledUpdate):
    r"""Update that is a Kronecker product: :math:`\Delta = \gamma\,(L \otimes R)`.

    Its singular values are all products :math:`\lvert\gamma\rvert\,\sigma_i(L)\,\sigma_j(R)` [1]_, so that
    :func:`spectrum` and :func:`truncate` decompose the two sides, and nothing of the size of Δ is formed.

    Parameters
    ----------
    left : array_like or LowRankUpdate, shape (..., m, n)
        L, LyCORIS' ``lokr_w1``, or the product of its ``lokr_w1_a`` and ``lokr_w1_b``; not copied.
    right : array_like or LowRankUpdate, shape (..., p, q)
        R, as ``lokr_w2``; its batch axes broadcast against those of `left`.
    scaling : float
        Effective scale γ, finite, of either sign.

    Attributes
    ----------
    shape : tuple of int
        Shape (..., m·p, n·q) of the dense update.
    dtype : str
        Coarser of the two dtypes in which the sides are stored.

    Raises
    ------
    ValueError
        If a side is not a real matrix or stack, the batch axes disagree, or the scaling is not finite.

    See Also
    --------
    spectrum : All singular values, from those of both sides.
    truncate : The best LowRankUpdate of a rank.

    Notes
    -----
    Operators with numbers change the scaling alone. ``K @ X`` and ``X @ K`` are arrays for an array X, and
    LowRankUpdates for one.

    A convolution's update of LyCORIS is ``kron(w1, w2)`` over the first two axes of w2 (p, q, kh, kw). Flattened to
    (m·p, n·q·kh·kw), it is the Kronecker product of w1 and ``w2.reshape(p, -1)``.

    References
    ----------
    .. [1] Horn and Johnson, "Topics in Matrix Analysis", theorem 4.2.15.
    .. [2] Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
       arXiv:2309.14859, for LoKr.

    Examples
    --------
    >>> from lowrank_core import KroneckerUpdate, spectrum
    >>> update = KroneckerUpdate([[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]], scaling=0.5)
    >>> update.shape, update.rank
    ((4, 4), 4)
    >>> spectrum(update).values
    array([3. , 1.5, 1. , 0.5])
    >>> update @ [1.0, 0.0, 0.0, 0.0]
    array([0. , 1.5, 0. , 0. ])
    """

    left: Any
    right: Any
    scaling: float = 1.0
    shape: tuple[int, ...] = field(init=False, repr=False)
    dtype: str = field(init=False)

    def __post_init__(self) -> None:
        (left, left_dtype), (right, right_dtype) = _as_side(self.left, "left"), _as_side(self.right, "right")
        batch = broadcast_batches({"left": left.shape[:-2], "right": right.shape[:-2]})
        shape = (*batch, left.shape[-2] * right.shape[-2], left.shape[-1] * right.shape[-1])
        scaling = as_finite(self.scaling, "scaling")
        check_scalar(scaling, "scaling is one number for all updates of the stack", self.scaling)
        fields = {"left": left, "right": right, "scaling": float(scaling), "shape": shape}
        for name, value in (fields | {"dtype": coarsest(left_dtype, right_dtype)}).items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        scale = f"γ = {self.scaling:.4g}"
        return f"<KroneckerUpdate {shape_text(self.shape)}: rank up to {self.rank}, {scale}, {self.dtype}>"

    def _repr_html_(self) -> str:
        parts = [[name, shape_text(side.shape), side.dtype] for name, side in (("L", self.left), ("R", self.right))]
        return html_table(repr(self), ["side", "shape", "dtype"], parts)

    def __matmul__(self, other: Any) -> Any:
        """Compute Δ · X in float64 without forming Δ; the product with a LowRankUpdate is one, of that update's A."""
        if isinstance(other, LowRankUpdate):
            check_product(self.shape, other.shape)
            return LowRankUpdate(self @ other.B, other.A, other.scaling)
        X = as_right_operand(other, self.shape)
        if X.ndim == 1:
            return self.apply(X)
        # Batch axes broadcast from the last one, so that the axis of columns comes before as many as the update has.
        vectors = X.reshape(*(1,) * (len(self.shape) - X.ndim), *X.shape)
        return np.moveaxis(self.apply(np.moveaxis(vectors, -1, 0)), 0, -1)

    def __rmatmul__(self, other: Any) -> Any:
        """Compute X · Δ in float64 without forming Δ; the product with a LowRankUpdate is one, of that update's B."""
        if isinstance(other, LowRankUpdate):
            check_product(other.shape, self.shape)
            return LowRankUpdate(other.B, other.A @ self, other.scaling)
        X = as_left_operand(other, self.shape)
        transposed = KroneckerUpdate(_transposed(self.left), _transposed(self.right), self.scaling)
        return transposed.apply(X) if X.ndim == 1 else np.swapaxes(transposed @ np.swapaxes(X, -1, -2), -1, -2)

    @property
    def rank(self) -> int:
        """Product of the ranks that both sides can have, an upper bound on the rank of the update."""
        return math.prod(
            min(*side.shape[-2:], *((side.rank,) if isinstance(side, LowRankUpdate) else ()))
            for side in (self.left, self.right)
        )

    def to_dense(self) -> NDArray[np.float64]:
        """Return scaling · (L ⊗ R), shape (..., m·p, n·q), in float64."""
        left_side, right_side = _dense(self.left), _dense(self.right)
        if are_in_range(left_side, right_side, np.asarray(self.scaling)):
            return self.scaling * _all_pairs(np.multiply, left_side, right_side).reshape(self.shape)
        # Exponents apart, so that a product of entries that fits float64 is not lost on the way to it.
        (left, left_exponents), (right, right_exponents) = np.frexp(left_side), np.frexp(right_side)
        scale, exponent = np.frexp(self.scaling)
        blocks = scale * _all_pairs(np.multiply, left, right)
        exponents = _all_pairs(np.add, left_exponents, right_exponents) + exponent
        return np.asarray(np.ldexp(blocks, exponents)).reshape(self.shape)

    def apply(self, x: ArrayLike) -> NDArray[np.float64]:
        """Compute x · Δᵀ, as ``torch.nn.Linear`` applies a weight: L X Rᵀ for each vector, as a matrix X (n, q).

        Parameters
        ----------
        x : array_like, shape (..., n·q)
            Vectors; their leading axes broadcast against the batch axes of the update.

        Returns
        -------
        ndarray, shape (..., m·p)

        Raises
        ------
        ValueError
            If the last axis of `x` is not n·q, or `x` is not real.
        """
        vectors = as_real(x, "x")
        n, q = self.left.shape[-1], self.right.shape[-1]
        if vectors.ndim == 0 or vectors.shape[-1] != n * q:
            raise ValueError(f"x has shape {vectors.shape}; its last axis must be n·q = {n * q}.")
        (left, left_exponents), (right, right_exponents) = _in_range(self.left), _in_range(self.right)
        scale, exponent = np.frexp(self.scaling)
        rows = _times(left, vectors.reshape(*vectors.shape[:-1], n, q))
        columns = np.swapaxes(scale * _times(right, np.swapaxes(rows, -1, -2)), -1, -2)
        exponents = np.asarray(left_exponents + right_exponents + exponent)[..., np.newaxis]
        return np.asarray(np.ldexp(columns.reshape(*columns.shape[:-2], self.shape[-2]), exponents))


def _as_side(side: Any, name: str) -> tuple[Any, str]:
    """Return one side of a Kronecker product, a LowRankUpdate or an array (..., m, n), and its stored dtype."""
    return (side, side.dtype) if isinstance(side, LowRankUpdate) else as_matrices(side, name)


def _transposed(side: Any) -> Any:
    """Return the transpose of one side."""
    if isinstance(side, LowRankUpdate):
        return LowRankUpdate(np.swapaxes(side.A, -1, -2), np.swapaxes(side.B, -1, -2), side.scaling)
    return np.swapaxes(side, -1, -2)


def _all_pairs(combine: np.ufunc, left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Combine each entry of matrices (..., m, n) with each of others (..., p, q), shape (..., m, p, n, q)."""
    return np.asarray(combine(left[..., :, np.newaxis, :, np.newaxis], right[..., np.newaxis, :, np.newaxis, :]))


def _dense(side: Any) -> Floats:
    return side.to_dense() if isinstance(side, LowRankUpdate) else side.astype(np.float64)


def _in_range(side: Any) -> tuple[Any, NDArray[np.int64]]:
    """Return one side over powers of two (...), and these, so that products with it stay in the range of float64."""
    if isinstance(side, LowRankUpdate) or are_in_range(side) or not all_finite(side):
        return side, np.zeros((), np.int64)
    return scaled_to_unit(side)


def _times(side: Any, columns: Floats) -> Floats:
    """Compute the product of one side with columns (..., n, k)."""
    if isinstance(side, LowRankUpdate):
        return np.asarray(side @ columns)
    return np.asarray(side.astype(np.float64) @ columns)


def sides(update: KroneckerUpdate) -> tuple[Dense | Product, Dense | Product]:
    """Return both sides as the engine decomposes them."""
    left, right = (
        Product(side.B, side.A, side.scaling, side.dtype)
        if isinstance(side, LowRankUpdate)
        else Dense(side, side.dtype.name)
        for side in (update.left, update.right)
    )
    return left, right
