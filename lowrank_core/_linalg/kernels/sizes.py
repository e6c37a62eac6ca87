"""What callers of kernels have to know of them, in a file that does not import Numba."""

from __future__ import annotations

__all__ = ["BAND", "WIDTH"]

# Numbers in a vector unless said otherwise: one register of AVX-512, two of AVX2.
WIDTH = 8

# Diagonals of a band that the first of two stages leaves, beside the main one, and columns of a panel. A product with
# so many columns runs near a core's speed for matrix products; the second stage takes time in proportion to them.
BAND = 32
