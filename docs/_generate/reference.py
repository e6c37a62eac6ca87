"""The reference: a page for each room of the core, and for the rooms that users import from, from their docstrings.

    python docs/_generate/reference.py FOLDER

What is listed is what the modules declare public, so that nothing can be forgotten.
"""

import importlib
import inspect
import sys
from pathlib import Path

import lowrank_core

# In the order in which one needs them.
ROOMS = ("spectra", "factors", "truncation", "sweeps", "ranks", "allocation", "scaling", "learning", "synthetic")
# Not at the door, and to be imported from.
BESIDE = ("storage", "noise", "testing")
FILES = (
    *("inspection", "census", "adapters", "checkpoints", "extraction", "resizing", "merging", "compression"),
    *("budgets", "planning", "rounding"),
)


def write_all(folder):
    """Write every page into a folder."""
    core = {room: importlib.import_module(f"lowrank_core.{room}") for room in ROOMS}
    door = {name: getattr(lowrank_core, name) for name in lowrank_core.__all__ if name != "__version__"}
    placed = {room: names_from(door, module) for room, module in core.items()}
    forgotten = set(door).difference(*placed.values())
    if forgotten:
        raise ValueError(f"no page of the reference has {sorted(forgotten)}; add their room to ROOMS")
    for room, module in core.items():
        write(folder, room, room.capitalize(), "lowrank_core", placed[room], introduction=f"{summary(module)}.")
    for room in BESIDE:
        module = importlib.import_module(f"lowrank_core.{room}")
        write(folder, room, module.__name__, module.__name__, module.__all__, data=module)
    for room in FILES:
        module = importlib.import_module(f"lowrank_core.models.{room}")
        write(folder, f"models-{room}", f"lowrank_core.models.{room}", module.__name__, public(module))


def names_from(door, module):
    """Names at the door that a module defines, in the module's own order."""
    here = [name for name, value in door.items() if value.__module__ == module.__name__]
    return sorted(here, key=lambda name: inspect.getsourcelines(door[name])[1])


def public(module):
    """Names that a module declares public, or else defines without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return [name for name in own if not name.startswith("_")]


def summary(module):
    """First line of a module's docstring, without its full stop."""
    return module.__doc__.partition("\n")[0].rstrip(".")


def write(folder, page, title, package, names, data=None, introduction=""):
    """Write a page that lists names, and then documents each."""
    # A module that users import from introduces itself; the rooms behind the door are not to be imported from.
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
