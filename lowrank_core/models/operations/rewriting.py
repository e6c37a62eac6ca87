"""Rewrite an adapter: its layers under their names or others, and all that it has beside them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from os import PathLike

from lowrank_core.models.executors import Progress
from lowrank_core.models.files.atomic import check_replaceable
from lowrank_core.models.formats import OtherTensor, format_of_output, open_adapter
from lowrank_core.models.formats.format import Kept
from lowrank_core.models.formats.with_base import open_base, open_with_base, with_weights
from lowrank_core.models.module_names import select
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.factoring import FactorEncoding, finest_dtype
from lowrank_core.models.operations.outputs import outputs_at
from lowrank_core.models.operations.pipeline import compress
from lowrank_core.models.operations.placing import check_base, check_no_magnitudes, place_layers
from lowrank_core.models.operations.rank_choice import Rank
from lowrank_core.models.operations.tasks import Destination, Task, base_norm_of
from lowrank_core.models.sources import Source, is_path, names_of


def rewrite(
    verb: str,
    adapter: Source,
    out: str | PathLike[str] | None,
    rank: Rank | Sequence[int] | None,
    *,
    format: str | None,  # noqa: A002 - the name that users give it
    base: Source | None,
    on_base: bool = False,
    base_restored: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    prefix: str | None,
    alpha: float | None,
    rule: str | None,
    dtype: str | None,
    uniform: bool,
    tolerance: float | None = None,
    force: bool,
    dry_run: bool,
    executor: Executor | None,
    progress: Progress | None,
) -> list[Compression]:
    """Write an adapter again at each rank, with resize's options; without a rank, its factors as they are.

    Without a rank and an alpha, each layer has its own alpha.

    With `on_base`, the updates that depend on the base model are made from its weights.
    """
    opened = open_with_base(adapter, base) if on_base and base is not None else open_adapter(adapter)
    if dtype is None:
        dtype = finest_dtype(tensor for layer in opened.layers for tensor in layer.tensors)
    target = format_of_output(out, opened.format, format)
    uniform = uniform or target.one_rank(layer.placement for layer in opened.layers)
    if rule is None:
        # All layers of an adapter have one rule, and factors padded to one rank need none.
        rule = "standard" if uniform or not opened.layers else opened.layers[0].rule
    encoding = FactorEncoding(dtype, alpha, rule, uniform, target.scale)
    outputs = outputs_at(out, rank, target)
    if not (dry_run or out is None):
        for path in outputs:
            check_replaceable(path, target.files or None, force=force)
    same_format = target.name == opened.format
    check_base(opened, restored=base_restored)
    if not same_format:
        check_no_magnitudes(opened)
    names = sorted([*(layer.name for layer in opened.layers), *opened.unsupported])
    chosen = set(select(names, include, exclude))
    layers = [layer for layer in opened.layers if layer.name in chosen]
    if base is not None and rank is not None and not on_base:
        layers = list(with_weights(layers, open_base(base, adapter)))
    same = {layer.placement.format for layer in layers} if same_format else {target.name}
    placed = place_layers(layers, target, same=same, prefix=prefix, base=base)
    others = [other for other in opened.others if other.tensor.is_readable] if same_format else []
    followers: dict[str, list[OtherTensor]] = {}
    for other in others:
        followers.setdefault(other.follows, []).append(other)
    keeps_alphas = rank is None and alpha is None and not uniform
    tasks = [
        Task(
            placement=placed.placements[layer.name],
            shape=layer.shape,
            dtype=layer.dtype,
            tensors=layer.tensors,
            update=layer.untransposed_update,
            biases=tuple(other for other in followers.get(layer.name, []) if other.scaling is not None),
            min_rank=1 if layer.name in followers else 0,
            tolerance=tolerance,
            alpha=layer.alpha if keeps_alphas and layer.alpha > 0 else None,
            base_norm=base_norm_of(layer),
        )
        for layer in layers
        if layer.name in placed.placements
    ]
    # Biases are rescaled with their layer, and tensors of a layer that was not chosen have no meaning without it.
    biases = {bias.tensor.key for task in tasks for bias in task.biases}
    dropped = {layer.name for layer in opened.layers} - chosen
    copied = tuple(other for other in others if other.tensor.key not in biases and other.follows not in dropped)
    kept = biases | {other.tensor.key for other in copied}
    destination = Destination(
        outputs,
        target,
        encoding,
        dry_run,
        Kept(
            settings=opened.settings or {"base_model_name_or_path": str(base) if base and is_path(base) else None},
            metadata=opened.metadata if same_format else {},
            modules=tuple(layer.name for layer in opened.layers),
        ),
        copied=copied,
        in_memory=out is None,
    )
    return compress(
        verb,
        names_of([base, adapter] if on_base and base is not None else [adapter]),
        tasks,
        destination,
        # What the user left out is not missing.
        skipped=placed.skipped
        | {
            other.name: other.describe()
            for other in opened.others
            if other.tensor.key not in kept and other.follows not in dropped
        },
        failures=placed.failures | {name: reason for name, reason in opened.unsupported.items() if name in chosen},
        warnings=opened.inherited_warnings,
        executor=executor,
        progress=progress,
    )
