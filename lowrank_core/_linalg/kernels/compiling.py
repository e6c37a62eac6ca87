"""How every kernel is compiled, and the types that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["COMPILED", "Floats", "Integers", "kernel"]

# NUMBA_DISABLE_JIT=1 leaves kernels as Python, which is for looking into them, not for large matrices.
COMPILED = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]  # set by Numba while it is imported

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function when it is first called, and keep the code on disk for the next process.

    Of a private function, a helper, Numba keeps the code with that of the kernels that call it: no copy of its own.
    """
    # "contract" alone lets a·b + c be one fused instruction: one rounding fewer, and no sum reordered.
    # A wrapper for C code would be compiled like the function itself, and has no use here.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "no_cfunc_wrapper": True}
    try:
        compiled: Function = numba.njit(cache=not function.__name__.startswith("_"), **options)(function)
    except RuntimeError:  # Numba found no writable folder for its cache: compile anew in each process.
        compiled = numba.njit(**options)(function)
    if compiled is function:  # NUMBA_DISABLE_JIT=1: as Python, and as silent as compiled code where a run diverges.
        compiled = np.errstate(all="ignore")(function)
    return compiled
