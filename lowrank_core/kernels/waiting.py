"""Waiting for another thread without sleep: to wake a thread can take longer than what it is woken for."""

# ruff: noqa: ARG001, ARG005, PLW0108 - Numba reads signatures by the names in them, whether those are used or not.
# mypy: disable-error-code="no-untyped-call, call-arg"
from __future__ import annotations

import time
from typing import Any

from numba import types
from numba.extending import intrinsic, overload

from lowrank_core.kernels.compiling import Integers, kernel

__all__ = ["wait"]

# Looks at a number before the caller is asked again: about a third of a millisecond.
PATIENCE = 2**20


def _now(numbers: Integers, at: int) -> Any:
    """Read a number that another thread writes."""
    time.sleep(0)
    return numbers[at]


@intrinsic  # pragma: no cover - for the compiler
def _look(typing: Any, numbers: Any, at: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])
        # A plain read would be moved out of the loop.
        return builder.load_atomic(place, "acquire", align=8)

    return types.int64(numbers, types.intp), build


overload(_now)(lambda numbers, at: lambda numbers, at: _look(numbers, at))


@kernel
def wait(numbers: Integers, at: int, value: int) -> None:
    """Return when a number is no longer ``value``, or after a while."""
    for _ in range(PATIENCE):
        if _now(numbers, at) != value:
            return
