"""Machine code of kernels: the bits of Numba's own, in a process that does not import Numba, or not at all."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowrank_core._linalg import exporting, machine_code, object_files
from lowrank_core._linalg.exporting import _machine_code, write_machine_code
from lowrank_core._linalg.kernels import energies
from lowrank_core._linalg.kernels.compiling import kernel
from lowrank_core._linalg.object_files import MachineCode, _linked, _stored, load, pack

ANSWERS = """
import sys
import numpy as np
from lowrank_core import LowRankUpdate, error_sweep, rank_for_variance, spectrum
draw = np.random.default_rng(0).standard_normal
factors = [LowRankUpdate(draw((3, 50, 8)).astype(kind), draw((3, 8, 70)).astype(kind)) for kind in ("f4", "f8")]
spectra = [spectrum(update, method="gram") for update in factors]
sweeps = [error_sweep(of, [0, 1, 3]).errors for of in spectra]
print(*(of.values.tobytes().hex() for of in spectra), *(errors.tobytes().hex() for errors in sweeps))
print(rank_for_variance(spectra[0], 0.9), "numba" in sys.modules)
"""


def answers(**settings: str) -> tuple[list[str], bool]:
    # Optimised little, because compiling is most of the time.
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0", "NUMBA_OPT": "1"} | settings
    ran = subprocess.run([sys.executable, "-c", ANSWERS], capture_output=True, text=True, check=True, env=environment)
    *lines, imported = ran.stdout.split()
    return lines, imported == "True"


def test_a_later_process_has_the_same_bits_without_numba(tmp_path):
    first, compiled = answers(NUMBA_CACHE_DIR=str(tmp_path))
    assert compiled
    written = sorted((tmp_path / "lowrank_core").iterdir())
    names = ["energies.energies", "energies.error_sweep", "products.balance", "products.gram_matrices"]
    assert [path.name.split("-")[0] for path in written] == names
    assert answers(NUMBA_CACHE_DIR=str(tmp_path)) == (first, False)


@pytest.fixture
def compiled():
    """A kernel compiled for one kind of arrays."""
    values, norms, ranks = np.array([[4.0, 3.0]]), np.array([5.0]), np.array([1])
    # A dispatcher of its own: for other tests that of the module is compiled for arrays of other kinds, too.
    function = kernel(energies.energies.py_func)
    function(values, norms, True, ranks, np.empty((1, 1)), np.empty((1, 1)))
    return function


@pytest.fixture
def code(compiled):
    found = _machine_code(compiled)
    assert found is not None
    return found


def test_a_file_is_read_only_whole_and_for_the_source_that_it_was_compiled_from(tmp_path, monkeypatch, code):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    (folder,) = object_files.cache_folders()
    folder.mkdir()
    content = pack(code)
    (folder / "whole.o").write_bytes(content)
    (folder / "cut.o").write_bytes(content[:-1])
    (folder / "changed.o").write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    (folder / "other.o").write_bytes(b"\xff\n")
    assert [list(_stored(f"{name}.o")) for name in ("whole", "cut", "changed", "other", "absent")] == [
        [code],
        *[[]] * 4,
    ]
    monkeypatch.setattr(object_files, "_source", lambda: "another")
    assert not list(_stored("whole.o"))


def test_a_file_is_for_one_setting_of_the_compiler(monkeypatch):
    names = set()
    for setting in ("1", "2", "2"):
        monkeypatch.setenv("NUMBA_OPT", setting)
        object_files._environment.cache_clear()
        names.add(object_files.file_name("small", "small_values"))
    monkeypatch.undo()
    object_files._environment.cache_clear()
    assert len(names) == 2


def test_machine_code_takes_arrays_of_its_types_alone(code):
    function = _linked(code)
    arguments = [np.array([[4.0, 3.0]]), np.array([5.0]), True, np.array([1]), np.empty((1, 1)), np.empty((1, 1))]
    assert function(*arguments) is None
    assert (arguments[-2][0, 0], arguments[-1][0, 0]) == (0.64, 0.36)
    for place, wrong in (
        (0, np.ones((1, 2), "f4")),
        (0, np.ones((2, 2)).T),
        (1, np.ones((1, 1))),
        (3, np.array([1.0])),
    ):
        with pytest.raises(TypeError, match="a kernel takes"):
            function(*arguments[:place], wrong, *arguments[place + 1 :])


def test_an_error_in_machine_code_is_an_error():
    @kernel
    def _refuse(x):
        if x[0] > 0:
            raise ValueError("positive")
        return x.size

    assert _refuse(np.zeros(2)) == 2
    found = _machine_code(_refuse)
    assert found is not None
    assert (found.arguments, found.result) == (("float64[1]",), "int64")
    assert _linked(found)(np.zeros(3)) == 3
    with pytest.raises(RuntimeError, match="ended with status"):
        _linked(found)(np.ones(1))


def test_a_kernel_that_calls_more_than_the_runtime_has_is_left_to_numba():
    @kernel
    def _call_c(x):
        return math.sinh(x[0])

    _call_c(np.ones(1))
    assert _machine_code(_call_c) is None


def test_no_machine_code_where_numba_is_off_or_has_changed_or_nothing_can_be_written(tmp_path, monkeypatch, compiled):
    nowhere = tmp_path / "a file"
    nowhere.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(nowhere))
    assert write_machine_code(compiled, "energies", "energies") is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert write_machine_code(compiled, "energies", "energies") == next((tmp_path / "lowrank_core").iterdir())
    assert load("energies", "energies") is not None
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert load("energies", "energies") is None
    monkeypatch.setattr(exporting, "_machine_code", lambda function: function.no_longer_there)
    assert write_machine_code(compiled, "energies", "energies") is None


def test_without_a_chosen_folder_it_is_beside_the_kernels_or_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    beside = Path(energies.__file__).with_name("__pycache__")
    assert object_files.cache_folders() == (beside, tmp_path / "lowrank_core")


def test_a_kernel_whose_module_is_imported_is_numbas_own():
    assert machine_code.kernel("energies", "energies") is energies.energies


def test_a_code_that_takes_a_number_gets_a_number():
    @kernel
    def _scaled(x, factor, double):
        return x[0] * factor * (2.0 if double else 1.0)

    _scaled(np.ones(1), 3.0, True)
    found = _machine_code(_scaled)
    assert isinstance(found, MachineCode)
    assert (found.arguments, found.result) == (("float64[1]", "float64", "bool"), "float64")
    assert _linked(found)(np.array([5.0]), 3.0, True) == 30.0
    assert _linked(found)(np.array([5.0]), 3.0, False) == 15.0


def test_no_machine_code_is_loaded_but_on_linux(monkeypatch):
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setattr(object_files, "_stored", lambda file: [file])
    monkeypatch.setattr(object_files, "_linked", lambda code: code)
    loaded = {}
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        loaded[system] = load("energies", "sums") is not None
    assert loaded == {"linux": True, "darwin": False, "win32": False}
