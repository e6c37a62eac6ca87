"""The accuracy that the library promises: the largest error of a result."""

import numpy as np

from lowrank_core import LowRankUpdate, spectrum

EPS64 = 2.0**-52
EPS32 = 2.0**-23

# A result near float64's smallest number is rounded by half of it; a few such roundings are allowed.
SPACING = 4 * 2.0**-1074


def of_values(shape, dtype, largest):
    """Return the bound on singular values of a matrix: 10·max(m, n)·eps·σ₁ for float64, else eps32·σ₁."""
    relative = 10 * max(shape) * EPS64 if dtype == "float64" else EPS32
    return relative * largest + SPACING


def of_product(update, largest):
    """Return the bound on singular values of γBA: float64's rounding of Σ‖b_i‖‖a_i‖, which may cancel, and eps32·σ₁."""
    m, n = update.shape[-2:]
    sizes = np.linalg.norm(update.B.astype(np.float64), axis=-2) * np.linalg.norm(update.A.astype(np.float64), axis=-1)
    rounding = 10 * max(m, n, update.rank) * EPS64 * abs(update.scaling) * np.sum(sizes)
    return rounding + SPACING + (0.0 if update.dtype == "float64" else EPS32 * largest)


def of_kronecker(update):
    """Return the bound on singular values of γ·(L ⊗ R): each side's bound times the largest value of the other."""
    sizes = [float(spectrum(side).norm) for side in (update.left, update.right)]
    errors = [
        of_product(side, size) if isinstance(side, LowRankUpdate) else of_values(side.shape, side.dtype.name, size)
        for side, size in zip((update.left, update.right), sizes, strict=True)
    ]
    return abs(update.scaling) * (errors[0] * sizes[1] + errors[1] * sizes[0] + errors[0] * errors[1]) + SPACING
