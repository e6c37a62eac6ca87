"""Merge adapters: their exact weighted sum as one adapter, through stacked factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.models.executors import path_for
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import describe_shape
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.peft import PEFT_CONFIG
from lowrank_core.models.formats.placements import is_embedding_layer, is_kohya_layer, names_in_base, without_prefix
from lowrank_core.models.module_names import select
from lowrank_core.models.operations.conversion import (
    GROUPED,
    check_base,
    check_no_magnitudes,
    finest_dtype,
    place_layers,
    product_of,
)
from lowrank_core.models.operations.factoring import Form, Rank, everything, stored_bytes
from lowrank_core.models.operations.norms import stacked
from lowrank_core.models.operations.pipeline import (
    Destination,
    Progress,
    Task,
    check_destination,
    compress,
    is_kohya_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor
    from os import PathLike

    from lowrank_core import LowRankUpdate
    from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
    from lowrank_core.models.operations.compression import Compression


@dataclass(frozen=True)
class Sum:
    """
    A weighted sum of layers of one shape, not yet read.

    Attributes
    ----------
    terms : tuple of (float, AdapterLayer)
        Weights and layers.
    """

    terms: tuple[tuple[float, AdapterLayer], ...]

    @property
    def dtype(self) -> str:
        """What the factors are stored in; all, where they differ."""
        return " · ".join(dict.fromkeys(tensor.dtype for _, layer in self.terms for tensor in (layer.B, layer.A)))

    def update(self) -> LowRankUpdate:
        """
        Read all factors and stack them.

        Returns
        -------
        LowRankUpdate
            The exact sum, in the orientation of the factors; its rank is the sum of the layers' ranks.

        Raises
        ------
        ValueError
            If the layers are of different kinds or shapes, one is grouped, or a factor is not finite.
        """
        layers = [layer for _, layer in self.terms]
        if any(layer.groups > 1 for layer in layers):
            raise ValueError(GROUPED)
        kinds = dict.fromkeys(map(_describe_kind, layers))
        if len(kinds) > 1:
            raise ValueError(f"the adapters disagree: {' and '.join(kinds)}; they are of different models")
        return stacked([(weight, product_of(layer)) for weight, layer in self.terms])


def merge(
    adapters: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    rank: Rank | None = None,
    base: str | PathLike[str] | None = None,
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
    r"""
    Write the weighted sum of several adapters as one, whatever their formats, ranks and scaling rules.

    Parameters
    ----------
    adapters : sequence of path-like
        PEFT adapters' folders and kohya files, of one base model.
    out : path-like
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder.
    weights : sequence of float, optional
        One for each adapter, of either sign; 1 by default.
    rank : int, callable, mapping or Budget, optional
        As in :func:`~lowrank_core.models.operations.resizing.resize`. None keeps the exact sum, whose rank is the sum
        of the adapters' ranks.
    base : path-like, optional
        The base model's checkpoint, whose module names turn kohya's names into PEFT's; the names of a PEFT adapter
        among `adapters` serve too.
    base_restored, include, exclude, prefix, alpha, uniform, force, dry_run, executor, progress
        As in :func:`~lowrank_core.models.operations.resizing.resize`.
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
        As :func:`~lowrank_core.models.operations.resizing.resize`, and if the weights are not one for each adapter, or
        an adapter is of DoRA. A layer of which the adapters disagree is a failure in the result.

    Notes
    -----
    .. math:: \sum_i w_i \gamma_i B_i A_i = [w_1 \gamma_1 B_1, w_2 \gamma_2 B_2, \ldots]\,[A_1; A_2; \ldots]

    is a product again, and is truncated through its core. PEFT's own ``add_weighted_adapter`` (0.21) gives the same
    sum as "svd" and "cat" under α/r alone: under rsLoRA its result is √r too large. Its "linear" is no weighted sum:
    it adds the factors up, so that each B is multiplied with the other adapters' A too.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.formats import open_adapter
    >>> from lowrank_core.models.operations.merging import merge
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
    out = Path(out)
    kohya = is_kohya_path(out)
    if not adapters:
        raise ValueError("there is nothing to merge: give at least one adapter")
    shares = _checked_weights(weights, len(adapters))
    opened = [open_adapter(path_for(adapter, executor)) for adapter in adapters]
    for adapter in opened:
        check_base(adapter, restored=base_restored)
        check_no_magnitudes(adapter)
    form = Form(
        dtype=finest_dtype(layer for adapter in opened for layer in adapter.layers) if dtype is None else dtype,
        alpha=alpha,
        rule=rule,
        uniform=uniform,
        kohya=kohya,
    )
    check_destination(out, force=force, dry_run=dry_run)
    sums, incomplete = _by_module(opened, shares, kohya=kohya)
    chosen = select(sorted(sums.keys() | incomplete.keys()), include, exclude)
    first = [replace(sums[name].terms[0][1], name=name) for name in chosen if name in sums]
    placements, left_out, failures = place_layers(first, kohya=kohya, prefix=prefix, base=base)
    tasks = [
        Task(
            placement=placements[layer.name],
            shape=layer.shape,
            dtype=sums[layer.name].dtype,
            source_parameters=sum(term.parameters for _, term in sums[layer.name].terms),
            source_bytes=stored_bytes(tensor for _, term in sums[layer.name].terms for tensor in (term.A, term.B)),
            update=sums[layer.name].update,
        )
        for layer in first
        if layer.name in placements
    ]
    configs = [read_json(adapter.path.parent / PEFT_CONFIG) for adapter in opened if adapter.kind == "peft"]
    destination = Destination(
        path=out,
        form=form,
        force=force,
        dry_run=dry_run,
        settings=_settings(configs, base),
        metadata={},
        modules=tuple(sums),
    )
    named = list(zip(map(str, adapters), opened, strict=True))
    others = {f"{other.name} ({name})": other.describe() for name, adapter in named for other in adapter.others}
    doubts = [f"{name}: {doubt}" for name, adapter in named for doubt in adapter.doubts]
    report = compress(
        "merge",
        [name for name, _ in named],
        tasks,
        destination,
        everything if rank is None else rank,
        left_out=left_out | others,
        failures=failures | {name: incomplete[name] for name in chosen if name in incomplete},
        warnings=(*_base_warnings(configs), *doubts),
        executor=executor,
        progress=progress,
    )
    return replace(report, weights=tuple(shares))


