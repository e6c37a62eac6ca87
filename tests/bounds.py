"""How far a result may be from the truth: the accuracy that the library promises, in one place."""

import numpy as np

EPS64 = 2.0**-52
EPS32 = 2.0**-23

# Half of float64's smallest number is lost whenever a result is that small; a few roundings of it are allowed.
SPACING = 4 * 2.0**-1074


def of_values(shape, dtype, largest):
    """Singular values of a dense matrix: 10·max(m, n)·eps·σ₁ from float64 input, eps32·σ₁ from float32 and below."""
    relative = 10 * max(shape) * EPS64 if dtype == "float64" else EPS32
    return relative * largest + SPACING


def of_product(update, largest):
    """Singular values of γBA: as above, beside the rounding of float64 relative to Σ‖b_i‖‖a_i‖, which may cancel."""
    m, n = update.shape[-2:]
    sizes = np.linalg.norm(update.B.astype(np.float64), axis=-2) * np.linalg.norm(update.A.astype(np.float64), axis=-1)
    rounding = 10 * max(m, n, update.rank) * EPS64 * abs(update.scaling) * np.sum(sizes)
    return rounding + SPACING + (0.0 if update.dtype == "float64" else EPS32 * largest)
