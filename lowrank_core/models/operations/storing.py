"""Factors as the tensors of a file: written one layer at a time, padded to their final rank, and read back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lowrank_core import LowRankUpdate, scaling_rule
from lowrank_core.models.files.streams import Stream, header_size
from lowrank_core.models.files.tensors import Weight
from lowrank_core.models.formats import Adapter, Format, OtherTensor, Placement, format_named
from lowrank_core.models.formats.experts import stacked
from lowrank_core.models.formats.format import Headers, StoredScale
from lowrank_core.models.operations.destinations import Output
from lowrank_core.models.operations.factoring import FactorEncoding, item_size


def stored_scales(
    kept: Mapping[Placement, tuple[int, float]], encoding: FactorEncoding
) -> dict[Placement, StoredScale]:
    """Return what a file says of layers: one rank for all if uniform, and for those with one configuration entry."""
    largest: dict[str, int] = {}
    for placement, (rank, _) in kept.items():
        group = "" if encoding.uniform else placement.module
        largest[group] = max(largest.get(group, 0), rank)
    if encoding.uniform and kept:
        largest[""] = encoding.uniform_rank(largest[""])
    return {
        placement: _stored_scale(scaling, largest["" if encoding.uniform else placement.module], encoding)
        for placement, (_, scaling) in kept.items()
    }


def _stored_scale(scaling: float, rank: int, encoding: FactorEncoding) -> StoredScale:
    stored = encoding.stored_scale(rank)
    if math.isclose(stored.scaling, scaling, rel_tol=1e-15):
        return StoredScale(rank, stored.alpha, scaling)
    # Of the scale 1 whatever the rank: α/r and α/√r are 1 at r and √r.
    return StoredScale(rank, scaling * rank / float(scaling_rule(encoding.rule)(rank, rank)), scaling)


def add_factors(stream: Stream, updates: Mapping[Placement, LowRankUpdate], alpha: float) -> None:
    """Write the tensors of one layer, or of the experts that are stacked in the same tensors."""
    placement, update = next(iter(updates.items()))
    if placement.experts:
        rank = max(each.rank for each in updates.values())
        update = stacked({each.expert: of_expert for each, of_expert in updates.items()}, placement.experts, rank)
    arranged = format_named(placement.format).arrange(update, placement, alpha)
    for key, tensor in zip(placement.keys, arranged, strict=True):
        stream.add(key, tensor)


def bytes_beside_factors(keys: Sequence[str], metadata: Mapping[str, str], others: Iterable[Weight]) -> int:
    """Return a bound on what a file has beside the entries of factors: its header, an alpha a tensor, and others."""
    return header_size(keys, metadata) + 8 * len(keys) + sum(8 * other.size for other in others)


def copy_tensors(stream: Stream | None, others: Iterable[OtherTensor]) -> None:
    """Write tensors as they are, where there is a file."""
    if stream is not None:
        for other in others:
            stream.add(other.tensor.key, other.tensor.read())


def complete(
    output: Output,
    target: Format,
    scales: Mapping[Placement, StoredScale],
    headers: Headers,
    unpadded: Headers,
    metadata: Mapping[str, str],
) -> Adapter:
    """Write the configuration, pad the factors whose rank is known only now, check what is read back, and return it.

    `unpadded` is what describes the factors as they are: how many experts are in them may follow from the rank.
    `metadata` is what the tensors were written with.
    """
    output.configure(unpadded.config)
    adapter = output.open()
    ranks = {layer.placement.where: layer.rank for layer in adapter.layers}
    final = target.beside(scales)
    if any(
        final[placement] != placement or ranks.get(placement.where, scale.rank) < scale.rank
        for placement, scale in scales.items()
    ):
        _pad(output, adapter, scales, final, metadata)
    output.configure(headers.config)
    adapter = output.open()
    read = {layer.placement.where: (layer.rank, layer.scaling) for layer in adapter.layers}
    for placement, scale in scales.items():
        rank, scaling = read.get(final[placement].where, (0, 0.0))
        if rank != scale.rank or not math.isclose(scaling, scale.scaling, rel_tol=1e-12):
            raise ValueError(
                f"{placement.name!r} would be read with rank {rank} and scale {scaling}, but was made for rank "
                f"{scale.rank} and scale {scale.scaling}: nothing was written"
            )
    return adapter


def _pad(
    output: Output,
    adapter: Adapter,
    scales: Mapping[Placement, StoredScale],
    final: Mapping[Placement, Placement],
    metadata: Mapping[str, str],
) -> None:
    """Write an adapter again with padded factors, in their final places, one layer or stack of experts at a time."""
    tensors = adapter.tensors
    layers = {layer.placement.where: layer for layer in adapter.layers}
    placements: dict[str, list[Placement]] = {}
    for placement in scales:
        placements.setdefault(placement.keys[0], []).append(placement)
    rest = {key for placement in scales for key in placement.keys[1:]}
    with output.stream(tensors, metadata) as stream:
        for key in sorted(tensors.keys() - rest, key=lambda key: (-item_size(tensors[key]), key)):
            if key in placements:
                updates = {}
                for placement in placements[key]:
                    update = layers[placement.where].untransposed_update()
                    if isinstance(update, LowRankUpdate):
                        updates[final[placement]] = _padded(update, scales[placement].rank)
                add_factors(stream, updates, scales[placements[key][0]].alpha)
            else:
                stream.add(key, tensors[key].read())


def _padded(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    """Return factors padded with zeros to a larger rank, which leaves their product as it is."""
    more = rank - update.rank
    B, A = np.pad(update.B, [(0, 0), (0, more)]), np.pad(update.A, [(0, more), (0, 0)])
    return LowRankUpdate(B, A, update.scaling)
