"""Plan a fine-tune: a rank and an alpha for each layer, from the spectra of an update that is there already."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lowrank_core import Spectrum, equivalent_alpha, reconstruction_error, variance_captured
from lowrank_core.models.executors import Progress
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.formats.peft_config import lora_config
from lowrank_core.models.inspection.layers import open_updates
from lowrank_core.models.module_names import is_embedding, select
from lowrank_core.models.operations.extraction_tasks import skip_reason
from lowrank_core.models.operations.factor_warnings import size_warnings
from lowrank_core.models.operations.rank_choice import Budget, layer_spectra, over_base
from lowrank_core.models.operations.rank_words import choose_budget
from lowrank_core.models.operations.tasks import base_norm_of
from lowrank_core.models.pairing.changes import change_of
from lowrank_core.models.pairing.pairs import CheckpointPair, WeightPair
from lowrank_core.models.sources import Source, names_of

# What a user's own LoraConfig(...) takes from a plan; all else there is the user's.
_PLANNED = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "target_parameters")
_CHECKPOINT_SCALE, _CHECKPOINT_RULE = 1.0, "standard"
_EMBEDDING = "an embedding, which is planned for only when asked for (--include)"


@dataclass(frozen=True)
class PlannedLayer:
    """The rank and alpha of one layer.

    Attributes
    ----------
    name, shape, norm : str, tuple of int, float
        The module's name, and the shape (m, n) and the Frobenius norm of its update.
    rank, parameters : int
        Its part of the budget, and r·(m + n). A layer of rank 0 is left out.
    alpha, scaling : float or None
        The alpha with which its scale at this rank is γ, and γ; None at rank 0.
    variance_captured, best_error : float
        The fraction of the variance in the best update of this rank, and its relative error.
    """

    name: str
    shape: tuple[int, int]
    norm: float
    rank: int
    parameters: int
    alpha: float | None
    scaling: float | None
    variance_captured: float
    best_error: float


@dataclass(frozen=True)
class UniformRank:
    """One rank for all layers, each clamped to its own largest.

    Attributes
    ----------
    rank, parameters : int
        The rank, and the number of entries of all factors.
    variance : float
        The fraction of the variance that it keeps, by the plan's objective.
    """

    rank: int
    parameters: int
    variance: float


@dataclass(frozen=True)
class Plan:
    """A rank and an alpha for each layer within one budget, and how good that is.

    Attributes
    ----------
    path, base : str, str or None
        What was planned for: an adapter, or a checkpoint and the one that it was tuned from.
    budget : Budget
        What was asked for.
    rule : str
        The scaling rule that the alphas are for, "standard" or "rslora".
    parameters : int
        Number of entries of all factors.
    variance, upper_bound : float
        The fraction of the variance kept, and the most that any allocation with as many parameters could keep.
    same_parameters, same_variance : UniformRank
        The largest rank for all layers alike that costs no more, and the least that keeps no less.
    layers : tuple of PlannedLayer
        All that could be read.
    skipped, failures : dict of str to str
        Layers that no adapter is planned for, and those that could not be read, with the reason.
    complete : bool
        Whether the layers are all that differs, but for vectors (biases, norms) of two checkpoints.
    warnings : tuple of str
        What a user of `path` should know, and layers whose factors would be larger than the matrices that they are for.
    config : dict
        What ``peft.LoraConfig(**config)`` takes: ranks, alphas and modules.
    """

    path: str
    base: str | None
    budget: Budget
    rule: str
    parameters: int
    variance: float
    upper_bound: float
    same_parameters: UniformRank
    same_variance: UniformRank
    layers: tuple[PlannedLayer, ...]
    skipped: dict[str, str]
    failures: dict[str, str]
    complete: bool
    warnings: tuple[str, ...]
    config: dict[str, Any]


def plan(
    path: Source,
    base: Source | None = None,
    *,
    budget: Budget | None = None,
    parameters: int | None = None,
    variance: float | None = None,
    objective: str | None = None,
    max_rank: int | None = None,
    match: Mapping[str, str] | None = None,
    component: str | None = None,
    scale: float | None = None,
    rule: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Plan:
    r"""Divide a budget among the layers of an adapter, or of a fine-tune, and return it as PEFT takes it.

    Parameters
    ----------
    path : path-like, mapping, model, Adapter or Checkpoint
        An adapter; with `base`, a checkpoint. As :func:`~lowrank_core.models.inspect` takes them.
    base : path-like, mapping, model or Checkpoint, optional
        The checkpoint that `path` was tuned from.
    budget : Budget, optional
        Parameters to spend, or variance to keep; or give what it is made of:
    parameters, variance, objective, max_rank
        As in :class:`~lowrank_core.models.Budget`: one of the first two.
    match, component : mapping of str to str, str, optional
        As in :func:`~lowrank_core.models.inspect`.
    scale : float, optional
        The scale γ of every layer, whatever its rank. None: what each layer of the adapter has now; 1 for checkpoints.
    rule : {"standard", "rslora"}, optional
        The rule that the scale follows. None: the adapter's own; "standard" for checkpoints.
    include, exclude : sequence of str
        Patterns on module names, as in :func:`~lowrank_core.models.extract`.
    executor, progress
        As in :func:`~lowrank_core.models.inspect`.

    Returns
    -------
    Plan
        Ranks, alphas, and what one rank for all layers would cost or keep.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, no layer could be read, the budget cannot be met, or an option is not valid. A single bad
        layer is a failure in the result.

    See Also
    --------
    lowrank_core.allocate_ranks : The ranks alone, from spectra.
    extract : Make an adapter from the same checkpoints, under the same budget.

    Notes
    -----
    The alpha of a layer solves :math:`\mathrm{rule}(\alpha_i, r_i) = \gamma`: α = γr under α/r, and γ√r under α/√r.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import plan
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, tuned = pathlib.Path(folder, "base.safetensors"), pathlib.Path(folder, "tuned.safetensors")
    ...     save_file({"q.weight": np.zeros((3, 3)), "v.weight": np.zeros((3, 3))}, base)
    ...     save_file({"q.weight": np.diag([4.0, 3.0, 0.1]), "v.weight": np.diag([2.0, 2.0, 2.0])}, tuned)
    ...     planned = plan(tuned, base, variance=0.9, scale=2.0)
    >>> planned.parameters, planned.config["r"], planned.config["lora_alpha"], planned.config["rank_pattern"]
    (30, 2, 4, {'^v': 3})
    """
    budget = choose_budget(budget, parameters=parameters, variance=variance, objective=objective, max_rank=max_rank)
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be finite and positive; got {scale}. 1 applies the factors' product as it is.")
    names = names_of([path] if base is None else [path, base])
    source = open_updates(path, base, match=match, component=component)
    layers = {layer.name: layer for layer in source.layers}
    bad = source.incomplete
    chosen = select(sorted(layers.keys() | bad.keys()), include, exclude)
    if isinstance(source, CheckpointPair):
        modules = source.module_names
        skipped = _skipped(source, chosen, embeddings=bool(include))
        complete = not skipped and all(change.is_vector for _, change in source.other_changes())
        own_rule, scales = _CHECKPOINT_RULE, dict.fromkeys(layers, _CHECKPOINT_SCALE)
    else:
        modules = set(layers)
        skipped = {other.name: other.meaning for other in source.others}
        complete = not skipped
        own_rule = next((layer.rule for layer in source.layers), _CHECKPOINT_RULE)
        scales = {layer.name: abs(layer.scaling) for layer in source.layers}
    if scale is not None:
        scales = dict.fromkeys(layers, scale)
    rule = own_rule if rule is None else rule
    planned = [layers[name] for name in chosen if name in layers and name not in skipped]
    spectra, unread = layer_spectra(planned, executor=executor, progress=progress)
    failures = {name: bad[name] for name in chosen if name in bad and name not in skipped} | unread
    if not spectra:
        name, reason = next(iter(failures.items()), ("none at all", "there is no layer"))
        raise ValueError(f"no layer of {names[0]!r} could be read; the first of {len(failures)}, {name}: {reason}")
    weighted = spectra
    if budget.objective == "base":
        weighted = over_base(spectra, [_Weight(layer.name, _base_norm_of(layer)) for layer in planned], executor)
    allocation = budget.allocate(weighted)
    ranked = tuple(
        _planned(name, spectrum, allocation.ranks[name], scales[name], rule) for name, spectrum in spectra.items()
    )
    kept = [layer for layer in ranked if layer.rank]
    if not kept:
        raise ValueError(f"there is nothing to plan: no layer of {names[0]!r} has an update, or none has to keep any")
    same_parameters, same_variance = _uniform_ranks(weighted, budget, allocation.parameters, allocation.variance)
    targets = {layer.name: parameter for layer in planned if (parameter := _parameter_of(layer, source))}
    # PEFT has one rank and one alpha for all experts of a parameter: the largest.
    entries = {targets.get(layer.name, layer.name): layer for layer in sorted(kept, key=lambda layer: layer.rank)}
    config = lora_config(
        {name: layer.rank for name, layer in entries.items()},
        {name: float(layer.alpha or 0.0) for name, layer in entries.items()},
        use_rslora=rule == "rslora",
        parameters=entries.keys() & set(targets.values()),
        others={*modules, *spectra, *skipped, *failures},
    )
    return Plan(
        path=names[0],
        base=None if base is None else names[1],
        budget=budget,
        rule=rule,
        layers=ranked,
        parameters=allocation.parameters,
        variance=allocation.variance,
        upper_bound=allocation.upper_bound,
        same_parameters=same_parameters,
        same_variance=same_variance,
        skipped=skipped,
        failures=failures,
        complete=complete and not failures,
        warnings=(*source.warnings, *size_warnings(ranked)),
        config={name: config[name] for name in _PLANNED if name in config},
    )


class _Weight(NamedTuple):
    """The weight that a layer's update is added to: what reads its norm."""

    name: str
    base_norm: Callable[[], float]


