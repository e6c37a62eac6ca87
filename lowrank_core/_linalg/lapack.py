"""LAPACK's singular value decomposition, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.powers_of_two import scaled_to_unit
from lowrank_core._linalg.values import Floats, Values, norms_of, unscaled_values

__all__ = ["SvdFactors", "lapack_svd_factors", "lapack_svd_values"]


class SvdFactors(NamedTuple):
    """Factors of a matrix 2^exponent · U Σ Vᵀ."""

    values: Floats
    norm: float
    U: Floats
    scaled_values: Floats
    Vt: Floats
    exponent: int

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r and A = V_rᵀ."""
        B = np.ldexp(self.U[:, :rank] * self.scaled_values[:rank], self.exponent)
        return B, self.Vt[:rank].copy()


def lapack_svd_values(matrices: NDArray[Any]) -> Values:
    """Compute singular values and norms of a stack."""
    scaled, exponents = scaled_to_unit(matrices)
    values = np.linalg.svd(scaled, compute_uv=False)
    return unscaled_values(values, norms_of(values), exponents)


def lapack_svd_factors(matrix: NDArray[Any], workers: int) -> SvdFactors:  # noqa: ARG001 - the signature of every route
    """Decompose one matrix."""
    scaled, exponent = scaled_to_unit(matrix)
    U, values, Vt = np.linalg.svd(scaled, full_matrices=False)
    unscaled, norm, _ = unscaled_values(values, norms_of(values), exponent)
    return SvdFactors(unscaled, float(norm), U, values, Vt, int(exponent))
