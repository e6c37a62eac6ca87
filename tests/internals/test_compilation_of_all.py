"""Every kernel is compiled by the problems that are there to compile them."""

import pkgutil
from importlib import import_module

from lowrank_core._linalg import kernels
from lowrank_core.compilation import compile_kernels

# What others compile as part of themselves.
PARTS = {"dqds", "householder", "narrow", "simd"}


def test_every_kernel_is_compiled() -> None:
    compiled = set(compile_kernels().kernels)
    for module in {each.name for each in pkgutil.iter_modules(kernels.__path__)} - PARTS:
        found = import_module(f"{kernels.__name__}.{module}")
        for name, function in vars(found).items():
            own = getattr(getattr(function, "py_func", None), "__module__", None) == found.__name__
            if own and not name.startswith("_"):
                assert f"{module}.{name}" in compiled
