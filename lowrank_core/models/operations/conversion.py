"""Layers of adapters on their way into another file: what forbids it, where each goes, and in which orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_core import LowRankUpdate
from lowrank_core._dtypes import FLOATS
from lowrank_core.models.files.checkpoints import module_name, open_checkpoint
from lowrank_core.models.formats.placements import (
    DEFAULT_KOHYA_PREFIX,
    Placement,
    is_embedding_layer,
    is_kohya_layer,
    kernel_in_base,
    kohya_key,
    kohya_placement,
    names_in_base,
    peft_placement,
    same_placement,
)
from lowrank_core.models.operations.norms import product_norm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from lowrank_core.models.files.tensors import StoredTensor
    from lowrank_core.models.formats.adapter import Adapter, AdapterLayer

GROUPED = "a grouped convolution, whose truncation is not one: leave it out, or keep the adapter as it is"
NO_EMBEDDINGS = "an embedding, which kohya's format does not have"
_MAGNITUDES = ("lora_magnitude_vector", "dora_scale")


def finest_dtype(layers: Iterable[AdapterLayer]) -> str:
    """
    Find the finest dtype that factors are stored in.

    Parameters
    ----------
    layers : iterable of AdapterLayer
        Of one adapter or of several.

    Returns
    -------
    str
        "float32" where there are none.
    """
    stored = {tensor.dtype for layer in layers for tensor in (layer.A, layer.B)} & FLOATS.keys()
    return min(stored, key=lambda name: FLOATS[name].eps, default="float32")


def check_base(adapter: Adapter, *, restored: bool) -> None:
    """
    Refuse an adapter whose factors alone are not the update.

    Parameters
    ----------
    adapter : Adapter
        As :func:`~lowrank_core.models.formats.open_adapter` gives it.
    restored : bool
        Whether the base is again as it was.

    Raises
    ------
    ValueError
        If an initialisation altered the base, and it was not restored.
    """
    if adapter.initialisation is not None and not restored:
        raise ValueError(
            f"{str(adapter.path)!r} was initialised by {adapter.initialisation!r}, which altered the base model: its "
            "factors are added to that altered base, and are no update of the original one. Convert it with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...); or, if the base was restored and "
            "the factors converted, say so (--base-restored)"
        )


def check_no_magnitudes(adapter: Adapter) -> None:
    """
    Refuse an adapter of DoRA, whose update is no product.

    Parameters
    ----------
    adapter : Adapter
        As :func:`~lowrank_core.models.formats.open_adapter` gives it.

    Raises
    ------
    ValueError
        If it holds magnitudes.
    """
    held = [other.tensor.key for other in adapter.others if any(mark in other.tensor.key for mark in _MAGNITUDES)]
    if held:
        raise ValueError(
            f"{str(adapter.path)!r} is a DoRA adapter ({held[0]!r}): its update is m·(W + γBA)/‖W + γBA‖ − W, which is "
            "no low-rank product. Resize it within its own format, or extract an adapter from the merged model"
        )


def place_layers(
    layers: Sequence[AdapterLayer], *, kohya: bool, prefix: str | None, base: str | PathLike[str] | None
) -> tuple[dict[str, Placement], dict[str, str], dict[str, str]]:
    """
    Decide where each layer's factors go in a file of the same format or of the other.

    Parameters
    ----------
    layers : sequence of AdapterLayer
        Of one adapter.
    kohya : bool
        Whether the file is kohya's.
    prefix : str or None
        What keys begin with where PEFT's names become kohya's.
    base : path-like or None
        The base model's checkpoint, for the reverse.

    Returns
    -------
    placements : dict of str to Placement
        By the layer's name.
    left_out : dict of str to str
        Layers that the format does not have.
    failures : dict of str to str
        Layers that cannot be resized, and why.

    Raises
    ------
    ValueError
        If kohya's names cannot be turned into PEFT's.
    """
    placements: dict[str, Placement] = {}
    left_out: dict[str, str] = {}
    failures: dict[str, str] = {}
    weights = _base_weights([layer.name for layer in layers if is_kohya_layer(layer) and not kohya], base)
    for layer in layers:
        if layer.groups > 1:
            failures[layer.name] = GROUPED
        elif kohya == is_kohya_layer(layer):
            placements[layer.name] = same_placement(layer)
        elif kohya and is_embedding_layer(layer):
            left_out[layer.name] = f"{NO_EMBEDDINGS}: norm {_norm_of(layer)}"
        elif kohya:
            key = kohya_key(DEFAULT_KOHYA_PREFIX if prefix is None else prefix, layer.name)
            placements[layer.name] = kohya_placement(key, layer.A.shape[1:], layer.name)
        else:
            name, weight = weights[layer.name]
            try:
                placements[layer.name] = peft_placement(name, kernel_in_base(layer, weight.shape))
            except ValueError as error:
                failures[layer.name] = str(error)
    return placements, left_out, failures


def product_of(layer: AdapterLayer) -> LowRankUpdate:
    """
    Read a layer's product in the orientation of its own factors, whatever that of the weight it is added to.

    Parameters
    ----------
    layer : AdapterLayer
        Of a PEFT adapter or of a kohya file.

    Returns
    -------
    LowRankUpdate
        γBA with the A and B of the file, a convolution's as matrices.

    Notes
    -----
    The factors of a linear layer mean the same whether its weight is stored as (out, in) or (in, out), and PEFT's
    configuration has one fan_in_fan_out for all layers, that of whichever was adapted last: where linear layers and
    Conv1D are mixed, or adapters disagree, only the factors' own orientation can be relied on.
    """
    update = layer.update()
    return LowRankUpdate(update.A.T, update.B.T, update.scaling) if layer.transposed else update


def _norm_of(layer: AdapterLayer) -> str:
    try:
        return f"{product_norm(layer.update()):.4g}"
    except ValueError as error:
        return f"unknown, {error}"


def _base_weights(names: list[str], base: str | PathLike[str] | None) -> dict[str, tuple[str, StoredTensor]]:
    """Find the base model's name and weight for each of kohya's names."""
    if not names:
        return {}
    if base is None:
        raise ValueError(
            f"kohya's names, as {names[0]!r}, have underscores for dots, which cannot be undone without the base "
            "model's own names: give its checkpoint (--base), or write a kohya file (a name that ends in .safetensors)"
        )
    weights = {
        module_name(key): tensor
        for key, tensor in open_checkpoint(base).tensors.items()
        if key.endswith(".weight") and len(tensor.shape) > 1
    }
    return {name: (module, weights[module]) for name, module in names_in_base(names, weights).items()}
