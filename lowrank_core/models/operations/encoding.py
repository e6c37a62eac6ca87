"""How factors are stored: dtype, alpha and rule, and the scale that readers of the file apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_core import scaling_rule
from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.format import StoredScale, scale_by_rule

RULES = ("rslora", "standard")
DEFAULT_ALPHA = 16.0


@dataclass(frozen=True)
class FactorEncoding:
    """How factors are stored, beside their rank.

    `uniform`: all layers will be padded to one rank r with α = r, so that the scale is 1. `scale` is the format's.
    """

    dtype: str = "float32"
    alpha: float | None = None
    rule: str = "standard"
    uniform: bool = False
    scale: Callable[[float, str, int, np.dtype[Any]], StoredScale] = scale_by_rule

    def __post_init__(self) -> None:
        if self.dtype not in FLOATS:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(FLOATS)}")
        if self.rule not in RULES:
            raise ValueError(
                f"rule {self.rule!r} is none that an adapter can name: {', '.join(RULES)} (α/√r and α/r) are"
            )
        if self.uniform and (self.alpha is not None or self.rule != "standard"):
            raise ValueError("uniform sets alpha to the one rank and the rule to 'standard': leave both out")
        scaling_rule(self.rule)(self._alpha, 1)

    @property
    def _alpha(self) -> float:
        return DEFAULT_ALPHA if self.alpha is None else self.alpha

    def stored_scale(self, rank: int) -> StoredScale:
        """Return the alpha that is stored for a layer of this rank, at least 1, and the scale that readers apply."""
        if self.uniform:
            return StoredScale(rank, float(rank), 1.0)
        return self.scale(self._alpha, self.rule, rank, as_dtype(self.dtype))

    def uniform_rank(self, least: int) -> int:
        """Return the smallest sufficient rank that a stored alpha can equal: bfloat16 has no 257."""
        rank = least
        while self.scale(float(rank), "standard", rank, as_dtype(self.dtype)).alpha != rank:
            rank += 1
        return rank


def item_size(tensor: StoredTensor) -> int:
    """Return the bytes of one entry of a tensor in its file."""
    return as_dtype(tensor.dtype).itemsize


def wider_than(dtype: str) -> str:
    """Return what to store numbers in that are too large or too small for a dtype."""
    return "bfloat16 or float32" if dtype == "float16" else "float64"


def finest_dtype(tensors: Iterable[StoredTensor]) -> str:
    """Return the finest dtype that factors are stored in, "float32" where there are none."""
    stored = {tensor.dtype for tensor in tensors} & FLOATS.keys()
    return min(stored, key=lambda name: FLOATS[name].eps, default="float32")
