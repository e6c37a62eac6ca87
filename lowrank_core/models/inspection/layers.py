"""What is in an adapter, or in a pair of checkpoints: every layer's spectrum, ranks and errors, and the totals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np

from lowrank_core import (
    effective_rank,
    error_sweep,
    numerical_rank,
    reconstruction_error,
    scaling_rule,
    spectrum,
    stable_rank,
)
from lowrank_core._results import count
from lowrank_core.models.executors import Progress, collect_layers
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.tensors import describe_shape
from lowrank_core.models.formats import is_adapter, open_adapter
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.formats.with_base import open_with_base
from lowrank_core.models.inspection.beside_base import base_figures, weight_of
from lowrank_core.models.inspection.report import (
    Inspection,
    LayerReport,
    layer_noise,
    ranks_for_variance,
    to_floats,
    total,
)
from lowrank_core.models.inspection.verdicts import find_verdicts
from lowrank_core.models.norms import Update
from lowrank_core.models.pairing.pairs import CheckpointPair, WeightPair, pair_checkpoints
from lowrank_core.models.pairing.streamed import decompose_large, is_large
from lowrank_core.models.sources import Source, names_of

DEFAULT_RANKS = (2, 4, 8, 16, 32, 64)
DEFAULT_ALPHA = 16.0
LEADING = 10
"""How many leading left vectors are usually examined for intruders, as in the paper that defines them."""


def inspect(
    path: Source,
    base: Source | None = None,
    *,
    match: Mapping[str, str] | None = None,
    component: str | None = None,
    ranks: Sequence[int] = DEFAULT_RANKS,
    rules: Sequence[str] = (),
    alpha: float | None = None,
    intruders: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Inspection:
    r"""Report what is in an adapter, or in the difference of two checkpoints.

    Parameters
    ----------
    path : path-like, mapping, model, Adapter or Checkpoint
        An adapter's folder or file; with `base`, a checkpoint or an adapter. Or one in memory, as
        :func:`~lowrank_core.models.open_adapter` and :func:`~lowrank_core.models.open_checkpoint` take them.
    base : path-like, mapping, model or Checkpoint, optional
        The checkpoint that `path` was tuned from. Every update is then compared with the weight that it is added to: in
        norm, in σ₁, and, of an adapter, in what rounding their sum loses. Of an adapter, the updates that depend on the
        base's weights (DoRA, GLoRA, OFT, BOFT, IA3) are then reported as they are; without it, they are named among the
        failures, and the figures of a DoRA layer are those of γBA.
    match : mapping of str to str, optional
        Beginnings of names of `base`, with those that stand for them in `path`, where names alone leave that open.
    component : str, optional
        The component of two pipelines of diffusers, as "transformer". None: all that differ.
    ranks : sequence of int
        Ranks to give errors at, each clamped to a layer's own largest.
    rules : sequence of str
        Scaling rules to give errors for, beside the best possible ones: "standard", "rslora", "unscaled".
    alpha : float, optional
        The alpha of the errors under these rules. None: each adapter layer's own, 16 for checkpoints.
    intruders : int
        How many leading left singular vectors of W + Δ to examine, with `base`: ten are usual, and 0 is none. An
        intruder dimension is one whose \|cosine\| with every left vector of the base's weight W is below ½.
    executor : concurrent.futures.Executor, optional
        Where the layers are read, each a task of its own: threads, processes, or a Dask cluster's
        ``Client.get_executor()``. Its workers have to see the files under the same absolute paths; as many layers are
        in memory as it has workers. None: here, one layer after the other.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each layer.

    Returns
    -------
    Inspection
        Layers in alphabetical order. One decomposition was made for each.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged or of an unknown kind, the two checkpoints have no matrix in common, or a rank, rule or
        alpha is not one. A single bad layer is a failure in the result.

    See Also
    --------
    lowrank_core.models.census : The same of many adapters.

    Notes
    -----
    The error of a rule at rank r answers: take the best rank-r factors of this layer's update Δ, its own scale
    included, and write them as an adapter with this alpha under this rule, without dividing the scale out again; how
    far is what a reader then applies from Δ?

    .. math:: \sqrt{((1-\gamma)^2 H_r + T_r) / N^2}, \qquad \gamma = \mathrm{rule}(\alpha, r)

    At γ = 1 it is the best possible error.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import inspect
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, tuned = pathlib.Path(folder, "base.safetensors"), pathlib.Path(folder, "tuned.safetensors")
    ...     save_file({"proj.weight": np.zeros((2, 2))}, base)
    ...     save_file({"proj.weight": np.diag([4.0, 3.0])}, tuned)
    ...     layer = inspect(tuned, base, ranks=[1, 2]).layers[0]
    >>> layer.norm, layer.best_error, layer.rank_for_variance[0.9]
    (5.0, (0.6, 0.0), 2)
    >>> inspect({"proj.weight": np.diag([4.0, 3.0])}, {"proj.weight": np.zeros((2, 2))}).totals.norm
    5.0
    """
    if intruders and base is None:
        raise ValueError("intruders are beside the base's weights: give the base too (--base)")
    names = names_of([path] if base is None else [path, base])
    source = open_updates(path, base, match=match, component=component)
    beside = _without_weight(source, *names) if isinstance(source, Adapter) and base is not None else []
    layers, failures = layer_reports(
        source, ranks=ranks, rules=rules, alpha=alpha, intruders=intruders, executor=executor, progress=progress
    )
    failures = dict(sorted((failures | source.incomplete).items()))
    lacking = [*beside, *(_without_intruders(layers) if intruders else ())]
    others = dict(source.other_changes())
    pair = source if isinstance(source, CheckpointPair) else None
    changed, unchanged = ({layer.name for layer in layers if bool(layer.norm) is differs} for differs in (True, False))
    return Inspection(
        path=names[0],
        base=None if base is None else names[1],
        format=source.format,
        ranks=tuple(ranks),
        rules=tuple(rules),
        alpha=DEFAULT_ALPHA if alpha is None and pair else alpha,
        totals=total(layers, len(failures), ranks, rules),
        layers=tuple(layers),
        failures=failures,
        not_low_rank={name: other.description for name, other in others.items()},
        complete=not (failures or lacking) and all(other.is_vector for other in others.values()),
        compared_fraction=pair.fraction_in(changed, unchanged, others.values()) if pair else None,
        alignment=pair.alignment if pair else (),
        warnings=(*source.warnings, *lacking),
        verdicts=find_verdicts(layers, failures, of_checkpoints=pair is not None),
    )


def open_updates(
    path: Source,
    base: Source | None = None,
    *,
    match: Mapping[str, str] | None = None,
    component: str | None = None,
) -> Adapter | CheckpointPair:
    """Open an adapter, beside its base where given, or two checkpoints: both have layers, and say what else changed."""
    if base is not None and not is_adapter(path):
        before, after = (open_checkpoint(each, component=component) for each in (base, path))
        return pair_checkpoints(before, after, match=match)
    if match or component:
        raise ValueError("a match (--match) and a component (--component) are for two checkpoints, not for an adapter")
    return open_adapter(path) if base is None else open_with_base(path, base)


def _without_weight(source: Adapter, path: str, base: str) -> list[str]:
    """Return the warning of layers that the base has no weight for; the base of none of them is refused."""
    missing = [layer for layer in source.layers if weight_of(layer) is None]
    if not missing:
        return []
    example = f"{missing[0].name!r} ({describe_shape(missing[0].shape)})"
    if len(missing) == len(source.layers) and not any(layer.weight and layer.weight.refusal for layer in missing):
        raise ValueError(
            f"{base!r} has no weight of the name and shape of any layer of {path!r}, as {example}: give the "
            "checkpoint that it was trained from as its base"
        )
    return [f"the base has no readable weight of the name and shape of {count(len(missing), 'layer')}, as {example}"]


def _without_intruders(layers: Sequence[LayerReport]) -> Iterator[str]:
    """Yield the warning of layers that are beside their base's weights and whose intruders were not counted."""
    missing = [layer.name for layer in layers if layer.base and layer.base.intruders is None]
    if missing:
        yield (
            f"the total of intruders (--intruders) is without {count(len(missing), 'layer')} too large to be examined, "
            f"as {missing[0]!r}"
        )


