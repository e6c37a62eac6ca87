"""What callers of kernels have to know of them, in a file that does not import Numba."""

from __future__ import annotations

__all__ = ["WIDTH"]

# Numbers in a vector unless said otherwise: one register of AVX-512, two of AVX2.
WIDTH = 8
