"""The house: imports only run downwards, and the core needs nothing but NumPy, Numba and threadpoolctl."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lowrank_core

PACKAGE = Path(lowrank_core.__file__).parent
FLOORS = [
    {"_version", "arrays", "kernels", "thresholds"},
    {"threads", "scaling", "factors", "synthetic"},
    {"band"},
    {"dense"},
    {"krylov", "products"},
    {"decompose", "noise"},
    {"spectra"},
    {"truncation", "sweeps", "ranks", "allocation", "storage"},
    {"learning"},
    {"__init__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EXTRAS = {"hypothesis", "matplotlib", "ml_dtypes", "numba", "peft", "rich", "safetensors", "scipy", "torch", "typer"}


def imports(path):
    """(module, name) for each import in a file, at the top or within a function; name is None for a plain import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def rooms_imported(path):
    """Rooms of this package that a file imports; ``__init__`` is the door."""
    rooms = set()
    for module, name in imports(path):
        package, *inner = module.split(".")
        if package == "lowrank_core":
            room = inner[0] if inner else name
            is_room = (PACKAGE / f"{room}.py").exists() or (PACKAGE / str(room)).is_dir()
            rooms.add(room if is_room else "__init__")
    return rooms


@pytest.mark.parametrize("room", sorted(set(FLOOR) - {"kernels"}))
def test_imports_run_downwards(room):
    assert {other for other in rooms_imported(PACKAGE / f"{room}.py") if FLOOR[other] >= FLOOR[room]} == set()


def test_every_room_has_a_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(FLOOR) - {"kernels"}


def test_a_kernels_helpers_stand_in_its_own_file():
    # Numba's on-disk cache would go on using a helper as it was before an edit; CONTRIBUTING.md tells what to do after
    # one to the files that several share.
    for path in sorted((PACKAGE / "kernels").glob("*.py")):
        own = {module for module, _ in imports(path) if module.startswith("lowrank_core")}
        shared = {"lowrank_core._linalg.kernels." + name for name in ("compiling", "simd", "dqds")}
        assert own <= shared, path.name


def test_every_function_of_a_kernel_is_compiled():
    for path in sorted((PACKAGE / "kernels").glob("*.py")):
        functions = [
            node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
        ]
        for function in functions if path.stem not in {"compiling", "simd"} else []:
            assert [ast.unparse(by) for by in function.decorator_list] == ["kernel"], f"{path.stem}.{function.name}"


def test_testing_stands_on_the_core():
    for path in sorted((PACKAGE / "testing").glob("*.py")):
        assert rooms_imported(path) <= {"arrays", "factors", "spectra", "testing", "__init__"}, path.name


@pytest.mark.parametrize("face", ["models", "cli"])
def test_upper_floors_use_the_door(face):
    # Rounding noise is no question to an update alone, and so not at the door: whoever has both matrices imports it.
    below = {"models": {"__init__", "models", "storage"}, "cli": {"__init__", "models", "cli"}}[face]
    for path in sorted((PACKAGE / face).glob("*.py")):
        assert rooms_imported(path) <= below, path.name


def test_importing_the_core_imports_no_extra_and_no_compiler():
    code = "import sys, lowrank_core; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert EXTRAS.isdisjoint(run.stdout.split())


def test_answering_from_a_spectrum_imports_no_extra():
    code = (
        "import sys, numpy as np, lowrank_core as lc; s = lc.spectrum(np.eye(3)); lc.error_sweep(s, [1]); "
        "lc.learning_sweep(s, [1], steps=1); lc.truncate(np.eye(3), 1); lc.numerical_rank(s); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Numba itself looks for SciPy, and uses it where it is installed.
    assert (EXTRAS - {"numba", "scipy"}).isdisjoint(run.stdout.split())


def test_without_hypothesis_testing_names_what_to_install():
    code = "import sys; sys.modules['hypothesis'] = None; import lowrank_core.testing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert 'ImportError: lowrank_core.testing needs Hypothesis: pip install "lowrank_core[testing]"' in run.stderr
