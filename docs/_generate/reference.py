"""Write the reference: a page for each module of the core and for each public module beside it.

    python docs/_generate/reference.py FOLDER

The public names of the modules are listed, and a name without a page is an error.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from sphinx.pycode import ModuleAnalyzer

import lowrank_core

# From the first that a reader needs on.
CORE = (
    "spectra",
    "updates",
    "kronecker_updates",
    "structured",
    "comparison",
    "space_overlap",
    "truncation",
    "sweeps",
    "ranks",
    "allocation",
    "scaling",
    "learning",
    "synthetic",
)
# Imported by their own names, not from `lowrank_core`.
BESIDE = ("rounding_noise", "noise", "testing", "models")


class Page(NamedTuple):
    """A page: its file's name and title, the package that its names are imported from, their module, the names."""

    name: str
    title: str
    package: str
    module: ModuleType
    names: Sequence[str]


def write_all(folder):
    """Write every page into a folder, and the lists of names that the first page of the reference has."""
    core = {name: importlib.import_module(f"lowrank_core.{name}") for name in CORE}
    public = {name: getattr(lowrank_core, name) for name in lowrank_core.__all__ if name != "__version__"}
    listed = {name: defined_in(module, public) for name, module in core.items()}
    forgotten = set(public).difference(*listed.values())
    if forgotten:
        raise ValueError(f"no page of the reference has {sorted(forgotten)}; add their module to CORE")
    pages = [Page(name, title(name), "lowrank_core", module, listed[name]) for name, module in core.items()]
    for name in BESIDE:
        module = importlib.import_module(f"lowrank_core.{name}")
        pages.append(Page(name, module.__name__, module.__name__, module, module.__all__))
    for page in pages:
        Path(folder, f"{page.name}.rst").write_text(documented(page), encoding="utf-8")
    # Not .md or .rst, which would make a page of it.
    Path(folder, "names.txt").write_text("\n".join(map(section, pages)), encoding="utf-8")


def title(name):
    """Return the title of the page of a module of the core."""
    return name.capitalize().replace("_", " ")


def defined_in(module, public):
    """Return the public names that a module defines, in the module's own order."""
    own = [name for name, value in public.items() if value.__module__ == module.__name__]
    return sorted(own, key=lambda name: inspect.getsourcelines(public[name])[1])


def summary(module):
    """Return the first line of a module's docstring, without its full stop."""
    return module.__doc__.partition("\n")[0].rstrip(".")


def section(page):
    """Return a part of the list of all names: a link to their page, its summary, and a line for each name."""
    table = [f".. currentmodule:: {page.package}", "", *summaries(page)]
    parts = [f"### [{page.title}](generated/{page.name}.rst)", "", f"{summary(page.module)}.", ""]
    return "\n".join([*parts, "```{eval-rst}", *table, "```", ""])


def summaries(page):
    """Return a table with a line for each class and function."""
    names = [f"   {name}" for name in page.names if callable(value_of(page, name))]
    return [".. autosummary::", "   :nosignatures:", "", *names, ""]


def documented(page):
    """Return a page that lists its names and documents each."""
    # Users import from a module of BESIDE, so its own docstring opens the page; those of the core they import from
    # `lowrank_core`.
    of_core = page.package == "lowrank_core"
    module = f".. currentmodule:: {page.package}" if of_core else f".. automodule:: {page.package}"
    introduction = f"{summary(page.module)}." if of_core else ""
    parts = [page.title, "=" * len(page.title), "", introduction, "", module, "", *summaries(page)]
    for name in page.names:
        value = value_of(page, name)
        if callable(value):
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            parts += [f".. {kind}:: {name}", *(["   :members:"] if kind == "autoclass" else []), ""]
        else:
            parts += [f".. data:: {name}", f"   :value: {value!r}", "", f"   {comment(page, name)}", ""]
    return "\n".join(parts)


def comment(page, name):
    """Return the ``#:`` comment of a constant, which autodoc finds only in the module that assigns it."""
    for module in pkgutil.iter_modules(page.module.__path__, f"{page.package}."):
        comments = ModuleAnalyzer.for_module(module.name).find_attr_docs()
        if ("", name) in comments:
            return " ".join(comments["", name]).strip()
    raise ValueError(f"{page.package}.{name} has no #: comment where it is assigned")


def value_of(page, name):
    """Return the value of a public name."""
    return getattr(importlib.import_module(page.package), name)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
