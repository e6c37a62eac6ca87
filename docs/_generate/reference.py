"""Write the reference: a page for each module of the core and for each public module beside it.

    python docs/_generate/reference.py FOLDER

The public names of the modules are listed, and a name without a page is an error.
"""

import importlib
import inspect
import sys
from pathlib import Path

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


def write_all(folder):
    """Write every page into a folder."""
    core = {name: importlib.import_module(f"lowrank_core.{name}") for name in CORE}
    public = {name: getattr(lowrank_core, name) for name in lowrank_core.__all__ if name != "__version__"}
    listed = {name: defined_in(module, public) for name, module in core.items()}
    forgotten = set(public).difference(*listed.values())
    if forgotten:
        raise ValueError(f"no page of the reference has {sorted(forgotten)}; add their module to CORE")
    for name, module in core.items():
        write(folder, name, name.capitalize(), "lowrank_core", listed[name], introduction=f"{summary(module)}.")
    for name in BESIDE:
        module = importlib.import_module(f"lowrank_core.{name}")
        write(folder, name, module.__name__, module.__name__, module.__all__, data=module)


def defined_in(module, public):
    """Return the public names that a module defines, in the module's own order."""
    own = [name for name, value in public.items() if value.__module__ == module.__name__]
    return sorted(own, key=lambda name: inspect.getsourcelines(public[name])[1])


def summary(module):
    """Return the first line of a module's docstring, without its full stop."""
    return module.__doc__.partition("\n")[0].rstrip(".")


def write(folder, page, title, package, names, data=None, introduction=""):
    """Write a page that lists names and documents each."""
    # Users import from a module of BESIDE, so its own docstring opens the page; those of the core they import from
    # `lowrank_core`.
    module = f".. currentmodule:: {package}" if introduction else f".. automodule:: {package}"
    parts = [title, "=" * len(title), "", introduction, "", module, "", ".. autosummary::", "   :nosignatures:", ""]
    parts += [f"   {name}" for name in names if data is None or callable(getattr(data, name))]
    parts.append("")
    for name in names:
        value = getattr(importlib.import_module(package), name)
        kind = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "autodata"
        parts += [f".. {kind}:: {name}", *(["   :members:"] if kind == "autoclass" else []), ""]
    Path(folder, f"{page}.rst").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
