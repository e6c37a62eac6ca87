"""Vectors and tiles of numbers that compiled code keeps in the processor's vector registers.

Numba finds vector instructions only where its optimiser can prove that arrays do not overlap, which it seldom can;
these functions leave nothing to prove. A vector has any width: what exceeds a register is split over several. A tile
has vectors for rows; one of numbers instead is a column. Code for each row is generated, so that no loop is left.
Arrays are one-dimensional and C-contiguous.

Operands broadcast as in NumPy: a number over a vector, a vector over the rows of a tile, a column over its columns.
Every operation acts on each lane by itself: no lane changes another. In plain Python (``NUMBA_DISABLE_JIT=1``) the same
functions work on NumPy arrays.
"""

# ruff: noqa: ARG001, ARG005, PLW0108 - Numba passes more than some functions use, and reads the names of parameters.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import accumulate, product
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

# Numbers in a vector unless said otherwise: one register of AVX-512, two of AVX2.
WIDTH = 8

Function = Callable[..., Any]
LLVM_TYPES = {
    types.float64: ir.DoubleType(),
    types.float32: ir.FloatType(),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}
DEFAULT = types.literal(WIDTH)


def _tile_shape() -> tuple[int, int]:
    """Return the shape of a float64 tile whose sums fill half of the processor's vector registers.

    The other half is for what is multiplied. AVX-512 has 32 registers of 8 numbers, AVX2 16 of 4, NEON 32 of 2: on
    AVX2 a tile of 8 × 16 takes up to 2.6 times as long as one that fits. The order of a sum does not depend on it.
    """
    try:
        wide = binding.get_host_cpu_features().get("avx512f", False)
    except RuntimeError:  # llvmlite before 0.45 on Apple's processors
        wide = False
    return (8, 16) if wide else (4, 8)


TILE_ROWS, TILE_COLUMNS = _tile_shape()


class Vector(types.Type):
    """The type of numbers, or of a comparison's answers, side by side."""

    def __init__(self, element: Any, width: int) -> None:
        super().__init__(name=f"vector({element}, {width})")
        self.element, self.width, self.llvm = element, width, ir.VectorType(LLVM_TYPES[element], width)


class Tile(types.Type):
    """The type of rows of equal width, or of a column of numbers."""

    def __init__(self, row: Any, count: int) -> None:
        super().__init__(name=f"tile({row}, {count})")
        self.row, self.count = row, count
        self.llvm = ir.ArrayType(row.llvm if isinstance(row, Vector) else LLVM_TYPES[row], count)


@register_model(Vector)
@register_model(Tile)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.llvm)


def _row(kind: Any) -> Any:
    """Return the type of a tile's rows or a column's entries; of anything else its own."""
    return kind.row if isinstance(kind, Tile) else kind


def _vector(element: Any, width: Any = DEFAULT) -> Any:
    """Return the type of a vector; None for a width that is unknown while the code is generated."""
    return Vector(element, width.literal_value) if isinstance(width, types.Literal) else None


def _tile(row: Any, count: Any) -> Any:
    """Return the type of a tile; None for a shape that is unknown while the code is generated."""
    return Tile(row, count.literal_value) if row and isinstance(count, types.Literal) else None


def _like(kind: Any, element: Any) -> Any:
    """Return the type of a vector or tile of the same shape."""
    vector = Vector(element, _row(kind).width)
    return Tile(vector, kind.count) if isinstance(kind, Tile) else vector


def _common(*kinds: Any) -> Any:
    """Return the type to which operands broadcast, or None."""
    rows = {_row(kind) for kind in kinds}
    vectors = {row for row in rows if isinstance(row, Vector)}
    counts = {kind.count for kind in kinds if isinstance(kind, Tile)}
    if len(vectors) != 1 or len(counts) > 1 or not rows <= vectors | {vector.element for vector in vectors}:
        return None
    vector = vectors.pop()
    return Tile(vector, counts.pop()) if counts else vector


def _splat(builder: Any, number: Any, width: int) -> Any:
    """Return a vector of equal numbers; a vector as it is."""
    if isinstance(number.type, ir.VectorType):
        return number
    vector, indices = ir.VectorType(number.type, width), ir.VectorType(ir.IntType(32), width)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(indices, None))


