"""Singular values of large matrices: a Gram matrix reduced in two stages, to a band and to tridiagonal form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import BLOCK_ENTRIES, Batching, values_in_chunks
from lowrank_core._linalg.gram import lapack_gram_values
from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.panels import whole_panels
from lowrank_core._linalg.powers_of_two import scaled_to_squares
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._linalg.values import Floats, Values, unscaled_values

__all__ = ["band_form", "gram_eigenvalues", "lower_tiles", "tridiagonal_eigenvalues", "two_stage_gram_values"]

# Parts that the matrix is divided into while it is reduced, each with sums of its own, so that the bits do not depend
# on how many threads take them.
PARTS = 4

# Rows of the Gram matrix that are formed together: a product with fewer would not run at full speed, with more it
# would form more of what lies above the diagonal.
STRIP = 256


def two_stage_gram_values(stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n), one matrix after another, each on all workers."""
    from lowrank_core._linalg.kernels.compiling import COMPILED

    if not COMPILED:
        return values_in_chunks(lapack_gram_values, Batching(one_at_a_time=True), stack, workers)
    count, m, n = stack.shape
    values, norms = np.empty((count, min(m, n))), np.empty(count)
    for i, matrix in enumerate(stack):
        scaled, exponent = scaled_to_squares(matrix)
        eigenvalues, trace, gram_exponent = gram_eigenvalues(scaled, workers, of_rows=m < n)
        unscaled = unscaled_values(np.sqrt(eigenvalues[::-1]), np.sqrt(trace), exponent + gram_exponent)
        values[i], norms[i] = unscaled.values, unscaled.norms
    return Values(values, norms)


