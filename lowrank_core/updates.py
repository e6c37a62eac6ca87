"""A low-rank update as its two factors: the update is scaling · B @ A."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._dtypes import coarsest
from lowrank_core._linalg import scaled_to_unit
from lowrank_core._validation import as_factor, as_finite, as_real, check_scalar

__all__ = ["LowRankUpdate"]


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    r"""An update held as two factors: :math:`\Delta = \gamma B A`.

    Parameters
    ----------
    B : array_like, shape (..., m, r)
        PEFT's ``lora_B``; NumPy array or CPU tensor, kept in its own dtype.
    A : array_like, shape (..., r, n)
        PEFT's ``lora_A``; its batch axes broadcast against those of `B`.
    scaling : float
        The effective scale γ: finite, of either sign.

    Attributes
    ----------
    shape : tuple of int
        Shape (..., m, n) of the dense update.
    dtype : str
        The coarser of the two dtypes that the factors were stored in.

    Raises
    ------
    ValueError
        If a factor is not a real matrix or stack, the ranks or batch axes disagree, or the scaling is not finite.

    References
    ----------
    Hu et al., arXiv:2106.09685, eq. (3).

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
        B, B_dtype = as_factor(self.B, "B")
        A, A_dtype = as_factor(self.A, "A")
        if B.shape[-1] != A.shape[-2]:
            raise ValueError(
                f"B of shape {B.shape} has rank {B.shape[-1]} but A of shape {A.shape} has rank {A.shape[-2]}; "
                "B is (..., m, r) and A is (..., r, n) with the same r."
            )
        if 0 in (B.shape[-2], A.shape[-1]):
            raise ValueError(
                f"B of shape {B.shape} and A of shape {A.shape} make empty matrices; m and n must be at least 1."
            )
        try:
            batch = np.broadcast_shapes(B.shape[:-2], A.shape[:-2])
        except ValueError:
            raise ValueError(
                f"the batch axes of B {B.shape[:-2]} and A {A.shape[:-2]} do not broadcast; give both the same."
            ) from None
        scaling = as_finite(self.scaling, "scaling")
        check_scalar(scaling, "scaling is one number for all updates of the stack", self.scaling)
        shape, dtype = (*batch, B.shape[-2], A.shape[-1]), coarsest(B_dtype, A_dtype)
        for name, value in (("B", B), ("A", A), ("scaling", float(scaling)), ("shape", shape), ("dtype", dtype)):
            object.__setattr__(self, name, value)

    @property
    def rank(self) -> int:
        """Number of columns of B and rows of A; the rank of the product is at most this."""
        return int(self.B.shape[-1])

    def to_dense(self) -> NDArray[np.float64]:
        """Form scaling · B @ A, shape (..., m, n), in float64."""
        return self.scaling * (self.B.astype(np.float64) @ self.A.astype(np.float64))

    def apply(self, x: ArrayLike) -> NDArray[np.float64]:
        """Apply the update to vectors as ``torch.nn.Linear`` does, in O((m + n) r) for each.

        Parameters
        ----------
        x : array_like, shape (..., n)
            Batch axes of the update broadcast against its leading axes.

        Returns
        -------
        ndarray, shape (..., m)

        Raises
        ------
        ValueError
            If the last axis of `x` is not n.
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
        r"""Share each component's size between the factors: :math:`\lVert b_i \rVert = \lVert a_i \rVert`.

        For a truncation (B = UΣ, A = Vᵀ) that puts √Σ in each factor, as fine-tuning and half-precision storage like
        it. The product does not change; both factors come back in float64.
        """
        # Each component is a matrix of one column here, with a power of two of its own: 1e200 has no square.
        B, B_exponent = scaled_to_unit(np.swapaxes(self.B, -1, -2)[..., np.newaxis])
        A, A_exponent = scaled_to_unit(self.A[..., np.newaxis])
        exponent = (B_exponent + A_exponent)[..., np.newaxis, np.newaxis]
        # An odd power of two has no half: its last factor goes to A before the norms are taken.
        A, half = np.ldexp(A, exponent % 2), exponent // 2
        B_norm = np.linalg.norm(B, axis=-2, keepdims=True)
        A_norm = np.linalg.norm(A, axis=-2, keepdims=True)
        # A component with a zero on one side is zero whatever the other holds.
        lives = (B_norm > 0) & (A_norm > 0)
        share = np.sqrt(np.where(lives, A_norm, 0.0) / np.where(lives, B_norm, 1.0))
        inverse = np.sqrt(np.where(lives, B_norm, 0.0) / np.where(lives, A_norm, 1.0))
        return LowRankUpdate(
            np.swapaxes(np.ldexp(B * share, half)[..., 0], -1, -2),
            np.ldexp(A * inverse, half)[..., 0],
            self.scaling,
        )
