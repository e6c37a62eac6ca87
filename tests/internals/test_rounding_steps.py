"""Steps between stored numbers, and the blocks in which weights are read."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import rounding_noise as module
from lowrank_core.rounding_noise import _blocks, rounding_noise, step_exponents


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_steps_are_distances_to_the_next_number(dtype):
    finfo = ml_dtypes.finfo(dtype)
    exponents = np.random.default_rng(0).uniform(np.log2(float(finfo.tiny)), np.log2(float(finfo.max)) - 1, (50, 40))
    stored = np.exp2(exponents).astype(dtype)
    stored[0, :4] = [0.0, finfo.smallest_subnormal, finfo.tiny, 1.0]
    following = np.nextafter(stored, np.asarray(np.inf, dtype=dtype)).astype(np.float64)
    gap = following - stored.astype(np.float64)
    assert np.array_equal(np.ldexp(1.0, step_exponents(-stored, np.dtype(dtype).name).astype(int)), gap)


def test_blocks_hold_two_to_the_sixteenth_entries_or_one_row():
    assert _blocks((3000, 1024)) == [slice(start, start + 64) for start in range(0, 3000, 64)]
    assert _blocks((2, 2**21)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("shape", [(40, 3), (3, 40), (16, 16)])
def test_matrices_of_many_blocks_equal_those_of_one(shape, monkeypatch):
    base, tuned = np.random.default_rng(9).standard_normal((2, *shape)).astype(np.float16)
    whole = rounding_noise(base, tuned)
    monkeypatch.setattr(module, "_BLOCK", 32)
    assert rounding_noise(base, tuned) == whole
