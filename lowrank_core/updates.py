"""Updates in structured form: two factors, scaling · B @ A, and Kronecker products, scaling · (L ⊗ R)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._dtypes import coarsest
from lowrank_core._linalg import Dense, Product, scaled_to_unit
from lowrank_core._validation import as_factors, as_finite, as_matrices, as_real, broadcast_batches, check_scalar

__all__ = ["Components", "KroneckerUpdate", "LowRankUpdate", "sides", "unit_components"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
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

    @property
    def rank(self) -> int:
        """Number of columns of B and rows of A, an upper bound on the rank of the product."""
        return int(self.B.shape[-1])

    def to_dense(self) -> NDArray[np.float64]:
        """Return scaling · B @ A, shape (..., m, n), in float64."""
        return self.scaling * (self.B.astype(np.float64) @ self.A.astype(np.float64))

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
        A_t = np.swapaxes(self.A.astype(np.float64), -1, -2)
        B_t = np.swapaxes(self.B.astype(np.float64), -1, -2)
        if len(self.shape) == 2:
            return self.scaling * (vectors @ A_t @ B_t)
        applied: NDArray[np.float64] = self.scaling * (vectors[..., np.newaxis, :] @ A_t @ B_t)[..., 0, :]
        return applied

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
        A, half = np.ldexp(A, exponent % 2), exponent // 2
        B_norm = np.linalg.norm(B, axis=-2, keepdims=True)
        A_norm = np.linalg.norm(A, axis=-2, keepdims=True)
        # A component that is zero in one factor is zero whatever the other is.
        nonzero = (B_norm > 0) & (A_norm > 0)
        ratio = np.sqrt(np.where(nonzero, A_norm, 0.0) / np.where(nonzero, B_norm, 1.0))
        inverse = np.sqrt(np.where(nonzero, B_norm, 0.0) / np.where(nonzero, A_norm, 1.0))
        return LowRankUpdate(
            np.swapaxes(np.ldexp(B * ratio, half)[..., 0], -1, -2),
            np.ldexp(A * inverse, half)[..., 0],
            self.scaling,
        )


@dataclass(frozen=True, eq=False)
class KroneckerUpdate:
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

    @property
    def rank(self) -> int:
        """Product of the ranks that both sides can have, an upper bound on the rank of the update."""
        return math.prod(
            min(*side.shape[-2:], *((side.rank,) if isinstance(side, LowRankUpdate) else ()))
            for side in (self.left, self.right)
        )

    def to_dense(self) -> NDArray[np.float64]:
        """Return scaling · (L ⊗ R), shape (..., m·p, n·q), in float64."""
        left, right = _dense(self.left), _dense(self.right)
        blocks = left[..., :, np.newaxis, :, np.newaxis] * right[..., np.newaxis, :, np.newaxis, :]
        return self.scaling * blocks.reshape(self.shape)

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
        rows = _times(self.left, vectors.reshape(*vectors.shape[:-1], n, q))
        applied = np.swapaxes(_times(self.right, np.swapaxes(rows, -1, -2)), -1, -2)
        return self.scaling * applied.reshape(*applied.shape[:-2], self.shape[-2])


def _as_side(side: Any, name: str) -> tuple[Any, str]:
    """Return one side of a Kronecker product, a LowRankUpdate or an array (..., m, n), and its stored dtype."""
    return (side, side.dtype) if isinstance(side, LowRankUpdate) else as_matrices(side, name)


def _dense(side: Any) -> Floats:
    return side.to_dense() if isinstance(side, LowRankUpdate) else side.astype(np.float64)


def _times(side: Any, columns: Floats) -> Floats:
    """Compute the product of one side with columns (..., n, k)."""
    if isinstance(side, LowRankUpdate):
        product: Floats = side.scaling * (side.B.astype(np.float64) @ (side.A.astype(np.float64) @ columns))
        return product
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
