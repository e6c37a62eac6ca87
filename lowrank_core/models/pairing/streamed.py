"""Layers too large to be in memory twice: their spectrum and rounding noise, from one read by blocks of rows."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core import Spectrum
from lowrank_core._dtypes import FLOATS
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.norms import one_blas_thread, row_blocks
from lowrank_core.models.pairing.changes import differences
from lowrank_core.models.pairing.pairs import WeightPair
from lowrank_core.noise import edge_of_products
from lowrank_core.rounding_noise import NoiseLevel, RoundingNoise, applies_to, relative_squares, step_exponents

_LARGE_ENTRIES = 1 << 26
# What is in memory of a layer at a time, as float64: 32 MiB.
_BLOCK_ENTRIES = 1 << 22

Floats = NDArray[np.float64]


class LargeUpdate(NamedTuple):
    """The spectrum of a large update, and its rounding noise where a weight's rounding may be of the update's size."""

    spectrum: Spectrum
    noise: RoundingNoise | None


def is_large(pair: WeightPair, entries: int = _LARGE_ENTRIES) -> bool:
    """Whether a layer is better read in blocks: a tall matrix of so many entries, of plain numbers up to 32 bits."""
    return (
        pair.tuned.size >= entries
        and len(pair.tuned.shape) == 2
        and pair.shape[0] >= pair.shape[1]
        and all(_is_plain(side) for side in (pair.base, pair.tuned))
    )


def decompose_large(pair: WeightPair) -> LargeUpdate:
    """Compute the spectrum of a large update by its Gram matrix, as ``method="gram"`` does, and its rounding noise.

    Each weight is read once; of its numbers the noise needs the exponents of their steps alone, a byte each.
    """
    m, n = pair.shape
    gram, stored = np.zeros((n, n)), _Stored(pair) if pair.has_rounding else None
    for base, tuned, delta in differences(pair.base, pair.tuned, _BLOCK_ENTRIES):
        # Of float32 numbers no square over- or underflows float64.
        block = delta.astype(np.float64)
        with one_blas_thread():
            gram += block.T @ block
        if stored is not None:
            stored.add(base, tuned, delta)
    with one_blas_thread():
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[::-1]
    norm = np.asarray(max(math.sqrt(np.trace(gram)), math.hypot(*values)))
    spectrum = Spectrum(values, norm, (m, n), complete=True, dtype="float32")
    return LargeUpdate(spectrum, None if stored is None else stored.noise())


def _is_plain(side: object) -> bool:
    return isinstance(side, StoredTensor) and side.is_mappable and side.dtype in FLOATS and side.dtype != "float64"


class _Stored:
    """What the rounding noise of two weights follows from, from blocks of their rows: the steps, and what changed."""

    def __init__(self, pair: WeightPair) -> None:
        self._dtypes = pair.base.array_dtype, pair.tuned.array_dtype
        self._steps = tuple(np.empty(pair.shape, np.uint8) for _ in self._dtypes)
        self._rows, self._columns = np.zeros(pair.shape[0], np.bool_), np.zeros(pair.shape[1], np.bool_)
        self._changed = self._read = 0

    def add(self, base: NDArray[Any], tuned: NDArray[Any], delta: NDArray[Any]) -> None:
        """Add the next rows of both weights, and of their difference."""
        rows = slice(self._read, self._read + len(delta))
        changed = delta != 0
        np.any(changed, axis=1, out=self._rows[rows])
        self._columns |= np.any(changed, axis=0)
        self._changed += int(np.count_nonzero(changed))
        for steps, weight, dtype in zip(self._steps, (base, tuned), self._dtypes, strict=True):
            steps[rows] = step_exponents(weight, dtype) - FLOATS[dtype].subnormal_exponent
        self._read = rows.stop

    def noise(self) -> RoundingNoise:
        """Compute the noise, with its variances rounded up to 8 significant bits.

        A variance takes two bytes so. The edge is at most 0.4 % higher (2⁻⁸, the root of a relative 2⁻⁷), never lower.
        """
        rows, columns = self._rows, self._columns
        if not self._changed:
            # As of any two equal matrices.
            rows, columns = ~rows, ~columns
        one, two = (self._level(sides, rows, columns) for sides in ((1,), (0, 1)))
        unchanged = 1 - self._changed / self._steps[0].size
        return RoundingNoise(one, two, unchanged, applies_to(self._changed, self._rows, self._columns))

    def _level(self, sides: tuple[int, ...], rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> NoiseLevel:
        offsets = [FLOATS[self._dtypes[side]].subnormal_exponent for side in sides]
        largest = max(int(np.max(self._steps[side])) + offset for side, offset in zip(sides, offsets, strict=True))
        encoded = np.empty((int(np.count_nonzero(rows)), int(np.count_nonzero(columns))), np.uint16)
        row_sums, column_sums, total, start = np.empty(len(encoded)), np.zeros(encoded.shape[1]), 0.0, 0
        for block in row_blocks(self._steps[0].shape):
            both = [self._steps[side][block] + np.int16(offset) for side, offset in zip(sides, offsets, strict=True)]
            variances = np.add.reduce([relative_squares(steps, largest) for steps in both])
            total += float(np.sum(variances, dtype=np.float64))
            chosen = _rounded_up(variances[rows[block]][:, columns])
            place = slice(start, start + len(chosen))
            encoded[place], decoded = chosen, _decoded(chosen)
            row_sums[place] = np.sum(decoded, axis=1, dtype=np.float64)
            column_sums += np.sum(decoded, axis=0, dtype=np.float64)
            start = place.stop
        unit = math.ldexp(math.sqrt(1 / 12), largest)
        found = edge_of_products(partial(_products, encoded), row_sums, column_sums)
        return NoiseLevel(unit * math.sqrt(total / self._steps[0].size), unit * found.with_fluctuation)


def _products(encoded: NDArray[np.uint16], x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return S y and Sᵀ x for variances S, of which the upper halves are stored, from one pass over them."""
    of_columns, of_rows = np.empty(len(x)), np.zeros(len(y))
    left, right = x.astype(np.float32), y.astype(np.float32)
    for rows in row_blocks(encoded.shape):
        variances = _decoded(encoded[rows])
        of_columns[rows] = variances @ right
        of_rows += left[rows] @ variances
    return of_columns, of_rows


def _rounded_up(variances: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of float32 numbers, rounded up: bfloat16, of the same range."""
    return ((variances.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)


def _decoded(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
