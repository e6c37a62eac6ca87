"""Kernels as they are compiled, and as the Python functions that they are made from."""

import pytest


def plain(kernel):
    """The Python function of a kernel; kernels that it calls stay compiled, unless Numba is switched off."""
    return getattr(kernel, "py_func", kernel)


def both(kernel):
    return pytest.mark.parametrize("kernel", [kernel, plain(kernel)], ids=["compiled", "python"])
