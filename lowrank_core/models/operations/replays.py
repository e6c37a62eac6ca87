"""Merges replayed: how programs compute W + γBA, and between which numbers a result is in any order of summation.

Every step after the product rounds to nearest, which is monotone: where two numbers enclose whatever a program may have
summed up, the same two, rounded as the program rounds, enclose what it has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core import KroneckerUpdate, LowRankUpdate
from lowrank_core._dtypes import FLOATS
from lowrank_core.models.norms import Update, update_blocks
from lowrank_core.models.rounding import rounded_values

_HALF = ("float16", "bfloat16")
Factors = LowRankUpdate | KroneckerUpdate


class Product(NamedTuple):
    """Rows of an update without its scale: the product, Σ|b||a|, and the number of roundings in each of its entries."""

    exact: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    roundings: int

    def error(self, dtype: str) -> NDArray[np.float64]:
        r"""Return how far a product that is summed up in a dtype can be from this one, in any order of summation.

        That is :math:`\gamma_k\,|B||A|` with :math:`\gamma_k = k u / (1 - k u)` (Higham, Accuracy and Stability of
        Numerical Algorithms, 2nd ed., eq. (3.5)), and the smallest normal number for each term, because some processors
        flush what is smaller to zero. This product is one of float64, with an error of its own.
        """
        error = np.zeros_like(self.exact)
        for name in dict.fromkeys((dtype, "float64")):
            k_u = self.roundings * FLOATS[name].eps / 2
            error += k_u / (1 - k_u) * self.magnitude + self.roundings * 2.0 ** FLOATS[name].min_exponent
        return error


@dataclass(frozen=True, slots=True)
class Replay:
    """One way to merge: the dtype of the weight, of the factors, and of what each step is rounded to.

    `arithmetic` is what sums are made in before they are rounded to the dtype of the `product`, which is also that of
    its multiple by the scale, or of the merged `weight`. `update` is what that multiple is converted to.
    """

    label: str
    weight: str = "float64"
    factors: str = "float64"
    arithmetic: str = "float64"
    product: str = "float64"
    update: str = "float64"

    def bounds(
        self, weight: NDArray[np.float64], product: Product, scaling: float, stored: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the least and the largest number that each merged entry can be in its stored dtype."""
        error = product.error(self.arithmetic)
        ends = [self._merged(weight, product.exact + end, scaling, stored) for end in (-error, error)]
        return np.minimum(*ends), np.maximum(*ends)

    def _merged(
        self, weight: NDArray[np.float64], product: NDArray[np.float64], scaling: float, stored: str
    ) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            gamma = float(rounded_values(np.array(scaling), self.arithmetic))
            scaled = self._rounded(gamma * self._rounded(product, self.product), self.product)
            total = rounded_values(weight, self.weight) + rounded_values(scaled, self.update)
            return rounded_values(self._rounded(total, self.weight), stored)

    def _rounded(self, values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
        return rounded_values(rounded_values(values, self.arithmetic), dtype)


EXACT = Replay("float64")
"""The product and the sum in float64, rounded once."""


def peft_replays(base: str, stored: str) -> Iterator[Replay]:
    """Yield the ways in which PEFT merges a weight that the base has in one dtype, and the merged model in another.

    It merges in the dtype that the model was loaded in, which is taken to be no coarser than that of the merged model:
    else more is lost than that dtype loses. Factors are in float32 then, or in the weight's dtype with
    ``autocast_adapter_dtype=False``. On a CPU the product is made in float32 (``LoraLayer.get_delta_weight``), and on a
    GPU in the factors' dtype. The update is added as it is, or with ``safe_merge``, to an embedding and to a parameter,
    in the weight's dtype.
    """
    for dtype in dict.fromkeys((stored, base, "float32")):
        if FLOATS[dtype].eps > FLOATS[stored].eps:
            continue
        label = f"PEFT in {dtype}"
        if dtype not in _HALF:
            wide = "float64" if dtype == "float64" else "float32"
            yield Replay(label, dtype, wide, wide, wide, wide)
            continue
        yield Replay(label, dtype, "float32", "float32", "float32", "float32")
        yield Replay(f"{label}, with the update in it", dtype, "float32", "float32", "float32", dtype)
        yield Replay(f"{label}, with the factors in it", dtype, dtype, "float32", "float32", dtype)
        yield Replay(f"{label}, with the product in it", dtype, dtype, "float32", dtype, dtype)


def products(update: Update, factors: str) -> Iterator[tuple[slice, Product]]:
    """Yield rows of an update, and which they are, with its factors rounded to a dtype."""
    if isinstance(update, np.ndarray):
        # How it was made is not known any more, except that it is a difference, or a product of more than min(m, n).
        for rows, block in update_blocks(update):
            dense = block.astype(np.float64)
            largest = np.max(np.abs(dense), axis=1, keepdims=True, initial=0.0)
            yield rows, Product(dense, np.broadcast_to(largest, dense.shape), min(update.shape) + 2)
        return
    unscaled = _with_factors(update, lambda factor: rounded_values(factor, factors))
    magnitude = _with_factors(unscaled, np.abs)
    roundings = _roundings(update)
    for (rows, exact), (_, bound) in zip(update_blocks(unscaled), update_blocks(magnitude), strict=True):
        yield rows, Product(exact, bound, roundings)


def rescaling_product(weight: NDArray[np.float64], delta: NDArray[np.float64], stored: str) -> Product:
    """Return the product of an update that multiplies the weight itself, as DoRA's.

    Programs make the merged weight, and not its difference from the base's: of as many roundings as an entry of a norm
    has, of numbers of the size of the largest in the row. PEFT rounds the norm to the weight's dtype besides.
    """
    largest = np.max(np.abs(weight) + np.abs(weight + delta), axis=1, keepdims=True, initial=0.0)
    roundings = delta.shape[1] + round(2 * max(1.0, FLOATS[stored].eps / FLOATS["float32"].eps))
    return Product(delta, np.broadcast_to(largest, delta.shape), roundings)


def scaling_of(update: Update) -> float:
    """Return the scale of an update."""
    return 1.0 if isinstance(update, np.ndarray) else update.scaling


def _with_factors(update: Factors, convert: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Factors:
    """Return an update of the scale 1 whose factors are converted; those of a Kronecker product have no scale."""
    if isinstance(update, LowRankUpdate):
        B, A = (convert(factor.astype(np.float64)) for factor in (update.B, update.A))
        return LowRankUpdate(B, A)
    left, right = (
        convert(side.astype(np.float64)) if isinstance(side, np.ndarray) else _with_factors(side, convert)
        for side in (update.left, update.right)
    )
    return KroneckerUpdate(left, right)


def _roundings(update: Factors) -> int:
    """Return how many roundings an entry has at the most; of a Hadamard product, two more than the rank are enough."""
    if isinstance(update, LowRankUpdate):
        return update.rank + 2
    return 1 + sum(_roundings(side) for side in (update.left, update.right) if not isinstance(side, np.ndarray))