def gram_eigenvalues(matrix: NDArray[Any], workers: int, *, of_rows: bool) -> tuple[Floats, float, int]:
    """Return the eigenvalues, ascending, and the trace of X Xᵀ (of rows) or Xᵀ X over 4^exponent, and the exponent.

    Eigenvalues that rounding made negative are zero.
    """
    from lowrank_core._linalg.kernels.chasing import chase

    size = min(matrix.shape)
    diagonal, squares = np.empty(size), np.empty(size)
    # Threads of BLAS would go on waiting for work, on the cores that the team needs.
    with blas_threads(1), Team(workers) as team:
        tiles = lower_tiles(matrix, team, of_rows=of_rows)
        rows = np.arange(-(-size // tiles.shape[-1]))
        entries = np.diagonal(tiles[rows * (rows + 3) // 2], axis1=-2, axis2=-1)
        exponent = int(np.frexp(np.max(entries))[1]) // 2
        trace = float(np.ldexp(np.sum(entries), -2 * exponent))
        if exponent:
            # So that squares of the entries stay in range.
            np.multiply(tiles, np.ldexp(1.0, -2 * exponent), out=tiles)
        chase(band_form(tiles, size, team), diagonal, squares, np.empty(0))
        return tridiagonal_eigenvalues(diagonal, squares, size, team), trace, exponent


def lower_tiles(matrix: NDArray[Any], team: Team, *, of_rows: bool) -> Floats:
    """Compute the tiles of the lower triangle of X Xᵀ (of rows) or Xᵀ X in float64, zero beyond the matrix.

    Shape (tiles, TILE, TILE), by tile rows, with all of each tile on the diagonal. X is converted in blocks along its
    other side, never as a whole.
    """
    from lowrank_core._linalg.kernels.band import TILE

    size, length = matrix.shape if of_rows else matrix.shape[::-1]
    rows = -(-size // TILE)
    tiles = np.zeros((rows * (rows + 1) // 2, TILE, TILE))
    step = min(length, max(BLOCK_ENTRIES // size, -(-size // 4)))
    block = np.zeros((step, rows * TILE))

    def add(top: int) -> None:
        bottom = min(top + STRIP, rows * TILE)
        strip = block[:, top:bottom].T @ block[:, :bottom]
        for row in range(top // TILE, bottom // TILE):
            first = row * (row + 1) // 2
            part = strip[row * TILE - top :][:TILE, : (row + 1) * TILE].reshape(TILE, row + 1, TILE)
            tiles[first : first + row + 1] += part.swapaxes(0, 1)

    for start in range(0, length, step):
        chosen = matrix[:, start : start + step].T if of_rows else matrix[start : start + step]
        block = block[: len(chosen)]
        block[:, :size] = chosen
        team.map(add, range(0, rows * TILE, STRIP)[::-1])
    return tiles


def band_form(tiles: Floats, size: int, team: Team) -> Floats:
    """Reduce a symmetric matrix to a band with the same eigenvalues, for `chase`, overwriting its tiles.

    Reflectors I − V T Vᵀ reduce each panel of columns to BAND entries below the diagonal; applied from both sides they
    turn A into A − V Wᵀ − W Vᵀ, where W = A V T − ½ V Tᵀ Vᵀ A V T (Schreiber and Van Loan, SIAM J. Sci. Stat. Comput.
    10 (1989) 53). The pass for the next panel's A V subtracts that.
    """
    from lowrank_core._linalg.kernels.band import DEPTH, accumulate, pack, reduce_panel, update_and_multiply

    end = whole_panels(size)
    flat = tiles.reshape(-1)
    band = np.zeros((end + 3 * BAND) * (2 * BAND + 1))
    left, right = np.zeros((end, DEPTH)), np.zeros(end * DEPTH)
    V, W, product = np.zeros((3, end, BAND))
    T = np.zeros((BAND, BAND))
    partial_products = np.empty((PARTS, end * BAND))

    def multiply(part: int) -> None:
        update_and_multiply(flat, below, end, left.reshape(-1), right, V.reshape(-1), partial_products, part)

    for begin in range(0, end, BAND):  # pragma: no branch - the last panel leaves
        reduce_panel(flat, begin, end, left.reshape(-1), right, V.reshape(-1), band)
        below = begin + BAND
        if below == end:
            break
        team.map(multiply, range(PARTS))
        v, w, p = V[below:], W[below:], product[below:]
        np.sum(partial_products[:, below * BAND :], axis=0, out=p.reshape(-1))
        accumulate(v, T)
        half = 0.5 * (T.T @ (v.T @ p) @ T)
        # In place: memory that is new each time would take as long as the products.
        np.matmul(p, T, out=w)
        np.subtract(w, np.matmul(v, half, out=p), out=w)
        np.negative(v, out=left[below:, :BAND])
        np.negative(w, out=left[below:, BAND:])
        pack(W.reshape(-1), below, right, 0)
        pack(V.reshape(-1), below, right, BAND)
    return band


def tridiagonal_eigenvalues(diagonal: Floats, squares: Floats, count: int, team: Team) -> Floats:
    """Compute the largest eigenvalues of the tridiagonal form that `chase` returns, ascending; none below zero."""
    from lowrank_core._linalg.kernels.bisection import NEGLIGIBLE, SHIFTS, bisect

    off_diagonal = np.sqrt(np.roll(squares, 1))
    # Gershgorin's discs end at the largest of these sums.
    highest, exponent = np.frexp(np.max(diagonal + off_diagonal + np.sqrt(squares)))
    scaled, scaled_off_diagonal = np.ldexp(diagonal, -exponent), np.ldexp(off_diagonal, -exponent)
    couplings = np.where(scaled_off_diagonal < NEGLIGIBLE * highest, 0.0, scaled_off_diagonal**2)
    eigenvalues, first = np.empty((-(-count // SHIFTS), SHIFTS)), diagonal.size - count

    def find(group: int) -> None:
        bisect(scaled, couplings, highest, first + group * SHIFTS, eigenvalues[group])

    team.map(find, range(len(eigenvalues)))
    return np.ldexp(eigenvalues.reshape(-1)[:count], exponent)
