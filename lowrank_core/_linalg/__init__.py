"""Values and factors of matrices and of products: the private engine behind the public API."""

from lowrank_core._linalg.powers_of_two import Scaled, scaled_to_unit

__all__ = ["Scaled", "scaled_to_unit"]
