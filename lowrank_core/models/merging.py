"""Merge adapters: their exact weighted sum as one adapter, through stacked factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.models.adapters import open_adapter
from lowrank_core.models.conversion import check_base, check_no_magnitudes, finest_dtype, place_layers
from lowrank_core.models.factoring import Form, Rank, everything, stacked
from lowrank_core.models.files import describe_shape
from lowrank_core.models.layerwise import Destination, Progress, Task, check_destination, compress, is_kohya_path
from lowrank_core.models.module_names import select
from lowrank_core.models.placements import names_in_base

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from lowrank_core import LowRankUpdate
    from lowrank_core.models.layers import Adapter, AdapterLayer


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

    def update(self) -> LowRankUpdate:
        """
        Read all factors and stack them.

        Returns
        -------
        LowRankUpdate
            The exact sum; its rank is the sum of the layers' ranks.

        Raises
        ------
        ValueError
            If the layers have several shapes, or a factor is not finite.
        """
        shapes = dict.fromkeys(layer.shape for _, layer in self.terms)
        if len(shapes) > 1:
            raise ValueError(
                f"its updates have different shapes, {' and '.join(map(describe_shape, shapes))}: the adapters are of "
                "different models"
            )
        return stacked([(weight, layer.update()) for weight, layer in self.terms])


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
    rank : int or callable, optional
        As in :func:`~lowrank_core.models.resizing.resize`. None keeps the exact sum, whose rank is the sum of the
        adapters' ranks.
    base : path-like, optional
        The base model's checkpoint, whose module names turn kohya's names into PEFT's; the names of a PEFT adapter
        among `adapters` serve too.
    base_restored, include, exclude, prefix, alpha, rule, uniform, force, dry_run, progress
        As in :func:`~lowrank_core.models.resizing.resize`.
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
        As :func:`~lowrank_core.models.resizing.resize`, and if the weights are not one for each adapter, or an adapter
        is of DoRA. A layer of which the adapters disagree is a failure in the result.

    Notes
    -----
    .. math:: \sum_i w_i \gamma_i B_i A_i = [w_1 \gamma_1 B_1, w_2 \gamma_2 B_2, \ldots]\,[A_1; A_2; \ldots]

    is a product again, and is truncated through its core. Weights multiply updates: a weight of ½ halves the update,
    where PEFT's weighted combinations multiply both factors.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.adapters import open_adapter
    >>> from lowrank_core.models.merging import merge
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, f"{name}.safetensors") for name in ("one", "two", "sum")]
    ...     for path, size in zip(paths[:2], (1, 3)):
    ...         save_file({"lora_unet_proj.lora_down.weight": np.eye(1, 4, size, dtype=np.float32),
    ...                    "lora_unet_proj.lora_up.weight": np.full((2, 1), size, np.float32)}, path)
    ...     report = merge(paths[:2], paths[2], weights=[1.0, 0.5])
    ...     merged = open_adapter(paths[2]).layers[0].update().to_dense()
    >>> report.layers[0].rank, merged.round(6)
    (2, array([[0. , 1. , 0. , 1.5],
           [0. , 1. , 0. , 1.5]]))
    """
    out = Path(out)
    kohya = is_kohya_path(out)
    if not adapters:
        raise ValueError("there is nothing to merge: give at least one adapter")
    shares = _checked_weights(weights, len(adapters))
    opened = [open_adapter(adapter) for adapter in adapters]
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
    sums = _by_module(opened, shares, kohya=kohya)
    chosen = select(list(sums), include, exclude)
    first = [sums[name].terms[0][1] for name in chosen]
    placements, left_out, failures = place_layers(first, kohya=kohya, prefix=prefix, base=base)
    tasks = [
        Task(
            placement=placements[layer.name],
            shape=layer.shape,
            dtype=_dtypes(sums[name]),
            source_parameters=sum(term.parameters for _, term in sums[name].terms),
            update=sums[name].update,
        )
        for name, layer in zip(chosen, first, strict=True)
        if layer.name in placements
    ]
    settings, warnings = _settings(opened, base)
    destination = Destination(
        path=out,
        form=form,
        force=force,
        dry_run=dry_run,
        settings=settings,
        metadata={},
        modules=tuple(sums),
    )
    others = {f"{other.name} ({adapter.path})": other.describe() for adapter in opened for other in adapter.others}
    for adapter in opened:
        failures |= {f"{name} ({adapter.path})": reason for name, reason in adapter.unsupported.items()}
    return compress(
        "merge",
        [str(adapter) for adapter in adapters],
        tasks,
        destination,
        everything if rank is None else rank,
        left_out=left_out | others,
        failures=failures,
        warnings=warnings,
        progress=progress,
    )


def _checked_weights(weights: Sequence[float] | None, adapters: int) -> list[float]:
    shares = [1.0] * adapters if weights is None else [float(weight) for weight in weights]
    if len(shares) != adapters:
        raise ValueError(f"{len(shares)} weights for {adapters} adapters: give one for each, or none for 1 each")
    if not all(map(math.isfinite, shares)):
        raise ValueError(f"weights are finite numbers; got {shares}")
    return shares


def _by_module(opened: Sequence[Adapter], shares: Sequence[float], *, kohya: bool) -> dict[str, Sum]:
    """Gather the layers that are added up, by their module's name, PEFT's where one of the adapters has it."""
    known = [layer.name for adapter in opened if adapter.kind == "peft" for layer in adapter.layers]
    mixed = bool(known) and any(adapter.kind == "kohya" for adapter in opened)
    gathered: dict[str, list[tuple[float, AdapterLayer]]] = {}
    for adapter, share in zip(opened, shares, strict=True):
        names = {layer.name: layer.name for layer in adapter.layers}
        if mixed and adapter.kind == "kohya":
            names |= names_in_base(_shared(names, known), known)
        for layer in adapter.layers:
            gathered.setdefault(names[layer.name], []).append((share, layer))
    # The first term decides where the sum goes: one whose names and shapes are those of the output.
    return {
        name: Sum(tuple(sorted(terms, key=lambda term: term[1].A.key.endswith(".lora_down.weight") != kohya)))
        for name, terms in sorted(gathered.items())
    }
