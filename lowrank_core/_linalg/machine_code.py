"""Kernels as callers get them: the machine code that an earlier process left, or what Numba compiles now.

Importing Numba and setting up its compiler takes several times as long as importing NumPy, even where its own cache has
the code. The code itself needs neither: it takes pointers and sizes, and llvmlite alone loads it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lowrank_core._linalg.threads import call_with_lock

__all__ = ["code_folder", "kernel", "kernels_in_use"]

KERNELS = "lowrank_core._linalg.kernels"
# Modules of functions that kernels call.
_SHARED = (".dqds", ".householder", ".narrow", ".simd")

_lock = threading.RLock()
_loaded: dict[tuple[str, str], Callable[..., Any]] = {}
# Modules that were imported here to compile one of their kernels, and the kernels whose machine code is written.
_imported_here: set[str] = set()
_written: set[tuple[str, str]] = set()


def kernel(module: str, name: str) -> Callable[..., Any]:
    """Return a kernel: that of its module where it is imported, else its machine code, else as Numba compiles it."""
    imported: Callable[..., Any] | None = getattr(sys.modules.get(f"{KERNELS}.{module}"), name, None)
    if imported is not None and (module not in _imported_here or (module, name) in _written):
        return imported
    return call_with_lock(_lock, _load, module, name)


def _load(module: str, name: str) -> Callable[..., Any]:
    if (module, name) not in _loaded:
        from lowrank_core._linalg.object_files import load

        _loaded[module, name] = load(module, name) or _compiling(module, name)
    return _loaded[module, name]


def _compiling(module: str, name: str) -> Callable[..., Any]:
    """Return a kernel that Numba compiles when it is called, and whose machine code is then written."""

    def call(*arguments: Any) -> Any:
        from lowrank_core._linalg.exporting import write_machine_code

        _imported_here.add(module)
        function = getattr(import_module(f"{KERNELS}.{module}"), name)
        result = function(*arguments)

        def write() -> None:
            if (module, name) not in _written:  # threads that came here together need one file
                _written.add((module, name))
                write_machine_code(function, module, name)

        call_with_lock(_lock, write)
        return result

    return call


def code_folder() -> str | None:
    """Return the folder where machine code is written, or None where none can be."""
    from lowrank_core._linalg.object_files import cache_folders, is_writable

    return next((str(folder) for folder in cache_folders() if is_writable(folder)), None)


def kernels_in_use() -> tuple[str, ...]:
    """Return the names of all kernels that this process has called, helpers and what they share apart."""
    compiled = {
        f"{path.removeprefix(KERNELS + '.')}.{name}"
        for path, module in list(sys.modules.items())
        if path.startswith(f"{KERNELS}.") and not path.endswith(_SHARED)
        for name, function in vars(module).items()
        if getattr(function, "signatures", None) and function.py_func.__module__ == path and not name.startswith("_")
    }
    return tuple(sorted(compiled | {".".join(names) for names in _loaded}))
