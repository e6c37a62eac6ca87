"""Kernels, compiled and as the Python functions that they are compiled from."""

import pytest


def plain(kernel):
    """Return the Python function of a kernel; kernels that it calls are compiled, unless Numba is switched off."""
    return getattr(kernel, "py_func", kernel)


def both(kernel):
    """Parametrise a test by a kernel, compiled and as Python."""
    return pytest.mark.parametrize("kernel", [kernel, plain(kernel)], ids=["compiled", "python"])
