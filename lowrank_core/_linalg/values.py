"""What every route returns: singular values with their norm, and factors at any rank."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.powers_of_two import unscaled_by

__all__ = ["Factors", "Floats", "LeadingFactors", "Values", "norms_of", "read_only", "unscaled_values"]

Floats = NDArray[np.float64]


class Values(NamedTuple):
    """Singular values (..., p), descending, and Frobenius norms (...) of whole matrices.

    `missed` (...) bounds the energy that leading values may lack, as a fraction of the energy beyond them; 0 where the
    decomposition was full.
    """

    values: Floats
    norms: Floats
    missed: Floats | float = 0.0


class Factors(Protocol):
    """Decomposed matrices of a stack: their singular values, their norms, and their best approximations of a rank."""

    @property
    def values(self) -> Floats:
        """Singular values (count, p), descending."""

    @property
    def norms(self) -> Floats:
        """Frobenius norms (count,) of the whole matrices."""

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r (count, m, r) and A = V_rᵀ (count, r, n)."""


class LeadingFactors(NamedTuple):
    """Best approximations of one rank, from which lower ranks are cut."""

    values: Floats
    norms: Floats
    B: Floats
    A: Floats

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r and A = V_rᵀ."""
        return self.B[..., :rank], self.A[..., :rank, :]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: Numba would compile a kernel once for arrays that are writable and once for others."""
    view = array.view()
    view.flags.writeable = False
    return view


def norms_of(values: NDArray[Any]) -> Floats:
    """Compute √Σσ² along the last axis of descending values, summed from the small end."""
    norms: Floats = np.sqrt((values[..., ::-1] ** 2).sum(axis=-1))
    return norms


def unscaled_values(values: NDArray[Any], norms: NDArray[Any], exponents: NDArray[np.int64]) -> Values:
    """Return values (..., p) and norms (...) times 2^exponents; a ValueError where one does not fit float64."""
    return Values(
        unscaled_by(values, exponents[..., np.newaxis], "a singular value of the update"),
        unscaled_by(norms, exponents, "the norm of the update"),
    )
