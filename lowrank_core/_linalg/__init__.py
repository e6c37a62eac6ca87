"""The private engine: values, or factors, of matrices and of products; the kernels of the mission; and workers.

Only what this module names is used outside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_core._linalg.crossings import Crossing, Operand, Side, cross
from lowrank_core._linalg.decompositions import (
    best_factors,
    best_factors_and_values,
    best_product_factors,
    product_singular_values,
    singular_values,
)
from lowrank_core._linalg.kronecker import Dense, Product, best_kronecker_factors, kronecker_singular_values
from lowrank_core._linalg.largest_value import largest_singular_value
from lowrank_core._linalg.machine_code import code_folder, kernel, kernels_in_use
from lowrank_core._linalg.powers_of_two import Scaled, scaled_by, scaled_to_unit
from lowrank_core._linalg.residuals import matrix_energy, residual_energy
from lowrank_core._linalg.threads import blas_threads, in_threads
from lowrank_core._linalg.values import Values

if TYPE_CHECKING:
    from lowrank_core._linalg.kernels.energies import energies, error_sweep
    from lowrank_core._linalg.kernels.learning import learn

__all__ = [
    "Crossing",
    "Dense",
    "Operand",
    "Product",
    "Scaled",
    "Side",
    "Values",
    "best_factors",
    "best_factors_and_values",
    "best_kronecker_factors",
    "best_product_factors",
    "blas_threads",
    "code_folder",
    "cross",
    "energies",
    "error_sweep",
    "in_threads",
    "kernels_in_use",
    "kronecker_singular_values",
    "largest_singular_value",
    "learn",
    "matrix_energy",
    "product_singular_values",
    "residual_energy",
    "scaled_by",
    "scaled_to_unit",
    "singular_values",
]

_KERNELS = {"energies": "energies", "error_sweep": "energies", "learn": "learning"}


def __getattr__(name: str) -> Any:
    """Return a kernel, loaded when it is first used: Numba takes longer to import than all of this package."""
    if name not in _KERNELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return kernel(_KERNELS[name], name)