def _base_norm_of(layer: AdapterLayer | WeightPair) -> Callable[[], float]:
    return layer.base_norm if isinstance(layer, WeightPair) else base_norm_of(layer)


def _parameter_of(layer: AdapterLayer | WeightPair, source: Adapter | CheckpointPair) -> str:
    """Return the parameter that PEFT targets by its name, where a layer is one of the experts in it."""
    if isinstance(layer, AdapterLayer) and isinstance(source, Adapter) and source.settings.get("target_parameters"):
        return layer.placement.module if layer.placement.experts else ""
    return layer.key if isinstance(layer, WeightPair) and layer.experts else ""


def _skipped(pair: CheckpointPair, names: Sequence[str], *, embeddings: bool) -> dict[str, str]:
    """Return the weights of a checkpoint that differ and that no adapter is planned for, and why."""
    layers, modules = {layer.name: layer for layer in pair.layers}, pair.module_names
    unwanted = {name: _EMBEDDING for name in names if is_embedding(name) and not embeddings}
    stacks = {name for name, layer in layers.items() if layer.experts}
    reasons = {name: skip_reason(name, modules | stacks, embedding=True) or unwanted.get(name, "") for name in names}
    return {
        name: reason
        for name, reason in reasons.items()
        if reason and (name not in layers or change_of(layers[name].base, layers[name].tuned))
    }


