"""What an adapter changes in its base model: which tensors, by which updates, and what of it cannot be applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate
from lowrank_core.models.files.checkpoints import Checkpoint, module_name
from lowrank_core.models.files.tensors import PLAIN_WEIGHTS, StoredTensor, as_matrix, describe_shape, read_blocks
from lowrank_core.models.formats import Adapter, AdapterLayer, OtherTensor
from lowrank_core.models.formats.with_base import matrices_of, modules_in_base, name_in_base, why_no_module
from lowrank_core.models.module_names import CONV1D_TYPES, is_conv1d
from lowrank_core.models.norms import Update, check_finite
from lowrank_core.models.rounding import rounded


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """An update of one matrix of a tensor, not yet read: of a layer, or of a bias, which is a column here.

    A plain value that can be sent to another process. `expert` says which matrix of a stack is meant.
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], Update]
    expert: int | None = None
    layer: AdapterLayer | None = None

    def matrix_of(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return the matrix of a tensor that this is an update of, as a view."""
        return (tensor if self.expert is None else tensor[self.expert]).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor of a model: what the base has, or what takes its place, and the updates added to it.

    `was` is the dtype of the base's where another takes its place, and `rows` are those that `trained` has instead.
    """

    key: str
    weight: StoredTensor
    updates: tuple[WeightUpdate, ...] = ()
    was: str = ""
    rows: tuple[int, ...] = ()
    trained: StoredTensor | None = None

    @property
    def name(self) -> str:
        """The tensor's name in the base."""
        return self.key

    def read(self) -> NDArray[Any]:
        """Read what the updates are added to."""
        return self._with_trained(self.weight.read(), 0)

    def read_blocks(self) -> Iterator[NDArray[Any]]:
        """Yield consecutive rows of that, and keep no more than these in memory where the file allows it."""
        start = 0
        for block in read_blocks(self.weight):
            yield self._with_trained(block, start)
            start += len(block)

    def _with_trained(self, block: NDArray[Any], start: int) -> NDArray[Any]:
        """Return the rows from `start` on, in place, with those that were trained in full."""
        places = [place for place, row in enumerate(self.rows) if start <= row < start + len(block)]
        if self.trained is not None and places:
            rows = rounded(self.trained.read().astype(np.float64), block.dtype.name)
            block[[self.rows[place] - start for place in places]] = rows[places]
        return block


@dataclass(frozen=True)
class Changes:
    """All that an adapter changes in a base, by the names of tensors.

    `replaced` says what takes the place of tensors, or is new, and `skipped` which tensors of the adapter are not
    applied, both in words. `failures` are layers.
    """

    by_key: dict[str, Change]
    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def changes_of(adapter: Adapter, base: Checkpoint) -> Changes:
    """Return what an adapter, opened beside its base, changes there, as PEFT's merge_and_unload does."""
    modules = matrices_of(base)
    named = modules_in_base(adapter.layers, modules)
    missing = {layer.name: why_no_module(layer, modules) for layer in adapter.layers if layer.name not in named}
    changes = Changes({}, failures={**adapter.unsupported, **missing})
    for other in adapter.others:
        if other.replaces:
            _replace(other, base.tensors, changes)
    weights = base.tensors | {key: change.weight for key, change in changes.by_key.items()}
    updates = _layer_updates(
        [layer for layer in adapter.layers if layer.name in named],
        {name: modules[module] for name, module in named.items()},
        weights,
        changes.failures,
        stored_transposed=base.read_config().get("model_type") in CONV1D_TYPES,
    )
    for other in adapter.others:
        if not other.replaces:
            key = f"{named.get(other.follows, '')}.bias"
            if other.scaling is not None and key in weights and weights[key].size == other.tensor.size:
                updates.setdefault(key, []).append(_bias_update(other))
            else:
                changes.skipped[other.name] = other.describe()
    for key, added in updates.items():
        change = changes.by_key.get(key, Change(key, weights[key]))
        changes.by_key[key] = replace(change, updates=tuple(added))
    return changes


def _replace(other: OtherTensor, weights: Mapping[str, StoredTensor], changes: Changes) -> None:
    """Put a tensor that was saved in full in the place of the base's, or of rows of it, or beside them if it is new."""
    key = name_in_base(other.name, weights) or other.name
    known = weights.get(key)
    if other.rows:
        if known is None or known.shape[1:] != other.tensor.shape[1:] or max(other.rows) >= known.shape[0]:
            changes.skipped[other.name] = f"{other.describe()}; the base has no such rows"
            return
        changes.by_key[key] = Change(key, known, was=known.array_dtype, rows=other.rows, trained=other.tensor)
        changes.replaced[key] = f"rows replaced: {other.describe()}"
        return
    if known is not None and known.shape != other.tensor.shape:
        changes.skipped[other.name] = (
            f"{other.describe()}; the base's has shape {describe_shape(known.shape)}, and config.json describes that"
        )
        return
    changes.by_key[key] = Change(key, other.tensor, was=(known or other.tensor).array_dtype)
    changes.replaced[key] = f"{'new' if known is None else 'replaced'}: {other.describe()}"


def _layer_updates(
    layers: Sequence[AdapterLayer],
    keys: Mapping[str, str],
    weights: Mapping[str, StoredTensor],
    failures: dict[str, str],
    *,
    stored_transposed: bool,
) -> dict[str, list[WeightUpdate]]:
    """Return the updates of layers by the names of their tensors; those that cannot be applied become failures."""
    by_key: dict[str, list[AdapterLayer]] = {}
    for layer in layers:
        by_key.setdefault(keys[layer.name], []).append(layer)
    updates: dict[str, list[WeightUpdate]] = {}
    for key, same in by_key.items():
        for layer in same:
            try:
                update = _layer_update(layer, key, weights[key], stored_transposed=stored_transposed)
                _check_alone(layer, same, key)
            except ValueError as error:
                failures[layer.name] = str(error)
            else:
                updates.setdefault(key, []).append(update)
    return updates


def _layer_update(layer: AdapterLayer, key: str, weight: StoredTensor, *, stored_transposed: bool) -> WeightUpdate:
    """Return the update of a layer, oriented as the base's weight is."""
    if not weight.is_floating:
        raise ValueError(f"the base's {weight.key!r} is stored as {weight.dtype}: {PLAIN_WEIGHTS}")
    experts = layer.placement.experts
    if experts and weight.shape[0] != experts:
        raise ValueError(f"{layer.name!r} is one of {experts} experts, but the base has {weight.shape[0]} of them")
    shape = as_matrix(weight.shape[1:] if experts else weight.shape)
    if layer.base is None:
        is_transposed = _is_transposed(layer, module_name(key), shape, stored_transposed=stored_transposed)
        layer = replace(layer, transposed=is_transposed)
    if layer.shape != shape:
        raise ValueError(
            f"{layer.name!r} is an update of {describe_shape(layer.shape)}, but the base's weight has shape "
            f"{describe_shape(weight.shape)}"
        )
    return WeightUpdate(layer.name, shape, layer.update, layer.placement.expert if experts else None, layer)


def _is_transposed(layer: AdapterLayer, module: str, shape: tuple[int, int], *, stored_transposed: bool) -> bool:
    """Whether the base stores a weight as (in, out), as its shape says, and of a square one its type of model.

    An adapter has one fan_in_fan_out for all layers: of a model with both kinds, it is right for some of them alone.
    """
    placement = layer.placement
    if placement.embedding or not (layer.transposed or placement.experts or is_conv1d(module)):
        return layer.transposed
    m, n = as_matrix(placement.dims)
    if m != n:
        return shape == (n, m)
    return is_conv1d(module) if stored_transposed and not placement.experts else layer.transposed


def _check_alone(layer: AdapterLayer, layers: Sequence[AdapterLayer], key: str) -> None:
    """Check that no other layer, or none for the same expert, is for the same module."""
    same = [each for each in layers if not layer.placement.experts or each.placement.expert == layer.placement.expert]
    if len(same) > 1 or any(each.placement.experts != layer.placement.experts for each in layers):
        raise ValueError(f"several layers stand for {key!r} of the base: one part of a model is needed")


def _bias_update(other: OtherTensor) -> WeightUpdate:
    return WeightUpdate(other.name, (other.tensor.size, 1), partial(_read_bias, other))


def _read_bias(other: OtherTensor) -> LowRankUpdate:
    values = other.tensor.read()
    check_finite(repr(other.tensor.key), values)
    return LowRankUpdate(values.reshape(-1, 1), values.dtype.type(1).reshape(1, 1), other.scaling or 0.0)
