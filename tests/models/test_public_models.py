"""The public API of lowrank_core.models: exactly what it says."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_core import models


def test_all_is_sorted_and_each_name_is_there():
    assert models.__all__ == sorted(set(models.__all__))
    assert set(models.__all__) <= set(dir(models))
    for name in models.__all__:
        assert getattr(models, name).__name__ == name


def test_it_is_all_that_type_checkers_see():
    tree = ast.parse(Path(models.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in checked.body for alias in node.names) == models.__all__


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'convert_all'"):
        models.convert_all  # noqa: B018 - the access is what is tested


def test_importing_it_imports_no_file_format_and_no_compiler():
    code = "import sys, lowrank_core.models; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numba", "safetensors", "ml_dtypes", "distributed"}.isdisjoint(run.stdout.split())


def test_a_name_is_imported_when_it_is_used():
    code = "import sys, lowrank_core.models as m; b = len(sys.modules); m.Budget; print(len(sys.modules) > b)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize("name", [name for name in models.__all__ if name.islower()])
def test_every_public_function_is_documented(name):
    text = inspect.getdoc(getattr(models, name))
    # An example needs a cluster.
    assert "\nExamples\n" in text or name == "dask_cluster"
    assert "\nParameters\n" in text
    assert "\nRaises\n" in text or name == "to_json"
