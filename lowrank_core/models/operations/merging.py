"""Merge adapters: their exact weighted sum as one adapter, through stacked factors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from lowrank_core.models.executors import Progress
from lowrank_core.models.files.atomic import check_replaceable
from lowrank_core.models.files.tensors import StoredTensor, describe_shape
from lowrank_core.models.formats import (
    Adapter,
    AdapterLayer,
    Format,
    OtherTensor,
    format_of_output,
    open_adapter,
)
from lowrank_core.models.formats.base_names import base_names, is_lossy
from lowrank_core.models.formats.format import Kept
from lowrank_core.models.formats.peft_config import as_names
from lowrank_core.models.formats.with_base import open_base, with_weights
from lowrank_core.models.module_names import select
from lowrank_core.models.norms import Update, weighted_sum
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.factoring import FactorEncoding, finest_dtype
from lowrank_core.models.operations.outputs import outputs_at
from lowrank_core.models.operations.pipeline import compress
from lowrank_core.models.operations.placing import check_base, check_no_magnitudes, place_layers
from lowrank_core.models.operations.rank_choice import Rank, keep_all
from lowrank_core.models.operations.rank_words import choose_one_rank
from lowrank_core.models.operations.tasks import Destination, Task, base_norm_of
from lowrank_core.models.sources import Source, is_path, names_of


@dataclass(frozen=True)
class Sum:
    """A weighted sum of layers of one shape, not yet read: weights and layers."""

    terms: tuple[tuple[float, AdapterLayer], ...]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors of all layers."""
        return tuple(tensor for _, layer in self.terms for tensor in layer.tensors)

    def update(self) -> Update:
        """Read all layers and return the exact sum, (out, in); of factors, its rank is the sum of theirs."""
        layers = [layer for _, layer in self.terms]
        fixed = next((layer.fixed for layer in layers if layer.fixed), "")
        if fixed:
            raise ValueError(fixed)
        kinds = dict.fromkeys(map(_describe_kind, layers))
        if len(kinds) > 1:
            raise ValueError(f"the adapters disagree: {' and '.join(kinds)}; they are of different models")
        return weighted_sum([layer.untransposed_update() for layer in layers], [weight for weight, _ in self.terms])