def layer_reports(
    source: Adapter | CheckpointPair,
    *,
    ranks: Sequence[int],
    rules: Sequence[str],
    alpha: float | None = None,
    intruders: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> tuple[list[LayerReport], dict[str, str]]:
    """Report the layers one after the other, and say of each that fails why, as :func:`inspect` does."""
    requested = check_ranks(ranks)
    if intruders < 0:
        raise ValueError(f"intruders is how many leading vectors to examine, 0 or more; got {intruders!r}")
    if alpha is not None and not rules:
        raise ValueError(
            f"an alpha of {alpha!r} is that of errors under a scaling rule, and no rule was given: give one too, as "
            "rules=['standard'] (--rule standard)"
        )
    for rule in rules:
        scaling_rule(rule)(DEFAULT_ALPHA if alpha is None else alpha, 1)
    report = partial(_report, ranks=requested, rules=tuple(rules), alpha=alpha, intruders=intruders)
    reports, failures = collect_layers(report, source.layers, executor, progress)
    return [report for _, report in reports], failures


def check_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """Check that ranks are whole numbers of at least 0; a layer clamps each to its own largest."""
    requested = np.asarray(ranks)
    if requested.ndim != 1 or requested.dtype.kind not in "iu" or np.any(requested < 0):
        raise ValueError(f"ranks are whole numbers of at least 0, as [8, 16, 32]; got {ranks!r}")
    return tuple(int(rank) for rank in requested)


def _report(
    layer: AdapterLayer | WeightPair,
    ranks: tuple[int, ...],
    rules: tuple[str, ...],
    alpha: float | None,
    intruders: int,
) -> LayerReport:
    update: Update | None = None
    weight = rounding = None
    if isinstance(layer, WeightPair) and is_large(layer):
        decomposed, noise = decompose_large(layer)
        rounding = None if noise is None else layer_noise(noise, decomposed)
    elif isinstance(layer, WeightPair) and layer.has_rounding:
        weight, update, noise = layer.base_update_and_noise()
        decomposed = spectrum(update)
        rounding = layer_noise(noise, decomposed)
    else:
        update = layer.update()
        decomposed = spectrum(update)
    m, n = layer.shape
    clamped = tuple(min(rank, m, n) for rank in ranks)
    if alpha is None:
        # A rule's alpha is positive; that of a file may be 0 or negative.
        alpha = layer.alpha if layer.alpha is not None and layer.alpha > 0 else DEFAULT_ALPHA
    errors = error_sweep(decomposed, clamped, alpha=alpha, rules=rules).errors if rules else ()
    return LayerReport(
        name=layer.name,
        shape=layer.shape,
        dtype=layer.dtype,
        parameters=m * n,
        adapter_parameters=layer.parameters,
        rank=layer.rank,
        alpha=layer.alpha,
        scaling=layer.scaling,
        scaling_source=layer.scaling_source,
        norm=float(decomposed.norm),
        effective_rank=float(effective_rank(decomposed)),
        stable_rank=float(stable_rank(decomposed)),
        numerical_rank=int(numerical_rank(decomposed)),
        rank_for_variance=ranks_for_variance(decomposed),
        ranks=clamped,
        best_error=to_floats(reconstruction_error(decomposed, clamped)),
        errors={rule: to_floats(row) for rule, row in zip(rules, errors, strict=True)},
        rounding=rounding,
        base=base_figures(layer, update, decomposed, intruders, weight),
        singular_values=decomposed.values,
    )
