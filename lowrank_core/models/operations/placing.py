"""Layers of adapters on their way into another file: what forbids it, and where each of them is placed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from lowrank_core.models.files.checkpoints import module_name, open_checkpoint
from lowrank_core.models.files.tensors import as_matrix
from lowrank_core.models.formats import Adapter, AdapterLayer, Format, Placement, format_named
from lowrank_core.models.formats.experts import without_experts
from lowrank_core.models.norms import update_norm
from lowrank_core.models.sources import Source


class Placed(NamedTuple):
    """Where each layer goes, by its name; what the format cannot store; and what cannot be placed, and why."""

    placements: dict[str, Placement]
    skipped: dict[str, str]
    failures: dict[str, str]


def check_base(adapter: Adapter, *, restored: bool) -> None:
    """Check that the factors are the whole update: that no initialisation altered the base, or that it was restored."""
    if adapter.initialisation is not None and not restored:
        raise ValueError(
            f"{str(adapter.path)!r} was initialised by {adapter.initialisation!r}, which altered the base model: its "
            "factors are added to that altered base, and are not an update of the original one. Convert it with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...); or, if the base was restored and "
            "the factors converted, say so (--base-restored of resize, convert, merge, apply and verify)"
        )


def check_no_magnitudes(adapter: Adapter) -> None:
    """Check that an adapter is not of DoRA, whose update is not a product."""
    magnitudes = [other.tensor.key for other in adapter.others if other.magnitudes]
    if magnitudes:
        raise ValueError(
            f"{str(adapter.path)!r} is a DoRA adapter ({magnitudes[0]!r}): its update is m·(W + γBA)/‖W + γBA‖ − W, "
            "which is not low-rank. Resize it within its own format, or extract a LoRA of it on its "
            "base (lowrank extract BASE ADAPTER OUT)"
        )


def check_distinct(placements: Iterable[Placement]) -> None:
    """Check that no two layers would have one name in the file."""
    taken: dict[tuple[str, int], str] = {}
    for placement in placements:
        other = taken.setdefault(placement.where, placement.name)
        if other != placement.name:
            raise ValueError(
                f"{other!r} and {placement.name!r} would have one name in the file, {placement.keys[0]!r}: leave one "
                "of them out, or write a format that keeps their names apart, as PEFT's does"
            )


def no_embeddings(target: Format) -> str:
    """Return why a format skips an embedding."""
    return f"an embedding, which {target.title} does not have"


def place_layers(
    layers: Sequence[AdapterLayer],
    target: Format,
    *,
    same: Collection[str],
    prefix: str | None,
    base: Source | None,
) -> Placed:
    """Decide where each layer goes: to its own place within the `same` formats, else to that of its module.

    `base` is the base model's checkpoint, needed where names are not the base model's own; `prefix` begins such names.
    """
    placed = Placed({}, {}, {})
    modules = _modules_in_base([layer for layer in layers if layer.placement.format not in same], base)
    for layer in layers:
        name, dims, embedding = layer.name, layer.placement.dims, layer.placement.embedding
        if layer.fixed:
            placed.failures[name] = layer.fixed
        elif layer.placement.format in same:
            placed.placements[name] = layer.placement
        elif layer.placement.experts:
            reason = without_experts(target.title, layer.placement.experts)
            placed.failures[name] = f"{reason}: write the format that it was read from"
        elif embedding and not target.embeddings:
            placed.skipped[name] = f"{no_embeddings(target)}: norm {_norm_of(layer)}"
        else:
            module, base_dims = modules.get(name, (name, dims))
            m, n = as_matrix(dims)
            if as_matrix(base_dims) != (m, n):
                placed.failures[name] = (
                    f"{name!r} is an update of {m} × {n}, but the base's weight has shape {base_dims}"
                )
                continue
            try:
                # The base's own dims: some convolutions of kernel size 1 are stored as matrices.
                placed.placements[name] = target.placement(
                    module, base_dims, None if target.files else prefix, embedding
                )
            except ValueError as error:
                placed.failures[name] = str(error)
    return placed


def _modules_in_base(layers: Iterable[AdapterLayer], base: Source | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the base model's name and shape for each layer whose own name is not the base model's."""
    placed: dict[str, tuple[str, tuple[int, ...]]] = {}
    lossy = [layer for layer in layers if format_named(layer.placement.format).is_lossy(layer.placement)]
    for source in map(format_named, {layer.placement.format for layer in lossy}):
        wanted = [layer.name for layer in lossy if layer.placement.format == source.name]
        if source.lossy_names is None:
            continue
        if base is None:
            raise ValueError(
                f"names as {wanted[0]!r} {source.lossy_names.reason} without the base model's own names: give its "
                f"checkpoint (--base), or write {source.output}"
            )
        shapes = {
            module_name(key): tensor.shape
            for key, tensor in open_checkpoint(base).tensors.items()
            if key.endswith(".weight") and len(tensor.shape) > 1
        }
        modules = source.lossy_names.modules(wanted, shapes)
        for name in wanted:
            if name not in modules:
                raise ValueError(
                    f"{name!r} does not stand for any module of the base: such names {source.lossy_names.reason}. Give "
                    f"the base model that these layers belong to, leave the layer out, or write {source.output}"
                )
            placed[name] = modules[name], shapes[modules[name]]
    return placed


def _norm_of(layer: AdapterLayer) -> str:
    try:
        return f"{update_norm(layer.update()):.4g}"
    except ValueError as error:
        return f"unknown, {error}"
