"""LAPACK's singular value decomposition, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.powers_of_two import scaled_by, scaled_to_unit
from lowrank_core._linalg.values import Floats, Values, norms_of, unscaled_values

__all__ = ["SvdFactors", "lapack_svd_factors", "lapack_svd_values"]


class SvdFactors(NamedTuple):
    """Factors of the matrices 2^exponent · U Σ Vᵀ of a stack."""

    values: Floats
    norms: Floats
    U: Floats
    scaled_values: Floats
    Vt: Floats
    exponents: NDArray[np.int64]

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r and A = V_rᵀ."""
        B = self.U[..., :rank] * self.scaled_values[..., np.newaxis, :rank]
        return scaled_by(B, self.exponents[:, np.newaxis, np.newaxis]), self.Vt[..., :rank, :]


def lapack_svd_values(matrices: NDArray[Any]) -> Values:
    """Compute singular values and norms of a stack."""
    scaled, exponents = scaled_to_unit(matrices)
    values = np.linalg.svd(scaled, compute_uv=False)
    return unscaled_values(values, norms_of(values), exponents)


def lapack_svd_factors(
    stack: NDArray[Any],
    rank: int | None,  # noqa: ARG001 - the signature of every route
    workers: int,  # noqa: ARG001
) -> SvdFactors:
    """Decompose the matrices of a stack."""
    scaled, exponents = scaled_to_unit(stack)
    U, values, Vt = np.linalg.svd(scaled, full_matrices=False)
    return SvdFactors(*unscaled_values(values, norms_of(values), exponents)[:2], U, values, Vt, exponents)
