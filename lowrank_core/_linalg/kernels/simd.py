"""Vectors and tiles of numbers that compiled code keeps in the processor's vector registers.

Numba finds vector instructions only where its optimiser can prove that arrays do not overlap, which it seldom can;
these functions leave nothing to prove. A vector has any width: what exceeds a register is split over several. A tile
has vectors for rows, and a column a number for each; the code for every row is generated. Arrays are one-dimensional.

Operands broadcast as in NumPy: a number over a vector, a vector over the rows of a tile, a column over its columns; and
no lane changes another. In plain Python (``NUMBA_DISABLE_JIT=1``) the same functions work on NumPy arrays.
"""

# ruff: noqa: ARG001, ARG005, PLW0108 - Numba passes more than some functions use, and reads the names of parameters.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import math
import operator
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

from lowrank_core._linalg.kernels import sizes
from lowrank_core._linalg.kernels.compiling import Floats, kernel

WIDTH = sizes.WIDTH

# Squares below this are negligible, where entries are at most 1: a reflector from them would not be orthogonal.
NEGLIGIBLE = 1e-280

# The shape of a float64 tile of sums that fills half of the vector registers; the other half is for what is multiplied.
# AVX-512 has 32 registers of 8 numbers, AVX2 16 of 4, NEON 32 of 2: on AVX2 a tile of 8 × 16 takes up to 2.6 times as
# long as one that fits. The order of a sum, and so its bits, do not depend on the shape.
TILE_ROWS, TILE_COLUMNS = 4, 8
with suppress(RuntimeError):  # of llvmlite before 0.45 on Apple's processors
    TILE_ROWS, TILE_COLUMNS = (8, 16) if binding.get_host_cpu_features().get("avx512f") else (4, 8)

Function = Callable[..., Any]
DOUBLE, INT32 = ir.DoubleType(), ir.IntType(32)
LLVM = {types.float64: DOUBLE, types.float32: ir.FloatType(), types.int64: ir.IntType(64), types.boolean: ir.IntType(1)}
DEFAULT = types.literal(WIDTH)


class Tile(types.Type):
    """The type of a tile; of a vector, without ``count``; of a column, without ``width``."""

    def __init__(self, element: Any, count: int | None, width: int | None) -> None:
        super().__init__(name=f"tile({element}, {count}, {width})")
        self.element, self.count, self.width = element, count, width
        row = ir.VectorType(LLVM[element], width) if width else LLVM[element]
        self.llvm = ir.ArrayType(row, count) if count else row


register_model(Tile)(lambda manager, kind: models.PrimitiveModel(manager, kind, kind.llvm))


def _known(element: Any, count: Any, width: Any) -> Tile | None:
    """Return the type of a tile whose shape is known while the code is generated, or None."""
    if not all(size is None or isinstance(size, types.Literal) for size in (count, width)):
        return None
    return Tile(element, *(size and size.literal_value for size in (count, width)))


def _common(*kinds: Any) -> Tile | None:
    """Return the type to which operands broadcast, or None."""
    tiles = [kind for kind in kinds if isinstance(kind, Tile)]
    elements = {kind.element if isinstance(kind, Tile) else kind for kind in kinds}
    shape = [{getattr(tile, size) for tile in tiles} - {None} for size in ("count", "width")]
    if not tiles or len(elements) > 1 or any(len(sizes) > 1 for sizes in shape):
        return None
    return Tile(elements.pop(), *(next(iter(sizes), None) for sizes in shape))


def _unpack(builder: Any, value: Any) -> list[Any]:
    """Return the rows of a tile, the entries of a column, or the one vector or number that there is."""
    return cgutils.unpack_tuple(builder, value) if isinstance(value.type, ir.ArrayType) else [value]


def _pack(builder: Any, kind: Any, rows: list[Any]) -> Any:
    """Return a tile or column, or the one vector or number that there is."""
    return cgutils.pack_array(builder, rows) if isinstance(kind, Tile) and kind.count else rows[0]


