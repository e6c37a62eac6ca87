"""Low-rank updates as two factors: scaling · B @ A."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._linalg import scaled_to_unit
from lowrank_core._validation import as_factors, as_finite, as_real, check_scalar

__all__ = ["LowRankUpdate"]


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
        # Each component is scaled by a power of two of its own: 1e200 has no square.
        B, B_exponent = scaled_to_unit(np.swapaxes(self.B, -1, -2)[..., np.newaxis])
        A, A_exponent = scaled_to_unit(self.A[..., np.newaxis])
        exponent = (B_exponent + A_exponent)[..., np.newaxis, np.newaxis]
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