def _checked_weights(weights: Sequence[float] | None, adapters: int) -> list[float]:
    shares = [1.0] * adapters if weights is None else [float(weight) for weight in weights]
    if len(shares) != adapters:
        raise ValueError(f"{len(shares)} weights for {adapters} adapters: give one for each, or none for 1 each")
    if not all(map(math.isfinite, shares)):
        raise ValueError(f"weights are finite numbers; got {shares}")
    return shares


def _by_module(
    opened: Sequence[Adapter], shares: Sequence[float], *, kohya: bool
) -> tuple[dict[str, Sum], dict[str, str]]:
    """
    Gather the layers that are added up, by their module's name: PEFT's, where one of the adapters has it.

    Modules that one of the adapters changes in a way that cannot be added up come apart from them, with the reason:
    the others' sum alone would be wrong.
    """
    known = [layer.name for adapter in opened if adapter.kind == "peft" for layer in adapter.layers]
    gathered: dict[str, list[tuple[float, AdapterLayer]]] = {}
    incomplete: dict[str, str] = {}
    for adapter, share in zip(opened, shares, strict=True):
        names = {name: name for name in (*(layer.name for layer in adapter.layers), *adapter.unsupported)}
        if adapter.kind == "kohya":
            names |= names_in_base(_shared(names, known), known)
        for layer in adapter.layers:
            gathered.setdefault(names[layer.name], []).append((share, layer))
        for name, reason in adapter.unsupported.items():
            incomplete.setdefault(names[name], f"{reason} (in {str(adapter.path)!r})")
    # The first term decides where the sum goes: one whose names and shapes are those of the output.
    sums = {
        name: Sum(tuple(sorted(terms, key=lambda term: is_kohya_layer(term[1]) != kohya)))
        for name, terms in sorted(gathered.items())
        if name not in incomplete
    }
    return sums, incomplete


def _shared(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Take those of kohya's names that may stand for one of PEFT's modules; their prefix is anything."""
    flat = {module.replace(".", "_") for module in known}
    return [name for name in names if without_prefix(name) in flat]


def _describe_kind(layer: AdapterLayer) -> str:
    """Describe what a layer can be added to: kohya stores some 1 × 1 convolutions as matrices, which they equal."""
    out, kernel = layer.B.shape[0], layer.A.shape[1:]
    while len(kernel) > 1 and kernel[-1] == 1:
        kernel = kernel[:-1]
    what = "an embedding" if is_embedding_layer(layer) else "an update"
    return f"{what} of {describe_shape((out, *kernel))}"


def _settings(configs: Sequence[Mapping[str, Any]], base: str | PathLike[str] | None) -> dict[str, Any]:
    """Keep what the sum has in common with the adapters: the base model, its task, and how its weights are stored."""
    bases = _named(configs, "base_model_name_or_path")
    return {
        "base_model_name_or_path": next(iter(bases), None if base is None else str(base)),
        "task_type": next(iter(_named(configs, "task_type")), None),
        # PEFT holds it against each layer's own type, and corrects it where it does not fit.
        "fan_in_fan_out": any(config.get("fan_in_fan_out") for config in configs),
    }


def _base_warnings(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    bases = _named(configs, "base_model_name_or_path")
    if len(bases) < 2:
        return ()
    warning = (
        f"the adapters name different base models ({', '.join(map(repr, bases))}): their sum is an update of a common "
        "one alone; the first is written"
    )
    return (warning,)


def _named(configs: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(config[key] for config in configs if config.get(key)))
