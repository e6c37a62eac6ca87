"""Kernels: compiled for one set of types, cached where a folder can be written, and the same as plain Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowrank_core
from lowrank_core._linalg.kernels import compiling
from tests.compiled import plain

# Every kernel on arrays of every layout that callers give, and then the number of types that each was compiled for.
CALLS = """
import numpy as np, lowrank_core as lc
stack = np.random.default_rng(0).standard_normal((3, 9, 8))
frozen_stack = stack.copy(); frozen_stack.flags.writeable = False
lc.spectrum(stack.astype(int)), lc.spectrum(stack, method="gram"), lc.spectrum(stack[:1], method="gram")
lc.spectrum(frozen_stack), lc.spectrum(stack[:, ::2, ::-1])
for update in (stack, stack.astype("f4"), stack[0], stack[:0], np.asfortranarray(stack), lc.truncate(stack, 2)):
    of = lc.spectrum(update)
    frozen = np.array([1, 2]); frozen.flags.writeable = False
    for ranks in (None, [1], 1, frozen, [], np.array([[1], [2]])):
        lc.variance_captured(of, ranks), lc.reconstruction_error(of, ranks)
    lc.error_sweep(of, frozen), lc.error_sweep(of, None, alpha=[1.0, 2.0]), lc.rank_for_variance(of, 0.5)
    for optimizer in ("sgd", "adam"):
        lc.learning_sweep(update, [1, 2], steps=2, optimizer=optimizer)
    lc.learning_sweep(of, None, steps=2)
import pkgutil, importlib, lowrank_core._linalg.kernels
for module in pkgutil.iter_modules(lowrank_core._linalg.kernels.__path__):
    for name, kernel in vars(importlib.import_module("lowrank_core._linalg.kernels." + module.name)).items():
        if hasattr(kernel, "signatures"):
            print(module.name + "." + name, len(kernel.signatures))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The number of types by kernel, and the folder of a cache that was empty."""
    # A kernel that is found in a cache brings none of those that it calls with it.
    cache = tmp_path_factory.mktemp("cache")
    # Types do not depend on how far LLVM optimises.
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0", "NUMBA_OPT": "1", "NUMBA_CACHE_DIR": str(cache)}
    run = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=True, env=environment)
    return dict(line.split() for line in run.stdout.splitlines()), cache


def test_every_kernel_is_compiled_for_one_set_of_types(compiled):
    counts, _ = compiled
    assert {
        "energies.energies",
        "energies.error_sweep",
        "learning.learn",
        "small.small_values",
        "gram.tridiagonals",
        "products.gram_matrices",
    } <= set(counts)
    # A row with the bounds of blocks, and one without; a step with a shift, and one of the constant 0.
    several = {name for name, count in counts.items() if count not in {"0", "1"}}
    assert several <= {"dqds._row", "vectors._step"}


def test_a_helper_is_kept_on_disk_with_the_kernels_that_call_it_and_not_beside_them(compiled):
    _, cache = compiled
    kept = {index.name.split("-")[0] for index in cache.rglob("*.nbi")}
    assert "learning.learn" in kept
    assert not {name for name in kept if name.split(".")[-1].startswith("_")}


def test_without_compilation_answers_are_the_same_up_to_rounding():
    code = """
import sys, numpy as np, lowrank_core as lc
of = lc.Spectrum(v := np.linspace(3, .5, 300), np.linalg.norm(v), (300, 310), complete=True)
update = np.random.default_rng(0).standard_normal((6, 5))
answers = [
    lc.variance_captured(of), lc.error_sweep(of, [0, 1, 64, 257, 300]).errors,
    lc.learning_sweep(update, [0, 2, 5], steps=6, repeats=2).curves,
    lc.learning_sweep(update, [0, 2, 5], steps=6, optimizer="adam").curves,
]
sys.stdout.buffer.write(np.concatenate([a.ravel() for a in answers]).tobytes())
"""
    found = []
    for disabled in ("0", "1"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env=os.environ | {"NUMBA_DISABLE_JIT": disabled},
        )
        found.append(np.frombuffer(ran.stdout))
    assert found[0].size == 301 + 10 + 2 * 2 * 3 * 7
    assert np.allclose(*found, rtol=1e-10, atol=0)


def test_kernels_work_where_no_cache_can_be_written(tmp_path):
    package = tmp_path / "lowrank_core"
    shutil.copytree(Path(lowrank_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    nowhere = tmp_path / "a file, not a folder"
    nowhere.touch()
    # A folder of this name could be written.
    beside = package / "_linalg" / "kernels" / "__pycache__"
    beside.touch()
    code = """
import sys, lowrank_core as lc, numba.core.caching as caching
# As where neither the package's folder nor the user's can be written, for a user who may write anywhere too.
for locator in caching.CacheImpl._locator_classes:
    locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
print(lc.__file__, lc.error_sweep(lc.Spectrum([4.0, 3.0], 5.0, (2, 2), True), [1]).optimal[0])
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path), "HOME": str(nowhere), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"NUMBA_OPT": "1"}  # where the code is kept does not depend on how far LLVM optimises
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=tmp_path
    )
    assert ran.stdout.split() == [str(package / "__init__.py"), "0.6"]
    assert list(package.rglob("__pycache__")) == [beside]


def test_a_kernel_is_compiled_without_a_cache_where_numba_finds_no_folder_for_it(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if "cache" in options:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: ("compiled", function)

    monkeypatch.setattr(compiling.numba, "njit", njit)
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "no_cfunc_wrapper": True}
    assert compiling.kernel(plain) == ("compiled", plain)
    assert asked == [{"cache": True} | options, options]


def test_an_uncompiled_kernel_is_silent(monkeypatch):
    monkeypatch.setattr(compiling.numba, "njit", lambda **_: lambda function: function)
    assert compiling.kernel(lambda x: x * x)(np.float64(1e200)) == np.inf
