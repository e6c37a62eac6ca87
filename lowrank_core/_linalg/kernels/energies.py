"""Head and tail energies of spectra, and the errors that follow from them."""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast, fma, load, load_rows, store, store_rows, transpose

__all__ = ["energies", "error_sweep"]

# Values in a block of partial sums. Eight blocks are summed at once, each in a lane: a chain of additions waits for its
# last one.
BLOCK = 64


@kernel
def _place(i: int) -> int:
    """Return where number i of a row is while eight blocks are side by side."""
    return i // (BLOCK * WIDTH) * (BLOCK * WIDTH) + i % BLOCK * WIDTH + i // BLOCK % WIDTH


@kernel
def _row_energies(values: Floats, norm: float, sums: Floats) -> float:
    """Sum the energies of a spectrum by blocks; return the power of two whose square the values are multiplied by.

    H_r is then before[b] + heads[r − 1] for the block b of value r − 1, and T_r is after[b] + tails[r] for that of
    value r, in their places. Every sum is monotone to the bit.
    """
    p, heads, tails, before, after, scaled, row = values.size, sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    # Scaled first, by a power of two taken as a square, since 2^1074 is no float64: 1e±200 have no square.
    scale = math.ldexp(1.0, -(math.frexp(norm)[1] // 2))
    for i in range(p):
        row[i] = values[i] * scale * scale
    for start in range(0, p, BLOCK * WIDTH):
        for i in range(0, min(BLOCK, p - start), WIDTH):
            store_rows(scaled, start + i * WIDTH, WIDTH, transpose(load_rows(row, start + i, BLOCK, WIDTH)))
        last = (min(BLOCK, p - start) - 1) * WIDTH
        head = tail = broadcast(0.0)
        for i in range(0, last + 1, WIDTH):
            x, y = load(scaled, start + i), load(scaled, start + last - i)
            head, tail = fma(x, x, head), fma(y, y, tail)
            store(heads, start + i, head)
            store(tails, start + last - i, tail)
    blocks = (p + BLOCK - 1) // BLOCK
    for block in range(blocks):
        before[block + 1] = before[block] + heads[_place(min((block + 1) * BLOCK, p) - 1)]
    # From the small end, so that a tail of 1e-30 next to a head of 1 keeps its digits.
    after[max(blocks - 1, 0)] = 0.0
    for block in range(blocks - 1, 0, -1):
        after[block - 1] = after[block] + tails[_place(block * BLOCK)]
    return scale


@kernel
def _fractions(
    values: Floats, norm: float, complete: bool, ranks: Integers, sums: Floats, heads: Floats, tails: Floats
) -> None:
    """Fill H_r / N² and T_r / N² at each rank of one spectrum; all zero for a zero update."""
    if norm == 0.0:
        heads[:] = tails[:] = 0.0
        return
    p, (within, beyond, before, after) = values.size, (sums[0], sums[1], sums[2], sums[3])
    scale = _row_energies(values, norm, sums)
    # Each sum is divided by itself taken whole, so that H_p / N² and T_0 / N² are exactly 1.
    head_energy, tail_energy = before[(p + BLOCK - 1) // BLOCK], after[0] + beyond[0]
    if not complete:
        scaled_norm = norm * scale * scale
        head_energy = scaled_norm * scaled_norm
    for j in range(ranks.size):
        rank = min(ranks[j], p)
        head = before[(rank - 1) // BLOCK] + within[_place(rank - 1)] if rank > 0 else 0.0
        heads[j] = min(head / head_energy, 1.0)
        if complete:
            tails[j] = (after[rank // BLOCK] + beyond[_place(rank)]) / tail_energy if rank < p else 0.0
        else:
            tails[j] = 1.0 - heads[j]


@kernel
def _sums(values: Floats) -> Floats:
    """Return zeros for the sums of any row."""
    return np.zeros((6, (values.shape[1] // (BLOCK * WIDTH) + 1) * BLOCK * WIDTH + 40))


@kernel
def energies(
    values: Floats, norms: Floats, complete: bool, ranks: Integers, head_fractions: Floats, tail_fractions: Floats
) -> None:
    """Head and tail energies H_r / N² and T_r / N², shape (batch, ranks), of spectra of shape (batch, p)."""
    sums = _sums(values)
    for b in range(values.shape[0]):
        _fractions(values[b], norms[b], complete, ranks, sums, head_fractions[b], tail_fractions[b])


@kernel
def error_sweep(
    values: Floats, norms: Floats, complete: bool, ranks: Integers, scalings: Floats, errors: Floats, optimal: Floats
) -> None:
    """Errors √((1 − γ)² H_r + T_r) / N, shape (batch, scalings, ranks), and the best possible, (batch, ranks).

    `scalings` has shape (scalings, ranks).
    """
    sums, lost = _sums(values), np.abs(1.0 - scalings)
    heads, tails = np.empty(ranks.size), np.empty(ranks.size)
    # A γ of 1e200 has no square; hypot, which needs none, takes many times as long.
    squares_fit = np.all(lost < 1e150)
    for b in range(values.shape[0]):
        _fractions(values[b], norms[b], complete, ranks, sums, heads, tails)
        for j in range(ranks.size):
            optimal[b, j] = math.sqrt(tails[j])
        for k in range(scalings.shape[0]):
            for j in range(ranks.size):
                if squares_fit:
                    errors[b, k, j] = math.sqrt(lost[k, j] * lost[k, j] * heads[j] + tails[j])
                else:
                    errors[b, k, j] = math.hypot(lost[k, j] * math.sqrt(heads[j]), math.sqrt(tails[j]))