def _unpack(builder: Any, value: Any) -> list[Any]:
    """Return the rows of a tile, the entries of a column, or the one vector or number that there is."""
    return cgutils.unpack_tuple(builder, value) if isinstance(value.type, ir.ArrayType) else [value]


def _pack(builder: Any, kind: Any, rows: list[Any]) -> Any:
    """Return a tile or column, or the one vector or number that there is."""
    return cgutils.pack_array(builder, rows) if isinstance(kind, Tile) else rows[0]


def _rowwise(instruction: Function) -> Function:
    """Return what builds an instruction for each row of its operands, which broadcast."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        width = next(row.width for row in map(_row, sig.args) if isinstance(row, Vector))
        operands = [_unpack(builder, value) for value in args]
        count = max(map(len, operands))
        operands = [[_splat(builder, row, width) for row in rows] * (count // len(rows)) for rows in operands]
        return _pack(builder, sig.return_type, [instruction(builder, *rows) for rows in zip(*operands, strict=True)])

    return build


def _call(name: str) -> Function:
    """Return an instruction that calls a function of LLVM.

    Not its "fma": where the processor has no such instruction, that is computed by software, ten times as slowly.
    """

    def instruction(builder: Any, *args: Any) -> Any:
        kind = args[0].type
        function = f"llvm.{name}.v{kind.count}f{64 if kind.element == ir.DoubleType() else 32}"
        signature = ir.FunctionType(kind, [kind] * len(args))
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, function), args)

    return instruction


def _pointers(context: Any, builder: Any, sig: Any, args: Any, kind: Any) -> list[Any]:
    """Return a pointer into an array for each row of a tile or entry of a column, or the one to a vector or number.

    The arguments begin with the array and a place in it; then come the distance between two rows, or a column of their
    distances from the place.
    """
    data, places = context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]]
    if isinstance(kind, Tile) and isinstance(sig.args[2], Tile):
        places = [builder.add(args[1], offset) for offset in _unpack(builder, args[2])]
    elif isinstance(kind, Tile):
        places = list(accumulate([args[2]] * (kind.count - 1), builder.add, initial=args[1]))
    row = _row(kind)
    llvm = row.llvm if isinstance(row, Vector) else LLVM_TYPES[row]
    return [builder.bitcast(builder.gep(data, [place]), llvm.as_pointer()) for place in places]


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
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), size), lanes) for lanes in (low, high)]
        for i in (row for row in range(size) if not row & apart):
            pair = rows[i], rows[i + apart]
            rows[i], rows[i + apart] = (builder.shuffle_vector(*pair, mask) for mask in masks)
    return _pack(builder, sig.return_type, rows)


def _build_sum(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    terms = _unpack(builder, args[0])
    if isinstance(sig.args[0], Vector):
        terms = [builder.extract_element(args[0], ir.IntType(32)(lane)) for lane in range(sig.args[0].width)]
    while len(terms) > 1:
        terms = [builder.fadd(*pair) for pair in zip(terms[0::2], terms[1::2], strict=True)]
    return terms[0]


def _places(at: int, apart: Any, count: int) -> list[int]:
    """Return where the rows of a tile begin, for a distance between two or a column of distances from ``at``."""
    return [at + int(offset) for offset in (np.ravel(apart) if np.ndim(apart) else apart * np.arange(count))]


def _compiled(result: Function, build: Function) -> Callable[[Function], Function]:
    """Let compiled code do what ``build`` builds where Python calls the decorated function.

    ``result`` returns the type of the result for the types of the arguments, or None where there is none. A function of
    `numba.extending.overload` would be compiled by itself for all the types that it is called with.
    """

    def register(function: Function) -> Function:
        type_callable(function)(lambda context: result)
        lower_builtin(function, types.VarArg(types.Any))(build)
        return function

    return register


@_compiled(lambda array, at, width=DEFAULT: _vector(array.dtype, width), _build_load)
def load(array: Any, at: int, width: int = WIDTH) -> Any:
    """Return the entries of an array from one on."""
    return array[at : at + width]


@_compiled(lambda array, at: array.dtype, _build_load)
def load_entry(array: Any, at: int) -> Any:
    """Return an entry of an array; compiled, without Python's test for a negative index."""
    return array[at]


