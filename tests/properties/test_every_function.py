"""Every function of the public API has a property."""

import ast
from pathlib import Path

import lowrank_core


def names_in_properties():
    """Yield the names used by the tests of this folder with drawn examples."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("given" in ast.dump(mark) for mark in node.decorator_list):
                yield from (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def test_every_public_function_has_a_property():
    # Results are covered by the properties of the functions that return them.
    results = {name for name in lowrank_core.__all__ if name.endswith(("Sweep", "Allocation", "Comparison", "Overlap"))}
    functions = {name for name in lowrank_core.__all__ if callable(getattr(lowrank_core, name))} - results
    assert functions - set(names_in_properties()) == set()
