"""Products of one large matrix, and of its Gram matrix, with a few vectors: most of the work of a Krylov iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels.sizes import COLUMNS
from lowrank_core._linalg.powers_of_two import scaled_to_unit
from lowrank_core._linalg.residuals import matrix_energy
from lowrank_core._linalg.threads import Team
from lowrank_core._linalg.values import Floats, read_only

__all__ = ["TallMatrix", "rows_of", "tall_matrix"]

Singles = NDArray[np.float32]

# Rows of the matrix that a thread multiplies at a time, at most: their sums, one for each part, are then a sixteenth of
# the matrix. They are a multiple of the second number, which kernels take at a time.
ROWS_PER_TASK, ROWS_TOGETHER = 512, 32

# What the number of such parts is a multiple of, so that threads have as much to do.
TASKS = 4

# Rows that a thread converts to float64 at a time: with fewer, BLAS would spend its time on packing the basis.
ROWS_CONVERTED = 256

# Rows whose squares a thread sums at a time.
ROWS_SUMMED = 256

# Sums of squares between which no product of an iteration leaves the range of float32.
UNSCALED_ENERGIES = (1e-20, 1e20)


class TallMatrix(NamedTuple):
    """A matrix 2^exponent · X with at least as many rows as columns; `array` is X, or its transpose if `transposed`.

    Products are divided among the threads of a team at places that depend on the shape alone.
    """

    array: NDArray[Any]
    transposed: bool
    exponent: int
    team: Team

    @property
    def rows(self) -> int:
        """Number of rows of X."""
        return int(self.array.shape[1 if self.transposed else 0])

    @property
    def columns(self) -> int:
        """Number of columns of X."""
        return int(self.array.shape[0 if self.transposed else 1])

    @property
    def eps(self) -> float:
        """Relative rounding of the products."""
        return float(np.finfo(self.array.dtype).eps)

    @property
    def T(self) -> TallMatrix:  # noqa: N802 - as NumPy calls it
        """Return the transpose, of which no copy is made."""
        return self._replace(transposed=not self.transposed)

    def in_precision(self, precision: str) -> TallMatrix:
        """Return X rounded to float32, or converted to float64; itself where its entries are in the precision."""
        if self.array.dtype.name == precision:
            return self
        converted = np.empty(self.array.shape, precision)

        def convert(start: int) -> None:
            rows = slice(start, start + ROWS_CONVERTED)
            converted[rows] = self.array[rows]

        self.team.map(convert, range(0, len(converted), ROWS_CONVERTED))
        return self._replace(array=read_only(converted))

    def apply(self, block: Floats) -> Floats:
        """Compute b Xᵀ for a block b of row vectors (k, columns), in the precision of the array."""
        return self._products(block, gram=False)[0]

    def apply_gram(self, block: Floats) -> tuple[Floats, Floats]:
        """Compute b Xᵀ and b XᵀX for a block b of row vectors (k, columns), in the precision of the array."""
        return self._products(block, gram=True)

    def _products(self, block: Floats, *, gram: bool) -> tuple[Floats, Floats]:
        from lowrank_core._linalg.kernels.compiling import COMPILED

        products = _kernel_products if COMPILED else _blas_products
        product, gram_block = products(self, block.astype(self.array.dtype, copy=False), gram=gram)
        return np.asarray(product, np.float64), np.asarray(gram_block, np.float64)

    def float64_product(self, basis: Floats) -> tuple[Floats, float]:
        """Compute X @ basis, for a basis (columns, k), and ‖X‖_F² in float64, converting some rows of X at a time."""
        from lowrank_core._linalg.kernels.compiling import COMPILED

        X = self.array.T if self.transposed else self.array
        product = np.empty((self.rows, basis.shape[1]))
        by_kernel = X.dtype == np.float32 and not self.transposed and COMPILED
        multiply = _kernel_float64_product(basis) if by_kernel else _blas_float64_product(basis)

        def fill(start: int) -> float:
            rows = slice(start, start + ROWS_CONVERTED)
            return multiply(X[rows], product[rows])

        return product, math.fsum(self.team.map(fill, range(0, self.rows, ROWS_CONVERTED)))


def tall_matrix(matrix: NDArray[Any], team: Team) -> tuple[TallMatrix, float]:
    """Convert a matrix to float32 unless it is float64, and into the range of products; with ‖X‖_F² in float64."""
    wide = matrix.shape[0] < matrix.shape[1]
    precision = np.float64 if matrix.dtype == np.float64 else np.float32
    array = read_only(np.ascontiguousarray(matrix, dtype=precision))
    energy = _energy(array, team)
    if UNSCALED_ENERGIES[0] < energy < UNSCALED_ENERGIES[1]:
        return TallMatrix(array, wide, 0, team), energy
    scaled, exponent = scaled_to_unit(matrix)
    array = read_only(scaled.astype(precision, copy=False))
    return TallMatrix(array, wide, int(exponent), team), float(np.vdot(scaled, scaled))


def rows_of(array: NDArray[Any], team: Team) -> TallMatrix:
    """Return an array in C order as it is, to be multiplied by."""
    return TallMatrix(read_only(array), transposed=False, exponent=0, team=team)


def _energy(array: NDArray[Any], team: Team) -> float:
    """Compute the sum of squares in float64, of some rows at a time."""

    def of_rows(start: int) -> float:
        return matrix_energy(array[start : start + ROWS_SUMMED])

    return float(np.sum(team.map(of_rows, range(0, len(array), ROWS_SUMMED))))


def _rows_per_task(rows: int) -> int:
    """Return how many rows a thread multiplies at a time."""
    tasks = TASKS * max(1, -(-rows // (TASKS * ROWS_PER_TASK)))
    return ROWS_TOGETHER * max(1, -(-rows // (tasks * ROWS_TOGETHER)))


def _blas_products(X: TallMatrix, block: NDArray[Any], *, gram: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute b Xᵀ and, if asked for, b XᵀX by BLAS; sums over parts of the array are added in their order."""
    step = _rows_per_task(len(X.array))
    parts = [slice(start, start + step) for start in range(0, len(X.array), step)]

    def map_parts(function: Callable[[slice], NDArray[Any]]) -> list[NDArray[Any]]:
        return X.team.map(function, parts)

    def along(factor: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(map_parts(lambda rows: factor @ X.array[rows].T), axis=1)

    def across(factor: NDArray[Any]) -> NDArray[Any]:
        products: NDArray[Any] = np.add.reduce(map_parts(lambda rows: factor[:, rows] @ X.array[rows]), axis=0)
        return products

    first, second = (across, along) if X.transposed else (along, across)
    product = first(block)
    return product, second(product) if gram else product[:, :0]


def _kernel_products(X: TallMatrix, block: NDArray[Any], *, gram: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute b Xᵀ and, if asked for, b XᵀX by a kernel, as many vectors at a time as it takes."""
    parts = [_few_products(X, block[i : i + COLUMNS], gram=gram) for i in range(0, len(block), COLUMNS)]
    if len(parts) == 1:
        return parts[0]
    products, gram_blocks = zip(*parts, strict=True)
    return np.concatenate(products), np.concatenate(gram_blocks)


def _few_products(X: TallMatrix, block: NDArray[Any], *, gram: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute b Xᵀ and, if asked for, b XᵀX by a kernel; sums over parts of the array are added in their order."""
    from lowrank_core._linalg.kernels import krylov

    multiply = krylov.multiply if X.array.dtype == np.float32 else krylov.multiply_doubles
    rows, columns = X.array.shape
    step = _rows_per_task(rows)
    inputs, outputs = (
        np.zeros((-(-length // krylov.ROWS) * krylov.ROWS, COLUMNS), X.array.dtype) for length in (columns, rows)
    )
    (outputs[:rows] if X.transposed else inputs[:columns])[:, : len(block)] = block.T

    def products(which: int, inputs: NDArray[Any]) -> NDArray[Any]:
        sums = np.zeros((-(-rows // step), 0 if which == krylov.PLAIN else inputs.size), X.array.dtype)

        def multiply_rows(start: int) -> None:
            part = slice(start, start + step)
            multiply(X.array[part], inputs.ravel(), outputs[part].ravel(), sums[start // step], which)

        X.team.map(multiply_rows, range(0, rows, step))
        total: NDArray[Any] = np.add.reduce(sums, axis=0)
        return total.reshape(-1, COLUMNS)

    if not X.transposed:
        gram_block = products(krylov.BOTH if gram else krylov.PLAIN, inputs)
        return outputs[:rows, : len(block)].T, gram_block[:columns, : len(block)].T
    product = products(krylov.TRANSPOSED, inputs)
    outputs[:] = 0.0
    if gram:
        products(krylov.PLAIN, product)
    return product[:columns, : len(block)].T, outputs[:rows, : len(block)].T


def _blas_float64_product(basis: Floats) -> Callable[[NDArray[Any], Floats], float]:
    """Return a function of some rows of X that fills in their part of X @ basis and returns their energy, by BLAS."""

    def multiply(rows: NDArray[Any], product: Floats) -> float:
        # In the order of X itself: to transpose it takes three times as long as the product.
        block = rows.astype(np.float64)
        np.matmul(block, basis, out=product)
        entries = block.ravel(order="K")
        return float(np.dot(entries, entries))

    return multiply


def _kernel_float64_product(basis: Floats) -> Callable[[Singles, Floats], float]:
    """Return such a function that calls a kernel, which converts rows in cache, in two thirds of the time of BLAS."""
    from lowrank_core._linalg.kernels.krylov import FLOAT64_COLUMNS, ROWS, multiply_in_float64

    columns, rank = basis.shape
    panels = -(-rank // FLOAT64_COLUMNS)
    padded = np.zeros((columns, panels * FLOAT64_COLUMNS))
    padded[:, :rank] = basis
    by_panel = np.ascontiguousarray(padded.reshape(columns, panels, FLOAT64_COLUMNS).swapaxes(0, 1)).ravel()

    def multiply(rows: Singles, product: Floats) -> float:
        panel_products = np.zeros((panels, -(-len(rows) // ROWS) * ROWS, FLOAT64_COLUMNS))
        energy = multiply_in_float64(rows, by_panel, panel_products.ravel())
        product[:] = panel_products[:, : len(rows)].swapaxes(0, 1).reshape(len(rows), -1)[:, :rank]
        return float(energy)

    return multiply
