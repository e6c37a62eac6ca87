"""PEFT's types of adapters other than LoRA: what the reader of each has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, BaseUpdate, OtherTensor, Placement
from lowrank_core.models.formats.format import AdapterFile
from lowrank_core.models.formats.peft_config import PeftConfig, as_names, check_peft_config, meaning_in_full
from lowrank_core.models.formats.single_file import Scale
from lowrank_core.models.formats.structured import Parts, Tensors
from lowrank_core.models.module_names import PEFT_PREFIX

FORMAT = "peft"
# What a LoRA of the same update needs of the configuration of another type.
_KEPT = ("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "modules_to_save", "revision", "task_type")


def read_type(
    file: AdapterFile,
    raw: Mapping[str, Any],
    ends: Sequence[str],
    read: Callable[[str, Tensors], AdapterLayer | BaseUpdate],
) -> Adapter:
    """Return the adapter whose modules have tensors with such ends, each read by ``read(module, tensors)``."""
    modules: dict[str, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for key, tensor in file.tensors.items():
        module, _, end = key.removeprefix(PEFT_PREFIX).rpartition(".")
        if end in ends:
            # An adapter's part of no rank, which AdaLoRA leaves of a layer, changes nothing.
            if tensor.size:
                modules.setdefault(module, {})[end] = tensor
        else:
            rest[key.removeprefix(PEFT_PREFIX)] = tensor
    if not modules:
        raise ValueError(f"{str(file.path)!r} has peft_type {raw['peft_type']!r}, but no {ends[0]}: it is incomplete")
    layers: list[AdapterLayer] = []
    base_updates: list[BaseUpdate] = []
    unsupported: dict[str, str] = {}
    for module, tensors in sorted(modules.items()):
        try:
            update = read(module, tensors)
        except ValueError as error:
            unsupported[module] = str(error)
            continue
        if isinstance(update, BaseUpdate):
            base_updates.append(update)
            unsupported[module] = update.reason
        else:
            layers.append(update)
    saved = as_names(raw.get("modules_to_save"))
    return Adapter(
        path=file.path,
        format=FORMAT,
        layers=tuple(layers),
        unsupported=unsupported,
        base_updates=tuple(base_updates),
        others=tuple(_other(name, tensor, saved) for name, tensor in rest.items()),
        settings={name: raw[name] for name in _KEPT if name in raw},
        metadata=file.metadata,
    )


def scales_of(file: AdapterFile, raw: Mapping[str, Any]) -> PeftConfig:
    """Return the ranks and alphas of LoHa and LoKr, whose patterns are LoRA's and whose alpha has a name of its own."""
    own = {name: raw[name] for name in ("r", "rank_pattern", "alpha_pattern", "modules_to_save") if name in raw}
    return check_peft_config(file.path, {"peft_type": "LORA", "lora_alpha": raw.get("alpha", 8), **own})


def structured_layer(module: str, parts: Parts, config: PeftConfig) -> AdapterLayer:
    """Return a layer of LoHa or LoKr, with PEFT's scale: α/r of the configuration, whatever the factors are."""
    alpha, source = config.alpha_of(module)
    rank = config.rank_of(module)
    # PEFT gives the core of a Conv1d an axis of size 1, as if it were a Conv2d.
    if len(parts.dims) == 4 and parts.dims[2] > 1 == parts.dims[3]:
        parts = parts._replace(dims=parts.dims[:3])
    source = f"alpha {alpha:g} ({source.replace('lora_alpha', 'alpha')}) / rank {rank} (r)"
    return layer_of(module, parts, Scale(alpha, "standard", config.scaling(alpha, rank), source))


def layer_of(module: str, parts: Parts, scale: Scale, *, transposed: bool = False) -> AdapterLayer:
    """Return a layer from its parts, placed as a LoRA of the same module."""
    keys = tuple(f"{PEFT_PREFIX}{module}.{factor}.weight" for factor in ("lora_A", "lora_B"))
    return AdapterLayer(
        placement=Placement(FORMAT, module, module, keys, parts.dims),
        rank=parts.rank,
        alpha=scale.alpha,
        rule=scale.rule,
        scaling=scale.scaling,
        scaling_source=scale.source,
        tensors=parts.tensors,
        build=parts.build,
        transposed=transposed,
    )


def _other(name: str, tensor: StoredTensor, saved: Sequence[str]) -> OtherTensor:
    whole = meaning_in_full(name, saved)
    return OtherTensor(tensor, name, whole or "unknown to this type of adapter", replaces=bool(whole))
