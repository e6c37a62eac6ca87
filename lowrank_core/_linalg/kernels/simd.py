"""A row of eight float64 numbers, or sixteen of float32, that compiled code keeps in one vector register.

Numba finds vector instructions where its optimiser can prove that arrays do not overlap, which it seldom can. Lanes
leave nothing to prove. In plain Python (``NUMBA_DISABLE_JIT=1``) the same functions work on NumPy arrays.
Every operation acts on each lane by itself: what one lane holds never changes another.
"""

# ruff: noqa: ARG001, ARG005, PLW0108 - Numba reads signatures by the names in them, whether those are used or not.
# mypy: disable-error-code="no-untyped-call, call-arg"
from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

__all__ = [
    "SINGLE_WIDTH",
    "WIDTH",
    "any_of",
    "broadcast",
    "broadcast_entry",
    "broadcast_single",
    "fma",
    "load",
    "load_singles",
    "select",
    "sqrt",
    "store",
    "transpose",
]

WIDTH = 8
SINGLE_WIDTH = 16


class Vector(types.Type):
    """Numbers, or (as a mask) answers."""

    def __init__(self, name: str, element: ir.Type, width: int) -> None:
        super().__init__(name=name)
        self.vector = ir.VectorType(element, width)


NUMBERS = Vector("lanes of float64", ir.DoubleType(), WIDTH)
SINGLES = Vector("lanes of float32", ir.FloatType(), SINGLE_WIDTH)
ANSWERS = Vector("lanes of bool", ir.IntType(1), WIDTH)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:  # pragma: no cover - for the compiler
        super().__init__(manager, kind, kind.vector)


def _operator(symbol: Callable[..., Any], operand: Vector, result: Vector, build: Callable[..., Any]) -> None:
    """Let an operator of Python's take lanes."""
    infer_global(symbol)(type("_VectorOperator", (ConcreteTemplate,), {"cases": [signature(result, operand, operand)]}))
    lower_builtin(symbol, operand, operand)(lambda context, builder, sig, args: build(builder, *args))


def _comparison(sign: str) -> Callable[..., Any]:
    return lambda builder, x, y: builder.fcmp_ordered(sign, x, y)


_operator(operator.add, NUMBERS, NUMBERS, lambda builder, x, y: builder.fadd(x, y))
_operator(operator.sub, NUMBERS, NUMBERS, lambda builder, x, y: builder.fsub(x, y))
_operator(operator.mul, NUMBERS, NUMBERS, lambda builder, x, y: builder.fmul(x, y))
_operator(operator.truediv, NUMBERS, NUMBERS, lambda builder, x, y: builder.fdiv(x, y))
_operator(operator.lt, NUMBERS, ANSWERS, _comparison("<"))
_operator(operator.le, NUMBERS, ANSWERS, _comparison("<="))
_operator(operator.eq, NUMBERS, ANSWERS, _comparison("=="))
_operator(operator.or_, ANSWERS, ANSWERS, lambda builder, x, y: builder.or_(x, y))
_operator(operator.and_, ANSWERS, ANSWERS, lambda builder, x, y: builder.and_(x, y))
_operator(operator.xor, ANSWERS, ANSWERS, lambda builder, x, y: builder.xor(x, y))


def load(array: Any, start: int) -> Any:
    """Take eight numbers of a one-dimensional array, of float64 or float32."""
    return array[start : start + WIDTH].astype(np.float64)


def load_singles(array: Any, start: int) -> Any:
    """Take sixteen numbers of a one-dimensional array of float32, as they are."""
    return array[start : start + SINGLE_WIDTH]


def store(array: Any, start: int, x: Any) -> None:
    """Put all lanes into a one-dimensional array."""
    array[start : start + len(x)] = x


def broadcast(number: float) -> Any:
    """Give the same number to every lane."""
    return np.full(WIDTH, number)


def broadcast_entry(array: Any, at: int) -> Any:
    """Give a number of a one-dimensional array to every lane; compiled, without Python's look for a negative index."""
    return np.full(WIDTH, array[at])


def broadcast_single(array: Any, at: int) -> Any:
    """Give a number of a one-dimensional array of float32 to each of sixteen lanes."""
    return np.full(SINGLE_WIDTH, array[at])


def fma(x: Any, y: Any, z: Any) -> Any:
    """Give x · y + z, rounded once where compiled."""
    return x * y + z


def sqrt(x: Any) -> Any:
    """Give the square roots."""
    return np.sqrt(x)


def select(mask: Any, x: Any, y: Any) -> Any:
    """Give x where the mask holds and y elsewhere."""
    return np.where(mask, x, y)


def any_of(mask: Any) -> Any:
    """Tell whether the mask holds in any lane."""
    return np.any(mask)


