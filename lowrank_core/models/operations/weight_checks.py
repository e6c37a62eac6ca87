"""One merged weight, compared entry by entry with what a merge makes of its base and its updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core.models.files.tensors import PLAIN_WEIGHTS, StoredTensor, describe_shape, read_blocks
from lowrank_core.models.norms import Update, check_finite, update_blocks
from lowrank_core.models.operations.changes import Change, WeightUpdate
from lowrank_core.models.operations.diagnosis import diagnose
from lowrank_core.models.operations.replays import (
    EXACT,
    Product,
    Replay,
    peft_replays,
    products,
    rescaling_product,
    scaling_of,
)
from lowrank_core.models.operations.weight_merging import RoundingLoss, block_loss, combined, converted
from lowrank_core.models.rounding import rounded, ulps_in


@dataclass(frozen=True)
class VerifiedLayer:
    """One update, as it is in the merged model.

    Attributes
    ----------
    name, shape : str, tuple of int
        The layer's name, or that of a bias, and the shape (m, n) of its update as a matrix.
    dtype, merged_dtype : str
        What the base's weight is stored in, and the merged one.
    right : bool
        Whether every entry is what one of the replays makes of it.
    replay : str
        That replay; empty where there is none.
    wrong_entries : int
        Number of entries that the merge in float64 does not make so; 0 where another replay does.
    max_ulps : float
        How far the worst of them is off, in units in the last place of the largest of the base's, the expected and the
        merged entry.
    diagnosis : str
        What a wrong layer looks like.
    rounding : RoundingLoss
        What a merge in this dtype loses of the update.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    merged_dtype: str
    right: bool
    replay: str
    wrong_entries: int
    max_ulps: float
    diagnosis: str
    rounding: RoundingLoss


class Checked(NamedTuple):
    """A tensor that was compared: its layers, those that could not be, and how it differs where it has no updates."""

    layers: tuple[VerifiedLayer, ...]
    failures: dict[str, str]
    difference: str


def check_change(change: Change, merged: StoredTensor) -> Checked:
    """Read a weight of the base and the merged one, and compare it with what replays make of its updates."""
    _check_comparable(change.weight, merged)
    weight, found = change.read(), merged.read()
    layers: list[VerifiedLayer] = []
    failures: dict[str, str] = {}
    for update in change.updates:
        try:
            layers.append(_check_update(update, change, update.matrix_of(weight), update.matrix_of(found)))
        except ValueError as error:
            failures[update.name] = str(error)
    return Checked(tuple(layers), failures, "")


def check_unchanged(change: Change, merged: StoredTensor) -> Checked:
    """Read a tensor without updates and the merged one, and say in how many entries they differ, bit by bit.

    A tensor that took the place of the base's may have been rounded to the dtype of that one on the way.
    """
    if change.weight.shape != merged.shape:
        shapes = " and ".join(describe_shape(tensor.shape) for tensor in (change.weight, merged))
        return Checked((), {}, f"shapes differ: {shapes}")
    ways = tuple(dict.fromkeys(("", change.was)))
    counts = [0] * len(ways)
    for expected, found in zip(change.read_blocks(), read_blocks(merged), strict=True):
        for place, way in enumerate(ways):
            counts[place] += _differing(expected, found, way)
    different = min(counts)
    source = "the adapter's" if change.was else "the base's"
    text = f"differs from {source} in {different:,} of {merged.size:,} entries" if different else ""
    return Checked((), {}, text)


def _differing(expected: NDArray[Any], found: NDArray[Any], way: str) -> int:
    """Return how many entries differ, bit by bit, from those expected, which may be rounded to a dtype on the way."""
    if {expected.dtype.name, found.dtype.name} <= FLOATS.keys():
        expected = converted(converted(expected, way or expected.dtype.name), found.dtype.name)
    if expected.dtype != found.dtype:
        return found.size
    bits = [np.ascontiguousarray(array).view(np.uint8).reshape(array.size, -1) for array in (expected, found)]
    return int(np.count_nonzero((bits[0] != bits[1]).any(axis=1)))


