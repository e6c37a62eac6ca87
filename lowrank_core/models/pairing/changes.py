"""Tensors of two checkpoints that are not layers: what became of them, read a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.files.checkpoints import module_name
from lowrank_core.models.files.tensors import (
    PLAIN_WEIGHTS,
    StoredTensor,
    Weight,
    describe,
    describe_shape,
    read_blocks,
)
from lowrank_core.models.module_names import is_embedding
from lowrank_core.models.norms import (
    BLOCK_ENTRIES,
    block_norm,
    difference_dtype,
    difference_of_blocks,
    subtracted,
    why_not_finite,
)


class OtherChange(NamedTuple):
    """What became of a tensor that is not in any layer.

    `is_vector` says that no layer could have it: a bias, a norm's weights, a number, or a matrix that is
    stored a second time.
    """

    description: str
    entries: int
    is_vector: bool


def change_of(base: Weight, tuned: Weight) -> OtherChange | None:
    """Return what became of a tensor, with its norm; None where it did not change."""
    description = _describe_change(base, tuned)
    is_vector = len(tuned.shape) <= 1 and base.is_readable and tuned.is_readable
    return OtherChange(description, tuned.size, is_vector) if description else None


def only_in(which: str, tensor: StoredTensor, *, tied_to: str, candidates: str) -> OtherChange:
    """Return what a tensor of one checkpoint alone is: a copy of another there, or what it may be of the other."""
    advice = f"; it may be {candidates} of the other: say which (--match OLD=NEW)" if candidates else ""
    tied = f"; equal to {tied_to!r} there, to which the other ties it" if tied_to else ""
    is_vector = bool(tied_to) or len(tensor.shape) <= 1 or tensor.is_integer or not tensor.size
    return OtherChange(f"only in the {which} checkpoint: {describe(tensor)}{tied or advice}", tensor.size, is_vector)


def change_norm(base: Weight, tuned: Weight) -> tuple[float, float]:
    """Return the norm of a change, and that of the weights before it."""
    dtypes, norms = (base.array_dtype, tuned.array_dtype), []
    for before, delta, is_finite in subtracted(_blocks(base, tuned), difference_dtype(*dtypes)):
        if not is_finite:
            raise ValueError(why_not_finite(read_blocks(base), read_blocks(tuned), *dtypes))
        norms.append((block_norm(delta, tuned.size), block_norm(before, tuned.size)))
    change, own = zip(*norms, strict=True)
    return math.hypot(*change), math.hypot(*own)


def differences(base: Weight, tuned: Weight, entries: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Yield consecutive rows of two weights, of about so many entries, and their difference, tuned − base."""
    dtypes = base.array_dtype, tuned.array_dtype
    for before, after in zip(read_blocks(base, entries), read_blocks(tuned, entries), strict=True):
        delta = difference_of_blocks([(before, after)], after.shape, *dtypes)
        if delta is None:
            # Of the whole weights: the counts of one block are not theirs.
            raise ValueError(why_not_finite(read_blocks(base, entries), read_blocks(tuned, entries), *dtypes))
        yield before, after, delta


def find_tied(keys: Iterable[str], tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Return the tensors of one checkpoint that equal another there, one of the two an embedding: a head and it."""
    matrices = {key: tensor for key, tensor in tensors.items() if len(tensor.shape) == 2 and tensor.is_floating}
    embeddings = [key for key in matrices if is_embedding(module_name(key))]
    tied: dict[str, str] = {}
    for key in keys:
        others = matrices if key in embeddings else embeddings
        equal = (name for name in others if key in matrices and name != key and _are_equal(tensors[key], tensors[name]))
        name = next(equal, None)
        if name is not None:
            tied[key] = name
    return tied


def _are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    alike = (first.shape, first.dtype) == (second.shape, second.dtype)
    return alike and all(np.array_equal(*blocks) for blocks in _blocks(first, second))


def _blocks(base: Weight, tuned: Weight) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(read_blocks(base, BLOCK_ENTRIES), read_blocks(tuned, BLOCK_ENTRIES), strict=True)


def _describe_change(before: Weight, after: Weight) -> str:
    """Return the change of a tensor in words, with its norm; nothing where it did not change."""
    stored = f"{describe_shape(after.shape)}, {after.dtype}"
    if before.shape != after.shape:
        return f"shapes differ: {describe_shape(before.shape)} in the base, {describe_shape(after.shape)} in the tuned"
    if not (before.is_readable and after.is_readable):
        return f"not compared: {stored}; {PLAIN_WEIGHTS}"
    if not (before.is_floating and after.is_floating):
        changed = sum(int(np.count_nonzero(base != tuned)) for base, tuned in _blocks(before, after))
        return f"changed in {changed} of {after.size} entries: {stored}; {PLAIN_WEIGHTS}" if changed else ""
    try:
        change, own = change_norm(before, after)
    except ValueError as error:
        return f"{stored}: {error}"
    return f"changed by norm {change:.4g} (its own {own:.4g}): {stored}" if change else ""
