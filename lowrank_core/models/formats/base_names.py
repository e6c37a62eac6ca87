"""The base model's names for the layers of several adapters, whatever their formats call them."""

from __future__ import annotations

from collections.abc import Collection

from lowrank_core.models.formats import Adapter, Placement, format_named


def base_names(adapter: Adapter, known: Collection[str]) -> dict[str, str]:
    """Return the base model's name for each layer of an adapter, or the layer's own where `known` does not have it."""
    names = {name: name for name in (*(layer.name for layer in adapter.layers), *adapter.unsupported)}
    for source in {layer.placement.format for layer in adapter.layers} | {adapter.format}:
        rule = format_named(source).lossy_names
        if rule is not None:
            exact = {layer.name for layer in adapter.layers if not is_lossy(layer.placement)}
            names |= rule.modules(names.keys() - exact, known)
    return names


def is_lossy(placement: Placement) -> bool:
    """Whether the format of a layer has another name for its module than the base model."""
    return format_named(placement.format).is_lossy(placement)
