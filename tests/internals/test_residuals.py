"""The kernel for residuals and the check of bits agree with plain NumPy in float64."""

import math

import numpy as np
import pytest

from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core._linalg import matrix_energy, residual_energy
from lowrank_core._validation import all_finite
from lowrank_core.models import norms


@pytest.mark.parametrize(("m", "n", "rank"), [(1031, 77, 5), (512, 64, 8), (3, 2, 1), (65, 1030, 0)])
def test_the_energy_of_a_residual_is_that_of_numpy_on_any_workers(m, n, rank):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((m, n)).astype(np.float32)
    B, A = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
    expected = float(np.sum((X.astype(np.float64) - B @ A) ** 2))
    energies = [residual_energy(X, B, A, workers) for workers in (1, 3)]
    assert energies[0] == energies[1] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 21), (8, 8), (5, 13), (64, 129), (300, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_energy_of_a_matrix_is_the_sum_of_all_squares(shape, dtype):
    X = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    exact = math.fsum(float(x) ** 2 for x in X.ravel())
    for each in (X, np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2]):
        assert matrix_energy(each) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("place", [0, 70, 129])
def test_no_square_of_a_float32_number_is_lost(place):
    x = np.zeros((1, 130), np.float32)
    for number in (1e-45, 3e38, -3e38, np.inf, np.nan):
        x[0, place] = number
        assert matrix_energy(x) == pytest.approx(float(x[0, place]) ** 2, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("entries", [1 << 20, (1 << 20) - 1])
def test_a_block_has_the_norm_of_numpy_whatever_computes_it(dtype, entries, monkeypatch):
    by_kernel = []
    energy = norms.matrix_energy
    monkeypatch.setattr(norms, "matrix_energy", lambda block: by_kernel.append(len(block)) or energy(block))
    block = np.random.default_rng(0).standard_normal((40, 300)).astype(dtype)
    expected = np.linalg.norm(block.astype(np.float64))
    assert norms.block_norm(block, entries) == pytest.approx(expected, rel=1e-14)
    assert by_kernel == ([40] if entries == 1 << 20 and dtype == "float32" else [])


@pytest.mark.parametrize("dtype", [name for name in FLOATS if as_dtype(name).itemsize <= 2])
def test_every_number_of_few_bits_is_finite_or_found(dtype):
    size = as_dtype(dtype).itemsize
    numbers = np.arange(1 << (8 * size), dtype=f"u{size}").view(as_dtype(dtype))
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(numbers.astype(np.float64))
    assert all_finite(numbers[finite])
    assert not any(all_finite(np.append(numbers[:9], number)) for number in numbers[~finite][::37])