def _check_comparable(weight: StoredTensor, merged: StoredTensor) -> None:
    if weight.shape != merged.shape:
        raise ValueError(
            f"shapes differ: {describe_shape(weight.shape)} in the base, {describe_shape(merged.shape)} in the merged "
            "model"
        )
    if merged.dtype not in FLOATS:
        raise ValueError(f"the merged {merged.key!r} is stored as {merged.dtype}: {PLAIN_WEIGHTS}")


def _check_update(update: WeightUpdate, change: Change, weight: NDArray[Any], merged: NDArray[Any]) -> VerifiedLayer:
    check_finite(f"the base's {change.key!r}", weight)
    check_finite(f"the merged {change.key!r}", merged)
    pair = _Pair(weight, merged, update.read(), rescales=update.layer is not None and update.layer.base is not None)
    rounding, is_exact = _exact_merge(pair)
    replay = EXACT.label if is_exact else _replay(pair, change.weight.array_dtype)
    wrong, worst = (0, 0.0) if replay else _deviation(pair)
    return VerifiedLayer(
        name=update.name,
        shape=update.shape,
        dtype=change.weight.dtype,
        merged_dtype=merged.dtype.name,
        right=bool(replay),
        replay=replay,
        wrong_entries=wrong,
        max_ulps=worst,
        diagnosis="" if replay else diagnose(weight, merged, pair.update, update.layer),
        rounding=rounding,
    )


class _Pair(NamedTuple):
    """A weight before and after its merge, and the update; `rescales` says that this multiplies the weight itself."""

    weight: NDArray[Any]
    merged: NDArray[Any]
    update: Update
    rescales: bool

    @property
    def stored(self) -> str:
        """The dtype of the merged weight."""
        return str(self.merged.dtype.name)

    def blocks(self, factors: str) -> Iterator[_Block]:
        """Yield rows of both, in float64, with those of the update whose factors are in a dtype."""
        for rows, product in products(self.update, factors):
            before, after = (array[rows].astype(np.float64) for array in (self.weight, self.merged))
            if self.rescales:
                yield _Block(before, after, rescaling_product(before, product.exact, self.stored))
            else:
                yield _Block(before, after, product)


class _Block(NamedTuple):
    """Rows of a weight before and after its merge, and of the product."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    product: Product


def _exact_merge(pair: _Pair) -> tuple[RoundingLoss, bool]:
    """Return what a merge in float64 loses of the update, and whether each merged entry is what that makes of it."""
    losses, is_exact = [], True
    for rows, delta in update_blocks(pair.update):
        before = pair.weight[rows].astype(np.float64)
        exact = before + delta
        stored = rounded(exact, pair.stored)
        losses.append(block_loss(before, delta, exact, stored, pair.stored))
        is_exact = is_exact and bool((stored == pair.merged[rows]).all())
    return combined(losses), is_exact


def _replay(pair: _Pair, base: str) -> str:
    """Return the way in which the merged weight was made; empty where none of the ways makes it."""
    ways = (EXACT, *peft_replays(base, pair.stored))
    return next((each.label for each in ways if _is_enclosed(pair, each)), "")


def _deviation(pair: _Pair) -> tuple[int, float]:
    """Return how many entries the merge in float64 does not make so, and by how many ulps at most."""
    wrong, worst = 0, 0.0
    for before, after, product in pair.blocks(EXACT.factors):
        least, most = EXACT.bounds(before, product, scaling_of(pair.update), pair.stored)
        distance = np.maximum(least - after, after - most)
        wrong += int(np.count_nonzero(distance > 0))
        largest = np.max(np.abs([before, after, least, most]), axis=0)
        worst = max(worst, float(np.max(distance / ulps_in(largest, pair.stored), initial=0.0)))
    return wrong, worst


def _is_enclosed(pair: _Pair, replay: Replay) -> bool:
    for before, after, product in pair.blocks(replay.factors):
        least, most = replay.bounds(before, product, scaling_of(pair.update), pair.stored)
        if not ((least <= after) & (after <= most)).all():
            return False
    return True
