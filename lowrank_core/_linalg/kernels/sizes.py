"""What callers of kernels have to know of them, in a file that does not import Numba."""

from __future__ import annotations

__all__ = ["APART", "BAND", "COLUMNS", "WIDE_APART", "WIDTH"]

# Numbers in a vector unless said otherwise: one register of AVX-512, two of AVX2.
WIDTH = 8

# Columns that a large matrix is multiplied by at a time: vectors of a block, or reflectors of a panel. A few registers
# hold a row of them.
COLUMNS = 32

# Diagonals of a band that the first of two stages leaves, beside the main one, and columns of a panel. The second stage
# takes time in proportion to them.
BAND = COLUMNS

# Numbers between rows of a block of a band, and of an upper band: while that is reduced, it has up to BAND − 1 numbers
# below the diagonal and 2·BAND − 1 above it.
APART, WIDE_APART = 2 * BAND, 3 * BAND
