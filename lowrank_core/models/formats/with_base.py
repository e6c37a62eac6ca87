"""An adapter beside its base model: updates that depend on the base's weight become dense layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lowrank_core.models.files.checkpoints import Checkpoint, module_name, open_checkpoint
from lowrank_core.models.files.in_memory import is_adapted
from lowrank_core.models.files.tensors import StoredTensor, as_matrix, describe_shape
from lowrank_core.models.formats import format_named, is_adapter, open_adapter
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, OtherTensor
from lowrank_core.models.formats.base_updates import WithMagnitudes
from lowrank_core.models.formats.format import LossyNames
from lowrank_core.models.sources import Source, name_of

_DORA = "use_dora"
_ATTENTION_WEIGHT = ".in_proj_weight"
# Of the configuration of an adapter in the metadata of its file.
_DORA_FLAG = re.compile(r'(?<=use_dora": )true')


def open_with_base(path: Source, base: Source) -> Adapter:
    """Open an adapter beside the checkpoint that it was trained from."""
    return with_base(open_adapter(path), open_base(base, path))


def open_base(base: Source, adapter: Source) -> Checkpoint:
    """Open the checkpoint that an adapter was trained from."""
    # A model that PEFT has wrapped is the base of its own adapters.
    if is_adapter(base) and not is_adapted(base):
        raise ValueError(
            f"{name_of(base)!r} is an adapter, as {name_of(adapter)!r} is: the base of an adapter is the checkpoint "
            "that it was trained from"
        )
    return open_checkpoint(base)


def with_base(adapter: Adapter, base: Checkpoint) -> Adapter:
    """Return an adapter whose updates that depend on the base model are dense layers."""
    weights = {
        module_name(key): tensor
        for key, tensor in base.tensors.items()
        if key.endswith(".weight") and len(tensor.shape) > 1
    }
    waiting = {update.layer.name: update.layer for update in adapter.base_updates}
    waiting |= {layer.name: layer for layer in _layers_with_magnitudes(adapter)}
    others = {layer.name: layer for layer in adapter.layers if layer.name not in waiting}
    modules = modules_in_base([*waiting.values(), *others.values()], weights)
    counts = Counter(modules.values())
    dense, failures = {}, {}
    for name, layer in waiting.items():
        module = modules.get(name, "")
        if counts[module] > 1:
            failures[name] = f"several layers stand for {module!r} of the base: one part of a model is needed"
            continue
        try:
            dense[name] = _on_base(layer, module, weights)
        except ValueError as error:
            failures[name] = str(error)
    layers = [_with_kernel(layer, weights.get(modules.get(name, ""))) for name, layer in others.items()]
    return replace(
        adapter,
        layers=with_weights(sorted([*layers, *dense.values()], key=lambda layer: layer.name), base),
        unsupported={name: why for name, why in adapter.unsupported.items() if name not in waiting} | failures,
        base_updates=(),
        others=tuple(other for other in adapter.others if not (other.magnitudes and other.follows in waiting)),
        warnings=tuple(warning for warning in adapter.warnings if not warning.startswith(_DORA)),
        settings=_without_dora(adapter.settings),
        metadata={name: _DORA_FLAG.sub("false", text) for name, text in adapter.metadata.items()},
    )


def matrices_of(base: Checkpoint) -> dict[str, str]:
    """Return the names of a checkpoint's matrices and stacks of them, by those of the modules that an adapter names.

    PEFT's LoRA of a torch.nn.MultiheadAttention is of its parameter in_proj_weight.
    """
    return {
        module_name(key).removesuffix(_ATTENTION_WEIGHT): key
        for key, tensor in base.tensors.items()
        if len(tensor.shape) > 1
    }


def with_weights(layers: Sequence[AdapterLayer], base: Checkpoint) -> tuple[AdapterLayer, ...]:
    """Return layers with the weights that their updates are added to, where the base has them."""
    matrices = matrices_of(base)
    modules = modules_in_base(layers, matrices)
    tensors = {name: base.tensors[matrices[module]] for name, module in modules.items()}
    return tuple(replace(layer, weight=_weight_of(layer, tensors.get(layer.name))) for layer in layers)


def _weight_of(layer: AdapterLayer, tensor: StoredTensor | None) -> StoredTensor | None:
    """Return a layer's own part of a tensor, which may be a stack of experts; None where there is none."""
    placement = layer.placement
    if tensor is None or tensor.refusal or not placement.experts:
        return tensor
    return tensor.at(placement.expert) if tensor.shape[0] == placement.experts else None


def _without_dora(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: False if name == _DORA else value for name, value in settings.items()}


