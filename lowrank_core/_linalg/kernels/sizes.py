"""What callers of kernels have to know of them, in a file that does not import Numba."""

from __future__ import annotations

__all__ = ["BAND", "COLUMNS", "WIDTH"]

# Numbers in a vector unless said otherwise: one register of AVX-512, two of AVX2.
WIDTH = 8

# Columns that a large matrix is multiplied by at a time: vectors of a block, or reflectors of a panel. A few registers
# hold a row of them.
COLUMNS = 32

# Diagonals of a band that the first of two stages leaves, beside the main one, and columns of a panel. The second stage
# takes time in proportion to them.
BAND = COLUMNS
