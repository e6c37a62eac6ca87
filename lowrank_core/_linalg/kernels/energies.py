"""Head and tail energies of spectra, and the errors that follow from them."""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel

__all__ = ["energies", "error_sweep"]

# Values in a block of partial sums; sums of blocks, of which several are under way at once, do not wait for each other.
BLOCK = 64


@kernel
def _block_energies(values: Floats, scale: float, heads: Floats, tails: Floats, start: int, stop: int) -> None:
    """Sum (value · scale · scale)² along one block: heads from its first value on, tails from its last."""
    head = 0.0
    tail = 0.0
    for i in range(start, stop):
        value = values[i] * scale * scale
        head += value * value
        heads[i] = head
    for i in range(stop - 1, start - 1, -1):
        value = values[i] * scale * scale
        tail += value * value
        tails[i] = tail


@kernel
def _row_energies(values: Floats, norm: float, heads: Floats, tails: Floats, before: Floats, after: Floats) -> float:
    """Energies of one spectrum, by blocks: within each in `heads` and `tails`, before and after each in the others.

    H_r is then before[b] + heads[r − 1] for the block b of value r − 1, and T_r is after[b] + tails[r] for that of
    value r. Four blocks at once keep as many chains of additions under way, and every sum stays monotone to the bit.
    Returns the power of two whose square the values were multiplied with.
    """
    p = values.size
    # Scaled first, by a power of two taken as a square, since 2^1074 is no float64: 1e±200 have no square.
    exponent = math.frexp(norm)[1]
    scale = math.ldexp(1.0, -(exponent // 2))
    fours = p // (4 * BLOCK)
    for four in range(fours):
        o0 = four * 4 * BLOCK
        o1, o2, o3 = o0 + BLOCK, o0 + 2 * BLOCK, o0 + 3 * BLOCK
        h0 = h1 = h2 = h3 = t0 = t1 = t2 = t3 = 0.0
        for i in range(BLOCK):
            j = BLOCK - 1 - i
            a0, a1 = values[o0 + i] * scale * scale, values[o1 + i] * scale * scale
            a2, a3 = values[o2 + i] * scale * scale, values[o3 + i] * scale * scale
            b0, b1 = values[o0 + j] * scale * scale, values[o1 + j] * scale * scale
            b2, b3 = values[o2 + j] * scale * scale, values[o3 + j] * scale * scale
            h0, h1, h2, h3 = h0 + a0 * a0, h1 + a1 * a1, h2 + a2 * a2, h3 + a3 * a3
            t0, t1, t2, t3 = t0 + b0 * b0, t1 + b1 * b1, t2 + b2 * b2, t3 + b3 * b3
            heads[o0 + i], heads[o1 + i], heads[o2 + i], heads[o3 + i] = h0, h1, h2, h3
            tails[o0 + j], tails[o1 + j], tails[o2 + j], tails[o3 + j] = t0, t1, t2, t3
    for start in range(fours * 4 * BLOCK, p, BLOCK):
        _block_energies(values, scale, heads, tails, start, min(start + BLOCK, p))
    blocks = (p + BLOCK - 1) // BLOCK
    before[0] = 0.0
    for block in range(blocks):
        before[block + 1] = before[block] + heads[min((block + 1) * BLOCK, p) - 1]
    # From the small end, so that a tail of 1e-30 next to a head of 1 keeps its digits.
    after[max(blocks - 1, 0)] = 0.0
    for block in range(blocks - 1, 0, -1):
        after[block - 1] = after[block] + tails[block * BLOCK]
    return scale


@kernel
def _fractions(
    values: Floats,
    norm: float,
    complete: bool,
    ranks: Integers,
    room: Floats,
    head_fractions: Floats,
    tail_fractions: Floats,
) -> None:
    """Fill H_r / N² and T_r / N² at each rank of one spectrum; all zero for a zero update."""
    if norm == 0.0:
        head_fractions[:] = 0.0
        tail_fractions[:] = 0.0
        return
    p = values.size
    heads, tails, before, after = room[0], room[1], room[2], room[3]
    scale = _row_energies(values, norm, heads, tails, before, after)
    # Each sum is divided by itself taken whole, so that H_p / N² and T_0 / N² are exactly 1.
    head_energy = before[(p + BLOCK - 1) // BLOCK]
    tail_energy = after[0] + tails[0] if p > 0 else 0.0
    if not complete:
        scaled_norm = norm * scale * scale
        head_energy = scaled_norm * scaled_norm
    for j in range(ranks.size):
        rank = min(ranks[j], p)
        head = before[(rank - 1) // BLOCK] + heads[rank - 1] if rank > 0 else 0.0
        head_fractions[j] = min(head / head_energy, 1.0)
        if complete:
            tail_fractions[j] = (after[rank // BLOCK] + tails[rank]) / tail_energy if rank < p else 0.0
        else:
            tail_fractions[j] = 1.0 - head_fractions[j]


@kernel
def energies(
    values: Floats, norms: Floats, complete: bool, ranks: Integers, head_fractions: Floats, tail_fractions: Floats
) -> None:
    """Head and tail energies H_r / N² and T_r / N², shape (batch, ranks), of spectra of shape (batch, p)."""
    room = np.empty((4, values.shape[1] + 1))
    for b in range(values.shape[0]):
        _fractions(values[b], norms[b], complete, ranks, room, head_fractions[b], tail_fractions[b])


@kernel
def error_sweep(
    values: Floats,
    norms: Floats,
    complete: bool,
    ranks: Integers,
    scalings: Floats,
    errors: Floats,
    optimal: Floats,
) -> None:
    """Errors √((1 − γ)² H_r + T_r) / N, shape (batch, scalings, ranks), and the best possible, (batch, ranks).

    `scalings` has shape (scalings, ranks).
    """
    room = np.empty((4, values.shape[1] + 1))
    heads, tails = np.empty(ranks.size), np.empty(ranks.size)
    lost = np.empty_like(scalings)
    squares_fit = True
    for k in range(scalings.shape[0]):
        for j in range(ranks.size):
            lost[k, j] = abs(1.0 - scalings[k, j])
            squares_fit = squares_fit and lost[k, j] < 1e150
    for b in range(values.shape[0]):
        _fractions(values[b], norms[b], complete, ranks, room, heads, tails)
        for j in range(ranks.size):
            optimal[b, j] = math.sqrt(tails[j])
        for k in range(scalings.shape[0]):
            if squares_fit:
                for j in range(ranks.size):
                    errors[b, k, j] = math.sqrt(lost[k, j] * lost[k, j] * heads[j] + tails[j])
            else:
                # A γ of 1e200 has no square.
                for j in range(ranks.size):
                    errors[b, k, j] = math.hypot(lost[k, j] * math.sqrt(heads[j]), math.sqrt(tails[j]))
