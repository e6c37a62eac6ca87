"""Singular values of one large matrix: its float64 Gram matrix to a band, to three diagonals, to eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import thresholds
from lowrank_core.threads import Crew, blas_threads

__all__ = ["band_of", "lower_tiles", "tridiagonal_of"]

Floats = NDArray[np.float64]

# Parts that the matrix is cut into while it is reduced, each with sums of its own, so that the bits do not depend on
# how many threads take them.
PARTS = 4

# Rows of the Gram matrix that are formed together: a product with fewer would not run at full speed, with more it
# would form more of what lies above the diagonal.
STRIP = 512


def lower_tiles(matrix: NDArray[Any], *, of_rows: bool) -> Floats:
    """Form the tiles of the lower triangle of X Xᵀ (of rows) or Xᵀ X in float64, zero beyond the matrix.

    Shape (tiles, TILE, TILE), those on the diagonal whole, one tile row after the other. X is converted in blocks along
    its other side, never as a whole.
    """
    from lowrank_core.kernels.band import TILE

    size, length = matrix.shape if of_rows else matrix.shape[::-1]
    rows = -(-size // TILE)
    tiles = np.zeros((rows * (rows + 1) // 2, TILE, TILE))
    step = min(length, max(thresholds.BLOCK_ENTRIES // size, -(-size // 4)))
    block = np.zeros((step, rows * TILE))
    product = np.empty(STRIP * rows * TILE)
    for start in range(0, length, step):
        chosen = matrix[:, start : start + step].T if of_rows else matrix[start : start + step]
        block = block[: len(chosen)]
        block[:, :size] = chosen
        for top in range(0, rows * TILE, STRIP):
            bottom = min(top + STRIP, rows * TILE)
            strip = product[: (bottom - top) * bottom].reshape(bottom - top, bottom)
            np.matmul(block[:, top:bottom].T, block[:, :bottom], out=strip)
            for row in range(top // TILE, bottom // TILE):
                first = row * (row + 1) // 2
                part = strip[row * TILE - top :][:TILE, : (row + 1) * TILE].reshape(TILE, row + 1, TILE)
                tiles[first : first + row + 1] += part.swapaxes(0, 1)
    return tiles


def band_of(tiles: Floats, size: int, workers: int) -> Floats:
    """Reduce a symmetric matrix to a band of the same eigenvalues, for `kernels.band.chase`; the tiles are used up.

    Each panel of columns is reduced by reflectors I − V T Vᵀ to what reaches BAND below the diagonal; on both sides of
    A they make A − V Wᵀ − W Vᵀ with W = A V T − ½ V Tᵀ Vᵀ A V T. That is subtracted in one pass with the next panel's A V.
    """
    from lowrank_core.kernels.band import BAND, DEPTH, TILE, apply, packed, panel

    end = -(-size // BAND) * BAND
    flat = tiles.reshape(-1)
    band = np.zeros((end + 3 * BAND) * (2 * BAND + 1))
    left, right = np.zeros(end * DEPTH), np.zeros(end * DEPTH)
    V, W = np.zeros((end, BAND)), np.zeros((end, BAND))
    shares = np.empty((PARTS, end * BAND))
    with Crew(workers) as crew:
        for begin in range(0, end, BAND):
            panel(flat, begin, end, left, right, V.reshape(-1), band)
            below = begin + BAND
            if below == end:
                break
            crew.map(
                lambda part, below=below: apply(flat, below, end, left, right, V.reshape(-1), shares, part), range(PARTS)
            )
            v = V[below:]
            product = np.sum(shares[:, below * BAND :], axis=0).reshape(v.shape)
            T = np.linalg.inv(np.triu(v.T @ v, 1) + np.eye(BAND))
            np.matmul(product, T, out=product)
            W[below:] = product - v @ (0.5 * (T.T @ (v.T @ product)))
            packed(V.reshape(-1), W.reshape(-1), below, left, right)
    return band
