"""The kernel for residuals and the check of bits agree with plain NumPy in float64."""

import numpy as np
import pytest

from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core._linalg import residual_energy
from lowrank_core._validation import all_finite


@pytest.mark.parametrize(("m", "n", "rank"), [(1031, 77, 5), (512, 64, 8), (3, 2, 1), (65, 1030, 0)])
def test_the_energy_of_a_residual_is_that_of_numpy_on_any_workers(m, n, rank):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((m, n)).astype(np.float32)
    B, A = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
    expected = float(np.sum((X.astype(np.float64) - B @ A) ** 2))
    energies = [residual_energy(X, B, A, workers) for workers in (1, 3)]
    assert energies[0] == energies[1] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dtype", [name for name in FLOATS if as_dtype(name).itemsize <= 2])
def test_every_number_of_few_bits_is_finite_or_found(dtype):
    size = as_dtype(dtype).itemsize
    numbers = np.arange(1 << (8 * size), dtype=f"u{size}").view(as_dtype(dtype))
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(numbers.astype(np.float64))
    assert all_finite(numbers[finite])
    assert not any(all_finite(np.append(numbers[:9], number)) for number in numbers[~finite][::37])