def _splat(builder: Any, number: Any, width: int | None) -> Any:
    """Return a vector of equal numbers; a vector, or a number without width, as it is."""
    if width is None or isinstance(number.type, ir.VectorType):
        return number
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, width), ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT32, width), None))


def _rowwise(instruction: Function) -> Function:
    """Return what builds an instruction for each row of its operands, which broadcast."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, operands = sig.return_type, [_unpack(builder, value) for value in args]
        operands = [[_splat(builder, row, kind.width) for row in rows] for rows in operands]
        rows = zip(*(rows * ((kind.count or 1) // len(rows)) for rows in operands), strict=True)
        return _pack(builder, kind, [instruction(builder, *row) for row in rows])

    return build


def _call(name: str) -> Function:
    """Return an instruction that calls a function of LLVM.

    Not its "fma": where the processor has no such instruction, that is computed by software, ten times as slowly.
    """

    def instruction(builder: Any, *args: Any) -> Any:
        kind, element = args[0].type, getattr(args[0].type, "element", args[0].type)
        suffix = f"{f'v{kind.count}' if kind is not element else ''}f{64 if element == DOUBLE else 32}"
        signature = ir.FunctionType(kind, [kind] * len(args))
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}"), args)

    return instruction


def _pointers(context: Any, builder: Any, sig: Any, args: Any, kind: Any) -> list[Any]:
    """Return a pointer to each row of a tile or entry of a column in an array, or the one to a vector or number."""
    data, places = context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]]
    llvm: Any = LLVM.get(kind)
    if isinstance(kind, Tile):
        llvm = kind.llvm.element if kind.count else kind.llvm
        if kind.count and isinstance(sig.args[2], Tile):
            places = [builder.add(args[1], offset) for offset in _unpack(builder, args[2])]
        elif kind.count:
            places = list(accumulate([args[2]] * (kind.count - 1), builder.add, initial=args[1]))
    return [builder.bitcast(builder.gep(data, [place]), llvm.as_pointer()) for place in places]


def _build_broadcast(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.return_type
    return _pack(builder, kind, [_splat(builder, args[0], kind.width)] * (kind.count or 1))


def _build_load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointers = _pointers(context, builder, sig, args, sig.return_type)
    return _pack(builder, sig.return_type, [builder.load(pointer, align=4) for pointer in pointers])


def _build_store(context: Any, builder: Any, sig: Any, args: Any) -> None:
    pointers = _pointers(context, builder, sig, args, sig.args[-1])
    for row, pointer in zip(_unpack(builder, args[-1]), pointers, strict=True):
        builder.store(row, pointer, align=4)


def _build_combination(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    row, factors, rows = args[0], _unpack(builder, args[1]), _unpack(builder, args[2])
    for factor, other in zip(factors * (len(rows) // len(factors)), rows, strict=True):
        row = _call("fmuladd")(builder, _splat(builder, factor, sig.return_type.width), other, row)
    return row


def _build_any(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    bits = builder.bitcast(args[0], ir.IntType(sig.args[0].width))
    return builder.icmp_unsigned("!=", bits, bits.type(0))


def _build_transpose(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    rows, size = _unpack(builder, args[0]), sig.return_type.count
    # Rows that lie 1 apart swap the lanes that do, then 2, 4, …: in the end every bit of row and lane is swapped.
    for apart in (1 << bit for bit in range(size.bit_length() - 1)):
        low = [size + lane - apart if lane & apart else lane for lane in range(size)]
        high = [size + lane if lane & apart else lane + apart for lane in range(size)]
        masks = [ir.Constant(ir.VectorType(INT32, size), lanes) for lanes in (low, high)]
        for i in (row for row in range(size) if not row & apart):
            pair = rows[i], rows[i + apart]
            rows[i], rows[i + apart] = (builder.shuffle_vector(*pair, mask) for mask in masks)
    return _pack(builder, sig.return_type, rows)


def _build_sum(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    terms = _unpack(builder, args[0])
    if not sig.args[0].count:
        terms = [builder.extract_element(args[0], INT32(lane)) for lane in range(sig.args[0].width)]
    while len(terms) > 1:
        terms = [builder.fadd(*pair) for pair in zip(terms[0::2], terms[1::2], strict=True)]
    return terms[0]


def _build_row_sums(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    sums = []
    for row in _unpack(builder, args[0]):
        while row.type.count > 1:
            half = row.type.count // 2
            masks = [ir.Constant(ir.VectorType(INT32, half), list(range(at, at + half))) for at in (0, half)]
            row = builder.fadd(*(builder.shuffle_vector(row, row, mask) for mask in masks))  # noqa: PLW2901
        sums.append(builder.extract_element(row, INT32(0)))
    return _pack(builder, sig.return_type, sums)


def _compiled(result: Function, build: Function) -> Callable[[Function], Function]:
    """Let compiled code do what ``build`` builds, of type ``result``, where Python calls the decorated function.

    A function of `numba.extending.overload` would be compiled by itself for all the types that it is called with.
    """

    def register(function: Function) -> Function:
        type_callable(function)(lambda context: result)
        lower_builtin(function, types.VarArg(types.Any))(build)
        return function

    return register


def _places(at: int, apart: Any, count: int) -> list[int]:
    """Return where the rows of a tile begin, for a distance between two or a column of distances from ``at``."""
    return [at + int(offset) for offset in (np.ravel(apart) if np.ndim(apart) else apart * np.arange(count))]


@_compiled(lambda array, at, width=DEFAULT: _known(array.dtype, None, width), _build_load)
def load(array: Any, at: int, width: int = WIDTH) -> Any:
    """Return the entries of an array from one on; a copy, as in a register, whatever is stored there afterwards."""
    return array[at : at + width].copy()


@_compiled(lambda array, at: array.dtype, _build_load)
def load_entry(array: Any, at: int) -> Any:
    """Return an entry of an array; compiled, without Python's test for a negative index."""
    return array[at]


