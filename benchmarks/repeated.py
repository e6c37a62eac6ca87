"""Spectra that defeat an estimate of what block Krylov iteration misses: many copies of a value, plateaus, steps."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401 - makes "bfloat16" a dtype's name
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# A slope of 1 is a value with copies, and one of 1 - 1e-6 a cluster that float32 resolves.
SLOPES = (1.0, 1 - 1e-6, 0.999, 0.9, 0.5)
COPIES = (64, 128, 256, 512, 1024)


@st.composite
def stepped_values(draw: Any, count: int) -> Floats:
    """Draw singular values in steps: each a value with 1 to `count` copies, or a slope from it to the next."""
    copies = st.integers(1, count) | st.sampled_from([n for n in COPIES if n <= count] or [count])
    steps = draw(st.lists(st.tuples(st.floats(-4, 0), copies, st.sampled_from(SLOPES)), min_size=1, max_size=5))
    parts = [10.0**level * np.linspace(1, slope, n) for level, n, slope in steps]
    return np.sort(np.concatenate([*parts, np.zeros(count)])[:count])[::-1]


def rotated(values: Floats, seed: int, dtype: str = "float32") -> NDArray[Any]:
    """Return a matrix with these singular values in bases of two reflectors each."""
    u, v = np.random.default_rng(seed).standard_normal((2, len(values)))
    matrix = np.diag(values) - np.outer(2 * u / (u @ u), u * values)
    return (matrix - np.outer(matrix @ (2 * v / (v @ v)), v)).astype(dtype)


def missed_over_tolerance(matrix: NDArray[Any], rank: int, values: Floats) -> float:
    """Return how much of the leading energy is missed, over its tolerance 1e-6·max(T_k, 1e-6·N²).

    The reference is the eigenvalues of a Gram matrix in float64, whose rounding does not count.
    """
    wide = matrix.astype(np.float64)
    energies = np.linalg.eigvalsh(wide @ wide.T)[::-1]
    head, energy = float(np.sum(energies[:rank])), float(np.sum(energies))
    missed = head - float(np.sum(np.square(values))) - 1e-13 * energy
    return max(0.0, missed) / (1e-6 * max(energy - head, 1e-6 * energy))
