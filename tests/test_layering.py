"""The layers of the package: imports run downwards without circles, and the core needs no extra."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lowrank_core

ROOT = Path(__file__).parents[1]
PACKAGE = Path(lowrank_core.__file__).parent
EXTRAS = {
    "gguf",
    "hypothesis",
    "matplotlib",
    "ml_dtypes",
    "numba",
    "peft",
    "rich",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
    "typer",
}


def module_of(path):
    """The name of a module within the package; a package has that of its folder, and the public API is ""."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def trees(paths):
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}


TREES = {module_of(path): tree for path, tree in trees(PACKAGE.rglob("*.py")).items()}
PACKAGES = {module_of(path) for path in PACKAGE.rglob("__init__.py")}


def names_imported(tree):
    """(module, name) of each import in a file, at the top or within a function; the name is None for a plain import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def modules_imported(module):
    """Modules of this package that a module imports."""
    for imported, name in names_imported(TREES[module]):
        package, _, inner = imported.partition(".")
        if package == "lowrank_core":
            submodule = f"{inner}.{name}".lstrip(".")
            yield submodule if submodule in TREES else inner


IMPORTS = {module: set(modules_imported(module)) - {module} for module in TREES}


def within(package):
    """A package and all modules below it."""
    return {module for module in TREES if not package or f"{module}.".startswith(f"{package}.")}


def beside(package):
    """Modules in the folder of a package, without those of its own packages."""
    return {module for module in within(package) if module.rpartition(".")[0] == package} - PACKAGES


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def upward(layers):
    """Imports of modules of a higher layer; the lowest layer comes first."""
    height = {module: number for number, layer in enumerate(layers) for module in layer}
    return {
        (module, imported)
        for module in height
        for imported in IMPORTS[module]
        if height.get(imported, -1) > height[module]
    }


def test_the_packages_import_downwards():
    mission = beside("") - {"__main__"}
    checks = {module for module in mission if module.startswith("_")}
    packages = [within("testing"), within("models"), within("cli"), {"__main__"}]
    layers = [checks, within("_linalg"), mission - checks, {""}, *packages]
    assert set().union(*layers) == set(TREES)
    assert upward(layers) == set()


def test_the_packages_of_models_import_downwards():
    folders = [
        within(f"models.{folder}") for folder in ("figures", "files", "pairing", "formats", "inspection", "operations")
    ]
    layers = [beside("models"), *folders, {"models"}]
    assert set().union(*layers) == within("models")
    assert upward(layers) == set()


def test_verbs_are_above_all_that_they_share_and_the_program_above_the_verbs():
    program = {"cli.program", "cli.app"}
    verbs = within("cli.verbs")
    layers = [within("cli") - verbs - program, verbs, program]
    assert upward(layers) == set()


def test_imports_are_absolute():
    assert {
        module for module, tree in TREES.items() for name, _ in names_imported(tree) if name.startswith(".")
    } == set()


def test_imports_have_no_circles():
    # Raises CycleError, which names the modules of a circle.
    assert len(list(TopologicalSorter(IMPORTS).static_order())) == len(TREES)


def test_the_engine_is_used_through_its_interface():
    outside = set(TREES) - within("_linalg")
    inner = within("_linalg") - {"_linalg"}
    assert {(module, imported) for module in outside for imported in IMPORTS[module] & inner} == set()


def test_only_the_routes_read_the_thresholds():
    assert {module for module in TREES if "_linalg.thresholds" in IMPORTS[module]} == {"_linalg.routes"}


def test_models_and_the_command_line_use_the_public_api():
    # Rounding noise and noise are public modules of their own, which the public API does not repeat.
    public = IMPORTS[""]
    upper = within("models") | within("cli")
    assert {(module, imported) for module in upper for imported in IMPORTS[module] & public} == set()
    # The lock on BLAS's threads is no user's business, and neither is an error of factors apart from their report. What
    # a truncation may miss is reported beside its factors, which are all that `truncate` returns.
    assert {module for module in upper if "_linalg" in IMPORTS[module]} == {
        "models.norms",
        "models.operations.factoring",
    }


def test_a_format_is_known_to_its_own_file_alone():
    from lowrank_core.models.formats import FORMATS

    names = {each.name for each in FORMATS}
    inner = within("models.formats")
    makers = {module for module in inner if "Format" in (ast.unparse(call.func) for call in calls(TREES[module]))}
    assert len(makers) == len(FORMATS)
    for module in set(TREES) - inner:
        assert makers.isdisjoint(IMPORTS[module]), module
        strings = {node.value for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant)}
        assert names.isdisjoint(strings), module


@pytest.mark.parametrize("folder", ["lowrank_core", "tests", "benchmarks", "docs", ".ci"])
def test_no_file_is_over_400_lines(folder):
    counts = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: count for path, count in counts.items() if count > 400} == {}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names_imported(tree):
    """Private modules and names of this package that a file imports, and private names that it takes from modules."""
    modules = set()
    for imported, name in names_imported(tree):
        parts = [*imported.split("."), *([name] if name else [])]
        if parts[0] == "lowrank_core":
            modules.add(parts[-1])
            yield from (".".join(parts) for part in parts if is_private(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in modules:
            yield ast.unparse(node)


def test_private_code_is_tested_apart_from_theorems():
    tests = trees(path for path in (ROOT / "tests").rglob("*.py") if "internals" not in path.parts)
    private = {(path.name, name) for path, tree in tests.items() for name in private_names_imported(tree)}
    # For as many workers as there are processors: used there, and tested in internals.
    assert private == {("conftest.py", "lowrank_core._processors.usable_processors")}


def test_peers_are_imported_where_tests_are_marked_for_them():
    tests = trees(path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "interop")
    peers = {"peft", "sklearn", "torch", "transformers"}
    found = {(path.name, module) for path, tree in tests.items() for module, _ in names_imported(tree)}
    assert {(file, module) for file, module in found if module.partition(".")[0] in peers} == set()


def test_importing_the_core_imports_no_extra_and_no_compiler():
    code = "import sys, lowrank_core; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert EXTRAS.isdisjoint(run.stdout.split())


def test_whole_models_are_reached_from_the_package_and_imported_when_used():
    code = (
        "import sys, lowrank_core; before = set(sys.modules); models = lowrank_core.models; "
        "print(*{name for name in sys.modules if name.startswith('lowrank_core.models')} - {'lowrank_core.models'}); "
        "print('lowrank_core.models' in before, models.inspect.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\nFalse inspect\n"


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


def test_mutation_tests_each_module_of_the_mathematics_by_tests_that_exist():
    text = (ROOT / ".ci" / "mutation.py").read_text(encoding="utf-8").replace("{INTERNALS}", "tests/internals")
    absent = [path for path in re.findall(r"tests/[\w/]+\.py", text) if not (ROOT / path).exists()]
    assert not absent
    modules = {path.stem for path in PACKAGE.glob("[a-z]*.py")} - {"compilation"}
    assert modules <= set(re.findall(r'^    "(\w+)": ', text, re.MULTILINE))


def test_contributing_names_every_module_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__main__.py"}
    assert modules == {name for name in re.findall(r"`(\w+\.py)`", text) if (PACKAGE / name).exists()}


def test_contributing_names_the_kernel_files_that_others_import():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.search(r"other kernels import\n\(([^)]*) in `lowrank_core/_linalg/kernels/`\)", text)[1]
    kernels = [module for module in TREES if module.startswith("_linalg.kernels.")]
    shared = {imported for module in kernels for imported in modules_imported(module)} & set(kernels)
    assert shared == {f"_linalg.kernels.{name}" for name in re.findall(r"`(\w+)\.py`", named)}