@_compiled(lambda array, at, apart, rows, width=DEFAULT: _tile(_vector(array.dtype, width), rows), _build_load)
def load_rows(array: Any, at: int, apart: Any, rows: int, width: int = WIDTH) -> Any:
    """Return a tile from an array, whose rows begin ``apart`` entries after each other, or so far from ``at`` each."""
    return np.array([array[place : place + width] for place in _places(at, apart, rows)])


@_compiled(lambda array, at, apart, rows: _tile(array.dtype, rows), _build_load)
def load_column(array: Any, at: int, apart: int, rows: int) -> Any:
    """Return a column, whose entries are ``apart`` in an array."""
    return load_rows(array, at, apart, rows, 1)


@_compiled(lambda array, at, x: types.void, _build_store)
def store(array: Any, at: int, x: Any) -> None:
    """Write a vector into an array."""
    array[at : at + len(x)] = x


@_compiled(lambda array, at, apart, tile: types.void, _build_store)
def store_rows(array: Any, at: int, apart: Any, tile: Any) -> None:
    """Write a tile into an array, to where `load_rows` would read it."""
    for place, row in zip(_places(at, apart, len(tile)), tile, strict=True):
        array[place : place + len(row)] = row


@_compiled(
    lambda number, width=DEFAULT: _vector(types.float64, width),
    lambda context, builder, sig, args: _splat(builder, args[0], sig.return_type.width),
)
def broadcast(number: float, width: int = WIDTH) -> Any:
    """Return a float64 vector of equal numbers."""
    return np.full(width, number)


@_compiled(
    lambda rows, width=DEFAULT: _tile(_vector(types.float64, width), rows),
    lambda context, builder, sig, args: ir.Constant(sig.return_type.llvm, None),
)
def zero_rows(rows: int, width: int = WIDTH) -> Any:
    """Return a float64 tile of zeros."""
    return np.zeros((rows, width))


@_compiled(
    lambda x: _like(x, types.float64),
    _rowwise(lambda builder, row: builder.fpext(row, ir.VectorType(ir.DoubleType(), row.type.count))),
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
    for factor, other in zip(np.broadcast_to(column, (len(tile), 1)), tile, strict=True):
        row = fma(factor, other, row)
    return row


@_compiled(lambda x: x, _rowwise(_call("sqrt")))
def sqrt(x: Any) -> Any:
    """Return the square roots."""
    return np.sqrt(x)


@_compiled(lambda mask, x, y: _like(mask, types.float64), _rowwise(ir.IRBuilder.select))
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


@_compiled(lambda x: _row(x) if isinstance(x, Tile) else x.element, _build_sum)
def sum_pairs(x: Any) -> Any:
    """Return the sum of a vector's entries or a tile's rows, in pairs: ((a + b) + (c + d)) + …."""
    while len(x) > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def _operator(symbol: Function, instruction: Function, element: Any, result: Any) -> None:
    """Let compiled code apply an operator of Python's to vectors and tiles, or to one of these and a number."""

    def typed(x: Any, y: Any) -> Any:
        kind = _common(x, y)
        return _like(kind, result) if kind and _row(kind).element == element else None

    type_callable(symbol)(lambda context: typed)
    # Only with types of our own, to leave the operators of all others alone.
    for operands in product((Vector, Tile, types.Float), repeat=2):
        if operands != (types.Float, types.Float):
            lower_builtin(symbol, *operands)(_rowwise(instruction))


_operator(operator.add, ir.IRBuilder.fadd, types.float64, types.float64)
_operator(operator.sub, ir.IRBuilder.fsub, types.float64, types.float64)
_operator(operator.mul, ir.IRBuilder.fmul, types.float64, types.float64)
_operator(operator.truediv, ir.IRBuilder.fdiv, types.float64, types.float64)
_operator(operator.or_, ir.IRBuilder.or_, types.boolean, types.boolean)
_operator(operator.and_, ir.IRBuilder.and_, types.boolean, types.boolean)
_operator(operator.xor, ir.IRBuilder.xor, types.boolean, types.boolean)
for _symbol, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}.items():
    _operator(
        getattr(operator, _symbol),
        lambda builder, x, y, sign=_sign: builder.fcmp_ordered(sign, x, y),
        types.float64,
        types.boolean,
    )
