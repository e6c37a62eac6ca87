"""Check that the files that state the version and the requirements agree, and render the conda-forge recipe.

python .ci/metadata.py
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any

import records
import yaml
from rattler_build import Stage0Recipe

# Packages of conda-forge without what only interactive use needs.
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
RELEASE = re.compile(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", re.MULTILINE)


def main() -> int:
    """Print what disagrees; the exit code is 1 where anything does."""
    project = tomllib.loads(read("pyproject.toml"))
    found = [*version_faults(), *requirement_faults(project)]
    print("".join(f"{fault}\n" for fault in found), end="")
    return bool(found)


def version_faults() -> Iterator[str]:
    """Yield what states another version than the newest release of CHANGELOG.md."""
    newest = RELEASE.search(read("CHANGELOG.md"))
    if newest is None:
        yield "CHANGELOG.md has no heading as '## 0.1.0 - 2026-11-27'"
        return
    citation = yaml.safe_load(read("CITATION.cff"))
    for file, stated in (
        ("CITATION.cff", (citation["version"], citation["date-released"])),
        ("packaging/recipe.yaml", (recipe()["package"]["version"], newest[2])),
    ):
        if stated != newest.groups():
            yield f"{file} has {stated}, and CHANGELOG.md {newest.groups()}"


def requirement_faults(project: dict[str, Any]) -> Iterator[str]:
    """Yield requirements that only one of pyproject.toml and the recipe has."""
    tables, rendered = project["project"], recipe()["requirements"]
    extras = tables["optional-dependencies"]
    own = [*tables["dependencies"], *extras["models"], *extras["cli"]]
    run = {*requirements(own), f"python{tables['requires-python']}"}
    host = {*requirements(project["build-system"]["requires"]), "pip"}
    stated = {"run": run, "host": host}
    for name, wanted in stated.items():
        has = {bound for bound in requirements(rendered[name]) if name == "run" or not bound.startswith("python")}
        for requirement in sorted(wanted ^ has):
            yield f"only {'pyproject.toml' if requirement in wanted else 'the recipe'} has {requirement} ({name})"


def requirements(stated: Iterable[str]) -> Iterator[str]:
    """Yield requirements of other projects, under PyPI's names and without spaces."""
    for requirement in stated:
        name, *bound = re.split(r"(?=[<>= ])", requirement, maxsplit=1)
        if not name.startswith("lowrank_core"):
            yield CONDA_NAMES.get(name, name) + "".join(bound).replace(" ", "")


def recipe() -> dict[str, Any]:
    """Return the recipe as rattler-build renders it."""
    (rendered,) = Stage0Recipe.from_yaml(read("packaging/recipe.yaml")).render()
    return rendered.recipe.to_dict()


def read(path: str) -> str:
    """Return the text of a file of the repository."""
    return (records.ROOT / path).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
