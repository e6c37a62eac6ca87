"""The files of kernels: what they import, and that all of their functions are compiled."""

import ast
from pathlib import Path

from lowrank_core._linalg import kernels

FOLDER = Path(kernels.__file__).parent
# These make what the others compile.
GENERATORS = {"compiling", "simd"}
SHARED = GENERATORS | {"dqds", "householder", "narrow", "sizes"}
TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.py"))}


def test_a_kernels_helpers_are_in_its_own_file():
    # Numba's on-disk cache would go on using a helper as it was before an edit; CONTRIBUTING.md says what to do after
    # one to the files that several kernels share.
    for name, tree in TREES.items():
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
        allowed = tuple(f"lowrank_core._linalg.kernels.{shared}" for shared in SHARED)
        assert all(own.startswith(allowed) for own in names if own.startswith("lowrank_core")), name


def test_every_function_of_a_kernel_is_compiled():
    for name in set(TREES) - GENERATORS:
        for function in [node for node in TREES[name].body if isinstance(node, ast.FunctionDef)]:
            assert [ast.unparse(by) for by in function.decorator_list] == ["kernel"], f"{name}.{function.name}"
