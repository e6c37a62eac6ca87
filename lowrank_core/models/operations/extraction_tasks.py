"""The layers of two checkpoints as tasks: whether each is extracted, and where it is stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from lowrank_core.models.formats import Format
from lowrank_core.models.formats.experts import without_experts
from lowrank_core.models.module_names import is_embedding, matches
from lowrank_core.models.operations.model_config import Orientation
from lowrank_core.models.operations.placing import no_embeddings
from lowrank_core.models.operations.tasks import Task
from lowrank_core.models.pairing.changes import OtherChange, change_of
from lowrank_core.models.pairing.pairs import CheckpointPair, WeightPair

_NOT_REQUESTED = "an embedding, which is extracted only when asked for (--embedding)"
_NO_MODULE = "a parameter of its own and no module's weight, which an adapter cannot target"


class PlacedWeights(NamedTuple):
    """The layers to be extracted, what is skipped, what is skipped and did not change, and what cannot be placed."""

    tasks: list[Task]
    skipped: dict[str, OtherChange]
    unchanged: list[str]
    failures: dict[str, str]


def place_weights(
    pair: CheckpointPair,
    chosen: Sequence[str],
    embeddings: Collection[str],
    orientation: Orientation,
    target: Format,
    prefix: str | None,
) -> PlacedWeights:
    """Decide for each chosen layer whether and where it is stored."""
    placed = PlacedWeights([], dict(pair.other_changes()), [], {})
    layers, modules, routers = {layer.name: layer for layer in pair.layers}, pair.module_names, _routers(pair)
    for name in chosen:
        embedding = matches(name, embeddings)
        if name in pair.unpaired:
            if is_embedding(name) and not embedding:
                placed.skipped[name] = pair.unpaired[name]
            else:
                placed.failures[name] = pair.unpaired[name].description
            continue
        layer = layers[name]
        if layer.experts and target.place_parameter is None:
            placed.failures[name] = f"{without_experts(target.title, layer.experts)}: write PEFT's, a folder"
            continue
        reason = "" if layer.experts else skip_reason(name, modules, embedding=embedding, target=target)
        if not reason:
            as_parameter = bool(layer.experts) or name in routers
            placed.tasks.append(
                _task(layer, orientation, target, prefix, embedding=embedding, as_parameter=as_parameter)
            )
            continue
        change = change_of(layer.base, layer.tuned)
        if change is None:
            placed.unchanged.append(name)
        else:
            placed.skipped[name] = change._replace(description=f"{reason}: {change.description}")
    return placed


def _routers(pair: CheckpointPair) -> set[str]:
    """Return the names of the weights that choose among the experts of a stack: a row for each, beside the stack.

    Of most models in transformers 5 these are parameters of a module that is not linear, which PEFT refuses to target.
    """
    stacks = {(_owner(_owner(layer.module)), layer.experts) for layer in pair.layers if layer.experts}
    single = (layer for layer in pair.layers if not layer.experts)
    return {layer.name for layer in single if (_owner(layer.module), layer.shape[0]) in stacks}


def _owner(module: str) -> str:
    return module.rpartition(".")[0]


def _task(
    layer: WeightPair,
    orientation: Orientation,
    target: Format,
    prefix: str | None,
    *,
    embedding: bool,
    as_parameter: bool,
) -> Task:
    shape = layer.tuned.shape
    is_transposed = embedding or (len(shape) == len(layer.shape) and orientation.is_transposed(layer))
    dims = shape[::-1] if is_transposed else shape
    if as_parameter and target.place_parameter is not None:
        placement = target.place_parameter(layer.key, dims, prefix, layer.expert, layer.experts)
    else:
        placement = target.placement(layer.name, dims, prefix, embedding)
    return Task(
        placement=placement,
        shape=layer.shape,
        dtype=layer.dtype,
        tensors=(layer.tuned,),
        update=layer.update,
        transposed=is_transposed,
        update_and_base_norm=layer.update_and_base_norm,
        base_update_and_noise=layer.base_update_and_noise,
        base_norm=layer.base_norm,
    )


def skip_reason(
    name: str, module_names: Collection[str], *, embedding: bool = False, target: Format | None = None
) -> str:
    """Return why an adapter skips a weight, asked for as an embedding or not; empty if it takes part."""
    if name not in module_names:
        return _NO_MODULE
    if embedding:
        return "" if target is None or target.embeddings else no_embeddings(target)
    return _NOT_REQUESTED if is_embedding(name) else ""