@_compiled(lambda array, at, apart, rows, width=DEFAULT: _known(array.dtype, rows, width), _build_load)
def load_rows(array: Any, at: int, apart: Any, rows: int, width: int = WIDTH) -> Any:
    """Return a tile from an array, whose rows begin ``apart`` entries after each other, or so far from ``at`` each."""
    return np.array([array[place : place + width] for place in _places(at, apart, rows)])


@_compiled(lambda array, at, apart, rows: _known(array.dtype, rows, None), _build_load)
def load_column(array: Any, at: int, apart: int, rows: int) -> Any:
    """Return a column, whose entries are ``apart`` in an array."""
    return load_rows(array, at, apart, rows, 1)


@_compiled(lambda array, at, x: types.void, _build_store)
def store(array: Any, at: int, x: Any) -> None:
    """Write a vector into an array."""
    array[at : at + len(x)] = x


@_compiled(lambda array, at, apart, tile: types.void, _build_store)
def store_rows(array: Any, at: int, apart: Any, tile: Any) -> None:
    """Write a tile or column into an array, to where `load_rows` would read it."""
    for place, row in zip(_places(at, apart, len(tile)), tile, strict=True):
        array[place : place + len(row)] = row


@_compiled(lambda number, width=DEFAULT, rows=None: _known(number, rows, width), _build_broadcast)
def broadcast(number: float | np.float32, width: int = WIDTH, rows: int | None = None) -> Any:
    """Return a vector, or a tile of so many rows, of equal numbers, of their type."""
    return np.full((rows, width) if rows else width, number)


@_compiled(
    lambda x: Tile(types.float64, x.count, x.width),
    _rowwise(lambda builder, row: builder.fpext(row, ir.VectorType(DOUBLE, row.type.count))),
)
def to_float64(x: Any) -> Any:
    """Return a float32 vector or tile in float64."""
    return x.astype(np.float64)


@_compiled(lambda x, y, z: _common(x, y, z), _rowwise(_call("fmuladd")))
def fma(x: Any, y: Any, z: Any) -> Any:
    """Return x · y + z, rounded once where the processor can; of a column, a row and a tile: their product added."""
    return x * y + z