def _layers_with_magnitudes(adapter: Adapter) -> Iterator[AdapterLayer]:
    layers = {layer.name: layer for layer in adapter.layers}
    for other in adapter.others:
        if other.magnitudes and other.follows in layers:
            layer = layers[other.follows]
            build = WithMagnitudes(layer.build, _axis_of(other))
            yield replace(layer, tensors=(other.tensor, *layer.tensors), build=build)


def _axis_of(magnitudes: OtherTensor) -> int | None:
    """Return the axis of magnitudes: PEFT has one for each output of the map, LyCORIS as their shape says."""
    return None if magnitudes.tensor.key.endswith(".dora_scale") else 0


def modules_in_base(layers: Collection[AdapterLayer], modules: Collection[str]) -> dict[str, str]:
    """Return the base's module for each layer: of its name, of the one that ends so, or as its format's names mean.

    The name in the file comes first, which may begin with a pipeline's component. Experts that are stacked in one
    tensor have the module of the stack. A layer without a module is left out.
    """
    named = {layer.name: layer.placement.module for layer in layers if layer.placement.module in modules}
    others = [layer for layer in layers if layer.name not in named]
    for format_name in {layer.placement.format for layer in others}:
        own = [layer for layer in others if layer.placement.format == format_name]
        lossy = format_named(format_name).lossy_names
        renamed = [layer.name for layer in own if lossy is not None and lossy.applies(layer.placement.module)]
        if lossy is not None and renamed:
            named |= _meant(lossy, renamed, modules)
        ends = {layer.name: name_in_base(_stack_of(layer), modules) for layer in own if layer.name not in named}
        named |= {name: module for name, module in ends.items() if module}
    return named


def why_no_module(layer: AdapterLayer, modules: Collection[str]) -> str:
    """Return why a layer is not in `modules_in_base`: it has the name of several modules of the base, or of none."""
    lossy = format_named(layer.placement.format).lossy_names
    if lossy is not None and lossy.applies(layer.placement.module):
        try:
            lossy.modules([layer.name], modules)
        except ValueError as error:
            return str(error)
    ends = _same_ends(_stack_of(layer), modules)
    if len(ends) > 1:
        return (
            f"{layer.name!r} stands for each of {', '.join(ends)} of the base, which end alike: give the part of the "
            "model that the layer belongs to"
        )
    return f"{layer.name!r} does not stand for any module of the base: give the one it was trained from"


def _stack_of(layer: AdapterLayer) -> str:
    """Return the name of a layer, or of the stack that it is an expert of."""
    placement = layer.placement
    return placement.name.removesuffix(f"[{placement.expert}]") if placement.experts else placement.name


def _meant(lossy: LossyNames, names: Collection[str], weights: Collection[str]) -> dict[str, str]:
    """Return the modules that names stand for, without those that stand for several."""
    try:
        return lossy.modules(names, weights)
    except ValueError:
        return (
            {} if len(names) == 1 else {name: m for each in names for name, m in _meant(lossy, [each], weights).items()}
        )


def name_in_base(name: str, names: Collection[str]) -> str:
    """Return the one of the base's names that is this one, or else the only one that ends so or that it ends with."""
    if name in names:
        return name
    ends = _same_ends(name, names)
    return ends[0] if len(ends) == 1 else ""


def _same_ends(name: str, names: Collection[str]) -> list[str]:
    """Return those of the base's names that end with this one, or that it ends with."""
    return [known for known in names if known.endswith(f".{name}") or name.endswith(f".{known}")]


def _on_base(layer: AdapterLayer, module: str, weights: Mapping[str, StoredTensor]) -> AdapterLayer:
    """Return a layer with the base's weight, and the shape that it has."""
    if not module:
        raise ValueError(why_no_module(layer, weights))
    weight = weights[module]
    dims = weight.shape[::-1] if layer.transposed else weight.shape
    if layer.placement.dims and as_matrix(layer.placement.dims) != as_matrix(dims):
        raise ValueError(
            f"{layer.name!r} is an update of {describe_shape(as_matrix(layer.placement.dims))}, but the base's weight "
            f"has shape {describe_shape(weight.shape)}"
        )
    return replace(
        layer,
        base=weight,
        placement=replace(layer.placement, dims=dims),
        rank=min(as_matrix(dims)),
        scaling_source=f"{layer.scaling_source}; with the base's weight",
        fixed="",
    )


def _with_kernel(layer: AdapterLayer, weight: StoredTensor | None) -> AdapterLayer:
    """Return a layer with the kernel's axes of the base's weight, which flattened factors do not have."""
    dims = layer.placement.dims
    if weight is None or layer.placement.experts:
        return layer
    if len(dims) >= len(weight.shape) or as_matrix(dims) != as_matrix(weight.shape):
        return layer
    return replace(layer, placement=replace(layer.placement, dims=weight.shape))
