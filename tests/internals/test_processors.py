"""Kernels on processors without fused multiply-add, as virtual machines present them: the same bounds hold."""

import os
import subprocess
import sys

PROGRAM = """
import numpy as np
import lowrank_core as lc

rng = np.random.default_rng(0)
for shape, dtype, bound in (((3, 30, 20), "f8", 10 * 30 * 2.0**-52), ((2, 90, 70), "f4", 2.0**-23)):
    stack = rng.standard_normal(shape).astype(dtype)
    exact = np.linalg.svd(stack.astype("f8"), compute_uv=False)
    assert np.all(np.abs(lc.spectrum(stack).values - exact) <= bound * exact[..., :1]), shape
B, A = rng.standard_normal((40, 9)).astype("f4"), rng.standard_normal((9, 50)).astype("f4")
exact = np.linalg.svd(B.astype("f8") @ A.astype("f8"), compute_uv=False)[:9]
assert np.all(np.abs(lc.spectrum(lc.LowRankUpdate(B, A)).values - exact) <= 2.0**-23 * exact[0])
"""


def test_values_are_within_their_bounds_without_fused_multiply_add(tmp_path):
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