@_compiled(lambda row, column, tile: row, _build_combination)
def add_combination(row: Any, column: Any, tile: Any) -> Any:
    """Return a row plus a tile's rows, from the first to the last, each times its entry of a column or a number."""
    for factor, other in zip(column if np.ndim(column) else [column] * len(tile), tile, strict=True):
        row = fma(factor, other, row)
    return row


@_compiled(lambda x: x, _rowwise(_call("sqrt")))
def sqrt(x: Any) -> Any:
    """Return the square roots."""
    return np.sqrt(x)


@_compiled(lambda mask, x, y: Tile(types.float64, mask.count, mask.width), _rowwise(ir.IRBuilder.select))
def select(mask: Any, x: Any, y: Any) -> Any:
    """Return x where the mask is true and y elsewhere."""
    return np.where(mask, x, y)


@_compiled(lambda mask: types.boolean, _build_any)
def any_of(mask: Any) -> Any:
    """Whether the mask is true in any lane."""
    return np.any(mask)


@_compiled(lambda tile: tile, _build_transpose)
def transpose(tile: Any) -> Any:
    """Return the columns of a square tile as rows."""
    return tile.T.copy()


@_compiled(lambda x: Tile(x.element, None, x.width) if x.count else x.element, _build_sum)
def sum_pairs(x: Any) -> Any:
    """Return the sum of a vector's entries or a tile's rows, in pairs: ((a + b) + (c + d)) + …."""
    while len(x) > 1:
        x = x[0::2] + x[1::2]
    return x[0]


@_compiled(lambda tile: Tile(tile.element, tile.count, None), _build_row_sums)
def sum_rows(tile: Any) -> Any:
    """Return the sum of each row of a tile as a column, adding halves: (a + c) + (b + d)."""
    while tile.shape[1] > 1:
        half = tile.shape[1] // 2
        tile = tile[:, :half] + tile[:, half:]
    return tile


def _operator(symbol: Function, instruction: Function, element: Any, result: Any) -> None:
    """Let compiled code apply an operator of Python's to vectors and tiles, or to one of these and a number."""

    def typed(x: Any, y: Any) -> Any:
        kind = _common(x, y)
        return Tile(result, kind.count, kind.width) if kind and kind.element == element else None

    type_callable(symbol)(lambda context: typed)
    # Never without a type of our own: the operators of all other types are left alone.
    for operands in ((Tile, Tile), (Tile, types.Float), (types.Float, Tile)):
        lower_builtin(symbol, *operands)(_rowwise(instruction))


for _name in ("add", "sub", "mul", "div"):
    _symbol = getattr(operator, _name.replace("div", "truediv"))
    _operator(_symbol, getattr(ir.IRBuilder, f"f{_name}"), types.float64, types.float64)
for _name in ("or_", "and_", "xor"):
    _operator(getattr(operator, _name), getattr(ir.IRBuilder, _name), types.boolean, types.boolean)
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}.items():
    _compare = partial(lambda sign, builder, x, y: builder.fcmp_ordered(sign, x, y), _sign)
    _operator(getattr(operator, _name), _compare, types.float64, types.boolean)


@kernel
def inner(x: Floats, y: Floats, size: int) -> Any:
    """Return the inner product of the first entries of two arrays, a multiple of WIDTH."""
    total = broadcast(0.0)
    for k in range(0, size, WIDTH):
        total = fma(load(x, k), load(y, k), total)
    return sum_pairs(total)


@kernel
def exponent_of(entries: Floats, first: int, count: int) -> int:
    """Return the e for which the largest of some entries over 2^e lies in [½, 1)."""
    whole = count - count % WIDTH
    lanes = broadcast(0.0)
    for at in range(first, first + whole, WIDTH):
        x = load(entries, at)
        x = select(x < 0.0, 0.0 - x, x)
        lanes = select(lanes < x, x, lanes)
    each, largest = np.empty(WIDTH), 0.0
    store(each, 0, lanes)
    for lane in range(WIDTH):
        largest = max(largest, each[lane])
    for at in range(first + whole, first + count):
        largest = max(largest, abs(entries[at]))
    return math.frexp(largest)[1]
