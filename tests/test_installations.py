"""Where the package is installed and how Python is run: each must work, and give the same answers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowrank_core as lc

# A result of every kernel and route, as bytes on the standard output.
SMOKE = """
import sys, numpy as np, lowrank_core as lc
stack = np.random.default_rng(0).standard_normal((3, 9, 8))
spectrum = lc.spectrum(stack)
for result in (
    spectrum.values, lc.spectrum(stack.astype("f4")).values, lc.truncate(stack, 2).B, lc.variance_captured(spectrum),
    lc.error_sweep(spectrum, None).errors, lc.learning_sweep(spectrum, [0, 3], steps=4).curves,
    lc.learning_sweep(stack, [2], steps=3, optimizer="adam").curves, lc.effective_rank(spectrum),
):
    sys.stdout.buffer.write(result.tobytes())
try:
    lc.spectrum(np.full((2, 2), np.nan))
except ValueError:
    sys.stdout.buffer.write(b"refused")
"""
# Where the test is not of the machine code, LLVM need not optimise it.
COMPILED_QUICKLY = {"NUMBA_OPT": "1", "NUMBA_DISABLE_JIT": "0"}
# A kernel of one line, since eight processes compile it.
KERNEL = """
from lowrank_core._linalg.kernels.compiling import kernel

@kernel
def double(x):
    return 2.0 * x[0]
"""
# Each waits for a line until all are ready.
COLD = """
import sys, numba, numpy as np, lowrank_core as lc
from lowrank_core._linalg.machine_code import kernel
print("ready", flush=True)
sys.stdin.readline()
print(kernel("doubling", "double")(np.array([4.0, 3.0])), lc.__file__)
"""
# The machine code, which needs no Numba, and then Numba's own cache.
WARM = """
import sys, numpy as np
from lowrank_core._linalg.machine_code import kernel
print(kernel("doubling", "double")(np.array([4.0, 3.0])), "numba" in sys.modules)
from lowrank_core._linalg.kernels.doubling import double
print(double(np.array([4.0, 3.0])), sum(double.stats.cache_hits.values()))
"""


def run(*arguments, code=SMOKE, **environment):
    command = [sys.executable, "-W", "error", *arguments, "-c", code]
    return subprocess.run(command, capture_output=True, check=True, env=os.environ | environment).stdout


@pytest.fixture(scope="module")
def answers_by_default():
    answers = run()
    assert answers.endswith(b"refused")
    return answers


@pytest.fixture(scope="module")
def answers_without_the_compiler():
    return run(NUMBA_DISABLE_JIT="1")


def test_without_asserts_and_docstrings_answers_are_the_same(answers_without_the_compiler):
    # -O drops asserts, -OO docstrings too: the bytecode changes, and every kernel would be compiled again.
    assert run("-OO", NUMBA_DISABLE_JIT="1") == answers_without_the_compiler


def test_without_asserts_and_docstrings_a_kernel_is_compiled():
    code = """
import lowrank_core as lc
print(lc.variance_captured(lc.Spectrum([4.0, 3.0], 5.0, (2, 2), complete=True)).tolist())
"""
    assert run("-OO", code=code, **COMPILED_QUICKLY) == b"[0.0, 0.64, 1.0]\n"


def test_without_the_compiler_answers_differ_by_rounding_alone(answers_by_default, answers_without_the_compiler):
    assert len(answers_without_the_compiler) == len(answers_by_default)
    both = answers_without_the_compiler, answers_by_default
    numbers = [np.frombuffer(answers.removesuffix(b"refused")) for answers in both]
    assert np.allclose(*numbers, rtol=1e-12, atol=0)


def test_without_the_compiler_a_run_that_diverges_raises_no_other_warning():
    code = """
import warnings, lowrank_core as lc
spectrum = lc.Spectrum([4.0, 3.0], 5.0, (2, 2), complete=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert lc.learning_sweep(spectrum, [1], learning_rate=100.0).errors.tolist() == [[float("inf")]] * 2
print([str(warning.message).split()[:3] for warning in caught])
"""
    assert run(code=code, NUMBA_DISABLE_JIT="1").decode().strip() == str([["gradient", "descent", "diverged"]])


def test_eight_processes_that_start_cold_at_once(tmp_path):
    package = tmp_path / "lowrank_core"
    shutil.copytree(Path(lc.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "_linalg" / "kernels" / "doubling.py").write_text(KERNEL)
    variables = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")} | COMPILED_QUICKLY
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": os.environ | variables}
    together = [subprocess.Popen([sys.executable, "-c", COLD], stdin=subprocess.PIPE, **options) for _ in range(8)]
    for process in together:
        assert process.stdout.readline() == "ready\n"
    for process in together:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in together:
        assert process.communicate(timeout=300)[0].split() == ["8.0", str(package / "__init__.py")]
        assert process.returncode == 0
    # What they wrote is complete: the next process compiles nothing.
    warm = subprocess.run([sys.executable, "-c", WARM], check=True, **options)
    assert warm.stdout.split() == ["8.0", "False", "8.0", "1"]
