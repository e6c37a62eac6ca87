"""The one table of the dtypes that weights and updates are stored in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["FLOATS", "INTEGERS", "WRITTEN_FLOATS", "FloatDtype", "as_dtype", "coarsest"]


class FloatDtype(NamedTuple):
    """A binary floating-point format: significand bits with the leading one, and the exponents of normal numbers."""

    name: str
    significand_bits: int
    min_exponent: int
    max_exponent: int

    @property
    def eps(self) -> float:
        """Distance from 1 to the next number."""
        return 2.0 ** (1 - self.significand_bits)

    @property
    def subnormal_exponent(self) -> int:
        """Exponent of the smallest positive number, the spacing of all subnormal ones."""
        return self.min_exponent + 1 - self.significand_bits


_FINEST_FIRST = (
    FloatDtype("float64", 53, -1022, 1023),
    FloatDtype("float32", 24, -126, 127),
    FloatDtype("float16", 11, -14, 15),
    FloatDtype("bfloat16", 8, -126, 127),
    FloatDtype("float8_e4m3fn", 4, -6, 8),
    FloatDtype("float8_e5m2", 3, -14, 15),
)

#: Dtypes of weights, by NumPy's or ml_dtypes' name, finest first.
FLOATS = {dtype.name: dtype for dtype in _FINEST_FIRST}

#: Dtypes that adapters are written in; 8 bits without a scale of their own lose too much of factors.
WRITTEN_FLOATS = ("float64", "float32", "float16", "bfloat16")

#: Dtypes of counters, masks and quantised weights, by NumPy's name.
INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def as_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name; those of bfloat16 and 8-bit floats are ml_dtypes' own."""
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
    return np.dtype(name)


def coarsest(*names: str) -> str:
    """Return the dtype with the largest rounding error."""
    return max(names, key=lambda name: FLOATS[name].eps)