def transpose(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Turn eight rows of lanes into eight columns."""
    return tuple(np.array((a, b, c, d, e, f, g, h)).T.copy())


def _place(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> Any:  # pragma: no cover - for the compiler
    return builder.gep(context.make_array(kind)(context, builder, array).data, [start])


def _address(
    context: Any, builder: Any, kind: Any, array: Any, start: Any, vector: Any = NUMBERS.vector
) -> Any:  # pragma: no cover - for the compiler
    return builder.bitcast(_place(context, builder, kind, array, start), vector.as_pointer())


@intrinsic  # pragma: no cover - for the compiler
def _load(typing: Any, array: Any, start: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args), align=8)

    def build_single(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        single = ir.VectorType(ir.FloatType(), WIDTH)
        held = builder.load(_address(context, builder, sig.args[0], *args, single), align=4)
        return builder.fpext(held, NUMBERS.vector)

    return NUMBERS(array, types.intp), build_single if array.dtype == types.float32 else build


@intrinsic  # pragma: no cover - for the compiler
def _load_singles(typing: Any, array: Any, start: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args, SINGLES.vector), align=4)

    return SINGLES(array, types.intp), build


@intrinsic  # pragma: no cover - for the compiler
def _store(typing: Any, array: Any, start: Any, x: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2], x.vector), align=4)

    return types.void(array, types.intp, x), build


def _to_every_lane(builder: Any, number: Any, lanes: Vector = NUMBERS) -> Any:  # pragma: no cover - for the compiler
    one = builder.insert_element(ir.Constant(lanes.vector, ir.Undefined), number, ir.IntType(32)(0))
    nowhere_else = ir.Constant(ir.VectorType(ir.IntType(32), lanes.vector.count), [0] * lanes.vector.count)
    return builder.shuffle_vector(one, one, nowhere_else)


@intrinsic  # pragma: no cover - for the compiler
def _broadcast(typing: Any, number: Any) -> Any:
    return NUMBERS(types.float64), lambda context, builder, sig, args: _to_every_lane(builder, args[0])


@intrinsic  # pragma: no cover - for the compiler
def _broadcast_entry(typing: Any, array: Any, at: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _to_every_lane(builder, builder.load(_place(context, builder, sig.args[0], *args)))

    return NUMBERS(array, types.intp), build


@intrinsic  # pragma: no cover - for the compiler
def _broadcast_single(typing: Any, array: Any, at: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _to_every_lane(builder, builder.load(_place(context, builder, sig.args[0], *args)), SINGLES)

    return SINGLES(array, types.intp), build


def _call(name: str) -> Callable[..., Any]:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # pragma: no cover - for the compiler
        vector = sig.return_type.vector
        kind = ir.FunctionType(vector, [vector] * len(args))
        suffix = f"v{vector.count}{'f32' if sig.return_type is SINGLES else 'f64'}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), args)

    return build


@intrinsic  # pragma: no cover - for the compiler
def _fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    return x(x, x, x), _call("fma")


@intrinsic  # pragma: no cover - for the compiler
def _sqrt(typing: Any, x: Any) -> Any:
    return x(x), _call("sqrt")


@intrinsic  # pragma: no cover - for the compiler
def _select(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    return NUMBERS(ANSWERS, NUMBERS, NUMBERS), lambda context, builder, sig, args: builder.select(*args)


@intrinsic  # pragma: no cover - for the compiler
def _any_of(typing: Any, mask: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(WIDTH))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(ANSWERS), build


@intrinsic  # pragma: no cover - for the compiler
def _transpose(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = list(args)
        for apart in (1, 2, 4):
            # Rows that lie `apart` swap the lanes that do: after three rounds every bit of row and lane is swapped.
            low = [lane if not lane & apart else WIDTH + lane - apart for lane in range(WIDTH)]
            high = [lane + apart if not lane & apart else WIDTH + lane for lane in range(WIDTH)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), lanes) for lanes in (low, high)]
            for i in range(WIDTH):
                if not i & apart:
                    pair = rows[i], rows[i + apart]
                    rows[i], rows[i + apart] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        return context.make_tuple(builder, sig.return_type, rows)

    return types.UniTuple(NUMBERS, WIDTH)(*[NUMBERS] * WIDTH), build


overload(transpose)(lambda a, b, c, d, e, f, g, h: lambda a, b, c, d, e, f, g, h: _transpose(a, b, c, d, e, f, g, h))
overload(load)(lambda array, start: lambda array, start: _load(array, start))
overload(load_singles)(lambda array, start: lambda array, start: _load_singles(array, start))
overload(store)(lambda array, start, x: lambda array, start, x: _store(array, start, x))
overload(broadcast)(lambda number: lambda number: _broadcast(number))
overload(broadcast_entry)(lambda array, at: lambda array, at: _broadcast_entry(array, at))
overload(broadcast_single)(lambda array, at: lambda array, at: _broadcast_single(array, at))
overload(fma)(lambda x, y, z: lambda x, y, z: _fma(x, y, z))
overload(sqrt)(lambda x: lambda x: _sqrt(x))
overload(select)(lambda mask, x, y: lambda mask, x, y: _select(mask, x, y))
overload(any_of)(lambda mask: lambda mask: _any_of(mask))