def merge(
    adapters: Sequence[Source],
    out: str | PathLike[str] | None = None,
    *,
    weights: Sequence[float] | None = None,
    rank: Rank | None = None,
    variance: float | None = None,
    error: float | None = None,
    ratio: float | None = None,
    parameters: int | None = None,
    megabytes: float | None = None,
    objective: str | None = None,
    max_rank: int | None = None,
    format: str | None = None,  # noqa: A002 - the name that users give it
    base: Source | None = None,
    base_restored: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prefix: str | None = None,
    alpha: float | None = None,
    rule: str = "standard",
    dtype: str | None = None,
    uniform: bool = False,
    force: bool = False,
    dry_run: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Compression:
    r"""Write the weighted sum of several adapters as one, whatever their formats, ranks and scaling rules.

    Parameters
    ----------
    adapters : sequence of path-like, model, mapping or Adapter
        Adapters of one base model, as :func:`~lowrank_core.models.open_adapter` takes each.
    out : path-like, optional
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder. None: nothing, and the sum
        is in the report, in the format of the first adapter or that named by `format`.
    weights : sequence of float, optional
        One for each adapter, of either sign; 1 by default.
    rank : int, callable, mapping or Budget, optional
        As in :func:`~lowrank_core.models.resize`.
    variance, error, ratio, parameters, megabytes, objective, max_rank
        What chooses the ranks instead, as in :func:`~lowrank_core.models.extract`. Without any, the sum is exact, and
        its rank is the sum of the adapters' ranks.
    format : str, optional
        The name of a format; None: that of the first adapter, if it is what `out` asks for.
    base : path-like, optional
        The base model's checkpoint, whose module names turn kohya's names into PEFT's; the names of a PEFT adapter
        among `adapters` serve too.
    base_restored, include, exclude, prefix, alpha, uniform, force, dry_run, executor, progress
        As in :func:`~lowrank_core.models.resize`.
    rule : {"standard", "rslora"}
        The rule that the sum's scale follows, whatever those of the adapters.
    dtype : str, optional
        What the factors are stored in; None: the finest that the adapters are.

    Returns
    -------
    Compression
        What was kept and lost of the sum, by layer and in total.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        As :func:`~lowrank_core.models.resize`, and if the weights are not one for each adapter, or
        an adapter is of DoRA. A layer on which the adapters disagree is a failure in the result.

    See Also
    --------
    resize : Write a smaller adapter of the same update.

    Notes
    -----
    .. math:: \sum_i w_i \gamma_i B_i A_i = [w_1 \gamma_1 B_1, w_2 \gamma_2 B_2, \ldots]\,[A_1; A_2; \ldots]

    is a product again, and is truncated through its core. PEFT's own ``add_weighted_adapter`` (0.21) gives the same
    sum as "svd" and "cat" under α/r alone: under rsLoRA its result is √r too large. Its "linear" is not a weighted sum:
    it adds the factors up, so that each B is multiplied with the other adapters' A too.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import merge, open_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, f"{name}.safetensors") for name in ("one", "two", "sum")]
    ...     for path, size in zip(paths[:2], (1, 3)):
    ...         save_file({"lora_unet_proj.lora_down.weight": np.eye(1, 4, size, dtype=np.float32),
    ...                    "lora_unet_proj.lora_up.weight": np.full((2, 1), size, np.float32)}, path)
    ...     report = merge(paths[:2], paths[2], weights=[1.0, 0.5])
    ...     merged = open_adapter(paths[2]).layers[0].update().to_dense()
    >>> report.layers[0].rank, merged.round(6)
    (1, array([[0. , 1. , 0. , 1.5],
           [0. , 1. , 0. , 1.5]]))
    """
    words = {"variance": variance, "error": error, "ratio": ratio, "parameters": parameters, "megabytes": megabytes}
    rank = choose_one_rank({"rank": rank, **words, "objective": objective, "max_rank": max_rank})
    if not adapters:
        raise ValueError("there is nothing to merge: give at least one adapter")
    weights = _checked_weights(weights, len(adapters))
    opened = [open_adapter(adapter) for adapter in adapters]
    for adapter in opened:
        check_base(adapter, restored=base_restored)
        check_no_magnitudes(adapter)
    stored = (tensor for adapter in opened for layer in adapter.layers for tensor in layer.tensors)
    target = format_of_output(out, opened[0].format, format)
    uniform = uniform or target.one_rank(layer.placement for adapter in opened for layer in adapter.layers)
    encoding = FactorEncoding(finest_dtype(stored) if dtype is None else dtype, alpha, rule, uniform, target.scale)
    if not (dry_run or out is None):
        check_replaceable(Path(out), target.files or None, force=force)
    sums, incomplete = _by_module(opened, weights, target)
    chosen = select(sorted(sums.keys() | incomplete.keys()), include, exclude)
    # The first term decides where the sum goes.
    first = {name: sums[name].terms[0][1] for name in chosen if name in sums}
    layers = [replace(layer, placement=replace(layer.placement, name=name)) for name, layer in first.items()]
    if base is not None:
        layers = list(with_weights(layers, open_base(base, adapters[0])))
    placed = place_layers(layers, target, same={target.name}, prefix=prefix, base=base)
    tasks = [
        Task(
            placement=placed.placements[layer.name],
            shape=layer.shape,
            dtype=" · ".join(dict.fromkeys(tensor.dtype for tensor in sums[layer.name].tensors)),
            tensors=sums[layer.name].tensors,
            update=sums[layer.name].update,
            base_norm=base_norm_of(layer),
        )
        for layer in layers
        if layer.name in placed.placements
    ]
    configs = [adapter.settings for adapter in opened if adapter.settings]
    # What is configured beside factors of these formats describes more than the layers.
    metadata = opened[0].metadata if target.place is None and target.name == opened[0].format else {}
    named = list(zip(names_of(adapters), opened, strict=True))
    saved = _saved_in_all(opened, target)
    copied = [other for other in opened[0].others if _saved_module(other, saved)]
    others = {
        f"{other.name} ({name})": other.describe()
        for name, adapter in named
        for other in adapter.others
        if not _saved_module(other, saved)
    }
    settings = _settings(configs, base) | ({"modules_to_save": saved} if saved else {})
    inherited = [f"{name}: {warning}" for name, adapter in named for warning in adapter.inherited_warnings]
    (report,) = compress(
        "merge",
        [name for name, _ in named],
        tasks,
        Destination(
            outputs_at(out, keep_all if rank is None else rank, target),
            target,
            encoding,
            dry_run,
            Kept(settings, metadata, tuple(sums)),
            tuple(copied),
            in_memory=out is None,
        ),
        skipped=placed.skipped | others,
        failures=placed.failures | {name: incomplete[name] for name in chosen if name in incomplete},
        warnings=(*_base_warnings(configs), *inherited),
        executor=executor,
        progress=progress,
    )
    return replace(report, weights=tuple(weights))


def _checked_weights(weights: Sequence[float] | None, adapters: int) -> list[float]:
    checked = [1.0] * adapters if weights is None else [float(weight) for weight in weights]
    if len(checked) != adapters:
        raise ValueError(f"{len(checked)} weights for {adapters} adapters: give one for each, or none for 1 each")
    if not all(map(math.isfinite, checked)):
        raise ValueError(f"weights are finite numbers; got {checked}")
    return checked


def _by_module(
    opened: Sequence[Adapter], weights: Sequence[float], target: Format
) -> tuple[dict[str, Sum], dict[str, str]]:
    """Return the layers that are added up, by their module's name: the base model's, where an adapter has it.

    Modules that one of the adapters changes in a way that cannot be added up are returned apart, with the reason: the
    others' sum alone would be wrong.
    """
    known = [layer.name for adapter in opened for layer in adapter.layers if not is_lossy(layer.placement)]
    gathered: dict[str, list[tuple[float, AdapterLayer]]] = {}
    incomplete: dict[str, str] = {}
    for adapter, weight in zip(opened, weights, strict=True):
        names = base_names(adapter, known)
        for layer in adapter.layers:
            gathered.setdefault(names[layer.name], []).append((weight, layer))
        for name, reason in adapter.unsupported.items():
            incomplete.setdefault(names[name], f"{reason} (in {str(adapter.path)!r})")

    def distance(term: tuple[float, AdapterLayer]) -> tuple[bool, bool]:
        placement = term[1].placement
        return placement.format != target.name, is_lossy(placement)

    # First a term whose names and shapes are those of the output, or else of the base model.
    sums = {
        name: Sum(tuple(sorted(terms, key=distance)))
        for name, terms in sorted(gathered.items())
        if name not in incomplete
    }
    return sums, incomplete


def _describe_kind(layer: AdapterLayer) -> str:
    """Return what a layer can be added to: kohya stores some 1 × 1 convolutions as the matrices that they equal."""
    placement, dims = layer.placement, layer.placement.dims
    while len(dims) > 2 and dims[-1] == 1:
        dims = dims[:-1]
    if placement.experts:
        # Versions of PEFT differ in what they call the input of an expert.
        stored = " stored as (in, out)" if layer.transposed else ""
        return f"one of {placement.experts} experts of {describe_shape(dims)}{stored}"
    return f"{'an embedding' if placement.embedding else 'an update'} of {describe_shape(dims)}"


def _settings(configs: Sequence[Mapping[str, Any]], base: Source | None) -> dict[str, Any]:
    """Return what the sum has in common with the adapters: base model, task, and how its weights are stored."""
    bases = _named(configs, "base_model_name_or_path")
    versions = _named(configs, "peft_version")
    return {
        **({"peft_version": versions[0]} if len(versions) == 1 else {}),
        "base_model_name_or_path": next(iter(bases), str(base) if base and is_path(base) else None),
        "task_type": next(iter(_named(configs, "task_type")), None),
        # PEFT compares it with each layer's own type, and corrects it where it does not fit.
        "fan_in_fan_out": any(config.get("fan_in_fan_out") for config in configs),
    }


def _saved_in_all(opened: Sequence[Adapter], target: Format) -> list[str]:
    """Return the modules that all adapters saved in full (modules_to_save), with tensors that are the same in all."""
    if any(adapter.format != target.name for adapter in opened):
        return []
    first, *rest = opened
    modules = [as_names(adapter.settings.get("modules_to_save")) for adapter in opened]
    common = [module for module in modules[0] if all(module in other for other in modules)]
    return [module for module in common if all(_is_saved_alike(module, first, other) for other in rest)]


def _is_saved_alike(module: str, first: Adapter, second: Adapter) -> bool:
    one, other = (
        {other.name: other.tensor for other in adapter.others if _saved_module(other, [module])}
        for adapter in (first, second)
    )
    return one.keys() == other.keys() and all(
        (one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype)
        and one[name].read().tobytes() == other[name].read().tobytes()
        for name in one
    )


def _saved_module(other: OtherTensor, modules: Collection[str]) -> bool:
    """Whether a tensor is of one of these modules, and no part of an update."""
    return not other.follows and any(f".{module}." in f".{other.name}" for module in modules)


def _base_warnings(configs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    bases = _named(configs, "base_model_name_or_path")
    if len(bases) > 1:
        yield (
            f"the adapters name different base models ({', '.join(map(repr, bases))}): their sum is an update of a "
            "common one alone; the first is written"
        )


def _named(configs: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(config[key] for config in configs if config.get(key)))
