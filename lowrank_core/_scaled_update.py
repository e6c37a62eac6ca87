"""Operators that all updates have: with numbers, which change the scaling alone, and with arrays."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from lowrank_core._results import EqualByContent, shape_text
from lowrank_core._validation import REAL_NUMBERS, as_finite, as_real

__all__ = ["ScaledUpdate", "as_left_operand", "as_right_operand", "check_product"]


class ScaledUpdate(EqualByContent):
    """A frozen dataclass with a `scaling` and a `shape`, multiplied by numbers and made dense by `to_dense` alone."""

    scaling: float
    shape: tuple[int, ...]

    # Operators between arrays and updates are those of the update, and NumPy's functions refuse it.
    __array_ufunc__: ClassVar[None] = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise self._not_dense()

    def __mul__(self, factor: Any) -> Self:
        """Return the update under a scale multiplied by a number; what it is made of is shared."""
        return self._rescaled(self.scaling * float(factor)) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Self:
        return self._rescaled(self.scaling / float(divisor)) if _is_number(divisor) else NotImplemented

    def __neg__(self) -> Self:
        return self._rescaled(-self.scaling)

    def __add__(self, other: Any) -> Any:
        """Refuse an array, which only a dense update can be added to."""
        if isinstance(other, np.ndarray):
            raise self._not_dense()
        return NotImplemented

    __radd__ = __sub__ = __rsub__ = __add__

    def _rescaled(self, scaling: float) -> Self:
        """Return a copy under another scaling."""
        # Not dataclasses.replace: it would read a dtype that NumPy lacks from the float32 copy of its tensor.
        rescaled = copy.copy(self)
        object.__setattr__(rescaled, "scaling", float(as_finite(scaling, "scaling")))
        return rescaled

    def _not_dense(self) -> TypeError:
        """Return the error that a dense array is asked for implicitly."""
        return TypeError(
            f"{self!r} is not made dense implicitly: call .to_dense() for an array of {shape_text(self.shape)}, or "
            "pass it to a function of this package, which takes it as it is"
        )


def _is_number(value: Any) -> bool:
    """Whether a value is one real number, as a scalar or as an array without axes."""
    return isinstance(value, REAL_NUMBERS) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf"
    )


def as_right_operand(matrices: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return X of a product Δ @ X, as a vector (n,) or as matrices (..., n, k)."""
    X = as_real(matrices, "X")
    check_product(shape, X.shape)
    return X


def as_left_operand(matrices: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return X of a product X @ Δ, as a vector (m,) or as matrices (..., k, m)."""
    X = as_real(matrices, "X")
    check_product(X.shape, shape)
    return X


def check_product(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Check that matrices, or vectors, of two shapes can be multiplied."""
    if not left or not right or left[-1] != right[max(-2, -len(right))]:
        raise ValueError(
            f"shapes {left} and {right} cannot be multiplied by @; the columns of the left side must be as many as the "
            "rows of the right one. Transpose one of them, or pass vectors along the last axis to .apply(x)."
        )