def _planned(name: str, spectrum: Spectrum, rank: int, scale: float, rule: str) -> PlannedLayer:
    # At rank 1 and under α/r, alpha is the scale itself.
    alpha = float(equivalent_alpha(scale, 1, "standard", to_rank=rank, to_rule=rule)) if rank else None
    return PlannedLayer(
        name=name,
        shape=spectrum.shape,
        norm=float(spectrum.norm),
        rank=rank,
        parameters=rank * sum(spectrum.shape),
        alpha=alpha,
        scaling=scale if rank else None,
        variance_captured=float(variance_captured(spectrum, rank)),
        best_error=float(reconstruction_error(spectrum, rank)),
    )


def _uniform_ranks(
    spectra: Mapping[str, Spectrum], budget: Budget, parameters: int, variance: float
) -> tuple[UniformRank, UniformRank]:
    """Return the uniform rank that costs no more, and the one that keeps no less; one layer at least is not zero."""
    nonzero = [spectrum for spectrum in spectra.values() if spectrum.norm > 0]
    ranks = np.arange(max(len(spectrum.values) for spectrum in nonzero) + 1)
    norms = np.array([spectrum.norm for spectrum in nonzero])
    weights = np.square(norms / norms.max()) if budget.objective != "relative" else np.ones(len(nonzero))
    costs, kept = np.zeros(len(ranks), dtype=np.int64), np.zeros(len(ranks))
    for spectrum, weight in zip(nonzero, weights / weights.sum(), strict=True):
        clamped = np.minimum(ranks, len(spectrum.values))
        costs += clamped * sum(spectrum.shape)
        kept += weight * np.asarray(variance_captured(spectrum))[clamped]
    # Two sums of the same fractions, in another order.
    least = int(np.argmax(kept >= min(variance, kept[-1]) - 1e-12))
    largest = int(np.searchsorted(costs, parameters, side="right")) - 1
    return (
        UniformRank(largest, int(costs[largest]), float(kept[largest])),
        UniformRank(least, int(costs[least]), float(kept[least])),
    )
