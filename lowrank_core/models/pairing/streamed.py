"""Layers too large to be in memory twice: their spectrum and rounding noise, from a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core import Spectrum
from lowrank_core._dtypes import FLOATS
from lowrank_core.models.files.tensors import StoredTensor, read_blocks
from lowrank_core.models.norms import difference
from lowrank_core.models.pairing.pairs import WeightPair
from lowrank_core.noise import edge_of_products
from lowrank_core.rounding_noise import NoiseLevel, RoundingNoise, applies_to, relative_squares, step_exponents

_LARGE_ENTRIES = 1 << 26
# What is in memory of a layer at a time, as float64: 32 MiB.
_BLOCK_ENTRIES = 1 << 22

Blocks = Iterator[tuple[NDArray[Any], NDArray[Any]]]


def is_large(pair: WeightPair, entries: int = _LARGE_ENTRIES) -> bool:
    """Whether a layer is better read in blocks: a tall matrix of so many entries, of plain numbers up to 32 bits."""
    return (
        pair.tuned.size >= entries
        and len(pair.tuned.shape) == 2
        and pair.shape[0] >= pair.shape[1]
        and all(_is_plain(side) for side in (pair.base, pair.tuned))
    )


def large_spectrum(pair: WeightPair) -> Spectrum:
    """Compute the spectrum of a large update by the eigenvalues of its Gram matrix, as ``method="gram"`` does."""
    m, n = pair.shape
    gram = np.zeros((n, n))
    for base, tuned in _blocks(pair):
        # Of float32 numbers no square over- or underflows float64.
        block = difference(base, tuned).astype(np.float64)
        gram += block.T @ block
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[::-1]
    norm = np.asarray(max(math.sqrt(np.trace(gram)), float(np.linalg.norm(values))))
    return Spectrum(values, norm, (m, n), complete=True, dtype="float32")


def large_noise(pair: WeightPair) -> RoundingNoise:
    """Compute the rounding noise of a large update, with its variances rounded up to 8 significant bits.

    A variance takes two bytes so. The edge is at most 0.4 % higher (2⁻⁸, the root of a relative 2⁻⁷), and never lower.
    """
    changes = _changes(pair)
    rows, columns = changes.rows, changes.columns
    if not changes.entries:
        # As of any two equal matrices.
        rows, columns = ~rows, ~columns
    one, two = (_noise_level(pair, sides, rows, columns) for sides in (("tuned",), ("base", "tuned")))
    size = pair.tuned.size
    return RoundingNoise(
        one, two, 1 - changes.entries / size, applies_to(changes.entries, changes.rows, changes.columns)
    )


class _Changes(NamedTuple):
    """The rows and columns in which something changed, and the number of entries that did."""

    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]
    entries: int


def _is_plain(side: object) -> bool:
    return isinstance(side, StoredTensor) and side.is_mappable and side.dtype in FLOATS and side.dtype != "float64"


def _blocks(pair: WeightPair) -> Blocks:
    return zip(read_blocks(pair.base, _BLOCK_ENTRIES), read_blocks(pair.tuned, _BLOCK_ENTRIES), strict=True)


def _changes(pair: WeightPair) -> _Changes:
    rows, columns, count = [], np.zeros(pair.shape[1], dtype=np.bool_), 0
    for base, tuned in _blocks(pair):
        changed = base.astype(np.float32) != tuned.astype(np.float32)
        rows.append(np.any(changed, axis=1))
        columns |= np.any(changed, axis=0)
        count += int(np.count_nonzero(changed))
    return _Changes(np.concatenate(rows), columns, count)


def _noise_level(
    pair: WeightPair, sides: tuple[str, ...], rows: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> NoiseLevel:
    largest = max(int(np.max(steps)) for block in _steps(pair, sides) for steps in block)
    encoded, sums, total, start = [], np.zeros(int(np.count_nonzero(columns))), 0.0, 0
    for block in _steps(pair, sides):
        variances = np.add.reduce([relative_squares(steps, largest) for steps in block])
        total += float(np.sum(variances, dtype=np.float64))
        chosen = _rounded_up(variances[rows[start : start + len(variances)]][:, columns])
        encoded.append(chosen)
        sums += np.sum(_decoded(chosen), axis=0, dtype=np.float64)
        start += len(variances)
    row_sums = np.concatenate([np.sum(_decoded(chosen), axis=1, dtype=np.float64) for chosen in encoded])
    unit = math.ldexp(math.sqrt(1 / 12), largest)

    def products(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        of_columns, of_rows, begin = [], np.zeros(len(y)), 0
        for chosen in encoded:
            variances, part = _decoded(chosen), x[begin : begin + len(chosen)].astype(np.float32)
            of_columns.append((variances @ y.astype(np.float32)).astype(np.float64))
            of_rows += part @ variances
            begin += len(chosen)
        return np.concatenate(of_columns), of_rows

    _, edge = edge_of_products(products, row_sums, sums)
    return NoiseLevel(unit * math.sqrt(total / pair.tuned.size), unit * edge)


def _steps(pair: WeightPair, sides: tuple[str, ...]) -> Iterator[list[NDArray[np.int16]]]:
    """Yield the exponents of the steps of rows of one side, or of both."""
    for base, tuned in _blocks(pair):
        chosen = {"base": base, "tuned": tuned}
        yield [step_exponents(chosen[side], chosen[side].dtype.name) for side in sides]


def _rounded_up(variances: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of float32 numbers, rounded up: bfloat16, of the same range."""
    return ((variances.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)


def _decoded(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
