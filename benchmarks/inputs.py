"""Seeded inputs whose singular values are known exactly, so that every answer can be checked to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SEED = 20240229


def generator(*key: int) -> np.random.Generator:
    """Return a generator of these sizes alone, whatever was drawn before."""
    return np.random.default_rng([SEED, *key])


def in_hadamard_bases(values: Floats, rng: np.random.Generator) -> Floats:
    """Return updates (..., n, n) with singular values (..., n) between the bases of Hadamard matrices.

    The bases are signed permutations of H/√n, so an entry is a sum of ± the values over n: for whole numbers below
    2^b, a multiple of 1/n below 2^b, which float64 represents exactly if b + log2(n) ≤ 53 (float32 if ≤ 24). The
    singular values of the stored matrix are then exactly the ones given.

    Parameters
    ----------
    values : (..., n), n a power of two
    rng : Generator
        Orders the values against the bases, and draws the signs and permutations of rows and columns.
    """
    n = values.shape[-1]
    index = np.arange(n)
    hadamard = 1.0 - 2.0 * (np.bitwise_count(index[:, np.newaxis] & index) & 1)
    # (H diag(x) H)[i, j] = (H x)[i xor j]: no matrix product is needed.
    mixed = rng.permuted(values, axis=-1) @ hadamard / n
    rows, columns = rng.permutation(n), rng.permutation(n)
    signs = rng.choice([-1.0, 1.0], (2, n))
    update: Floats = mixed[..., rows[:, np.newaxis] ^ columns]
    update *= signs[0][:, np.newaxis]
    update *= signs[1]
    return update


def bits(n: int, dtype: str) -> int:
    """Return how many bits whole singular values may have for an n × n update to be stored exactly."""
    return int(np.finfo(dtype).nmant + 1 - np.log2(n))


def drawn_values(count: int, n: int, dtype: str) -> Floats:
    """Return drawn spectra (count, n) of whole numbers, descending."""
    drawn = generator(count, n).integers(1, 2 ** bits(n, dtype), (count, n)).astype(np.float64)
    return np.ascontiguousarray(np.sort(drawn, axis=-1)[:, ::-1])


def stack(count: int, n: int, dtype: str) -> tuple[NDArray[Any], Floats]:
    """Return a stack (count, n, n) stored exactly, and its singular values (count, n)."""
    values = drawn_values(count, n, dtype)
    return in_hadamard_bases(values, generator(count, n, 1)).astype(dtype), values


def even(n: int, dtype: str) -> Floats:
    """Return evenly spaced values, σ₁/n apart."""
    values: Floats = np.ldexp(np.arange(n, 0, -1.0), bits(n, dtype) - n.bit_length())
    return values


def graded(n: int, dtype: str) -> Floats:
    """Return powers of two, repeated, as small as the dtype allows for an exact update."""
    return np.ldexp(1.0, np.sort(np.arange(n) % bits(n, dtype))[::-1])


def deficient(n: int, dtype: str) -> Floats:
    """Return evenly spaced values of which the lower half is zero."""
    return np.where(np.arange(n) < n // 2, even(n, dtype), 0.0)


SPECTRA = {"even": even, "graded": graded, "deficient": deficient}


def falling(n: int, power: float) -> tuple[NDArray[np.float32], Floats]:
    """Return a float32 n × n update whose values fall as i^-power, and these values, exact to 1e-2 eps32·σ₁."""
    values: Floats = np.arange(1.0, n + 1) ** -power
    return in_hadamard_bases(values, generator(n, int(8 * power))).astype(np.float32), values


def factors(size: int, rank: int, count: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return Gaussian float32 factors (size, rank) and (rank, size), or stacks of `count`."""
    rng = generator(size, rank)
    batch = () if count is None else (count,)
    B = rng.standard_normal((*batch, size, rank), dtype=np.float32)
    return B, rng.standard_normal((*batch, rank, size), dtype=np.float32)


def whole_spectra(count: int, n: int) -> Floats:
    """Return drawn spectra (count, n) of whole numbers whose squares are summed exactly (n ≤ 2^13)."""
    drawn = generator(count, n, 2).integers(1, 2**20, (count, n))
    return np.ascontiguousarray(np.sort(drawn, axis=-1)[:, ::-1].astype(np.float64))
