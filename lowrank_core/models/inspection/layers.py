"""What an adapter, or a pair of checkpoints, holds: every layer's spectrum, ranks and errors, and the totals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lowrank_core import (
    Spectrum,
    effective_rank,
    error_sweep,
    numerical_rank,
    reconstruction_error,
    scaling_rule,
    spectrum,
    stable_rank,
)
from lowrank_core.models.executors import path_for
from lowrank_core.models.files.checkpoints import CheckpointPair, WeightPair, open_checkpoint, pair_checkpoints
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.inspection.report import (
    Inspection,
    LayerFailure,
    LayerReport,
    Totals,
    floats,
    ranks_for_variance,
    to_json,
    to_rows,
    total,
)
from lowrank_core.models.inspection.rounding import COARSE, layer_rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from os import PathLike

__all__ = [
    "Inspection",
    "LayerFailure",
    "LayerReport",
    "Totals",
    "checked_ranks",
    "inspect",
    "layer_reports",
    "open_updates",
    "to_json",
    "to_rows",
    "total",
]

DEFAULT_RANKS = (2, 4, 8, 16, 32, 64)
DEFAULT_RULES = ("standard", "rslora")
DEFAULT_ALPHA = 16.0


def inspect(
    path: str | PathLike[str],
    base: str | PathLike[str] | None = None,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    rules: Sequence[str] = DEFAULT_RULES,
    alpha: float | None = None,
    executor: Executor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Inspection:
    """
    Report what an adapter, or the difference of two checkpoints, holds.

    Parameters
    ----------
    path : path-like
        A PEFT adapter's folder or a kohya file; with `base`, a checkpoint.
    base : path-like, optional
        The checkpoint that `path` was tuned from.
    ranks : sequence of int
        Ranks to give errors at, each clamped to a layer's own largest.
    rules : sequence of str
        Scaling rules to give errors for: "standard", "rslora", "unscaled".
    alpha : float, optional
        The alpha of these errors. None: each adapter layer's own, 16 for checkpoints.
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

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.inspection.layers import inspect
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, tuned = pathlib.Path(folder, "base.safetensors"), pathlib.Path(folder, "tuned.safetensors")
    ...     save_file({"proj.weight": np.zeros((2, 2))}, base)
    ...     save_file({"proj.weight": np.diag([4.0, 3.0])}, tuned)
    ...     layer = inspect(tuned, base, ranks=[1, 2]).layers[0]
    >>> layer.norm, layer.best_error, layer.rank_for_variance[0.9]
    (5.0, (0.6, 0.0), 2)
    """
    source = open_updates(path_for(path, executor), None if base is None else path_for(base, executor))
    ranks, rules = tuple(ranks), tuple(rules)
    found: list[LayerReport | LayerFailure] = []
    for report in layer_reports(source, ranks=ranks, rules=rules, alpha=alpha, executor=executor):
        found.append(report)
        if progress is not None:
            progress(report.name, len(found), len(source.layers))
    layers = tuple(report for report in found if isinstance(report, LayerReport))
    failures = {report.name: report.reason for report in found if isinstance(report, LayerFailure)}
    if isinstance(source, Adapter):
        kind, warnings = source.kind, source.warnings
        failures |= source.unsupported
        others = {other.name: other.describe() for other in source.others}
    else:
        kind, warnings = "checkpoints", ()
        failures |= source.mismatched
        others = dict(source.other_changes())
        alpha = DEFAULT_ALPHA if alpha is None else alpha
    return Inspection(
        path=str(path),
        base=None if base is None else str(base),
        kind=kind,
        layers=layers,
        failures=dict(sorted(failures.items())),
        not_low_rank=others,
        warnings=warnings,
        totals=total(layers, len(failures), ranks, rules),
        ranks=ranks,
        rules=rules,
        alpha=alpha,
    )


def open_updates(path: str | PathLike[str], base: str | PathLike[str] | None = None) -> Adapter | CheckpointPair:
    """
    Open what holds updates: an adapter, or two checkpoints.

    Parameters
    ----------
    path : path-like
        A PEFT adapter's folder or a kohya file; with `base`, a checkpoint.
    base : path-like, optional
        The checkpoint that `path` was tuned from.

    Returns
    -------
    Adapter or CheckpointPair
        Both have ``.layers``, each with ``.name``, ``.shape``, ``.dtype`` and ``.update()``.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`~lowrank_core.models.formats.open_adapter` and
        :func:`~lowrank_core.models.files.checkpoints.pair_checkpoints`.
    """
    if base is None:
        return open_adapter(path)
    return pair_checkpoints(open_checkpoint(base), open_checkpoint(path))


def layer_reports(
    source: Adapter | CheckpointPair,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    rules: Sequence[str] = DEFAULT_RULES,
    alpha: float | None = None,
    executor: Executor | None = None,
) -> Iterator[LayerReport | LayerFailure]:
    r"""
    Report one layer after the other, with one of them in memory at a time.

    Parameters
    ----------
    source : Adapter or CheckpointPair
        As :func:`open_updates` gives it.
    ranks, rules, alpha, executor
        As in :func:`inspect`.

    Returns
    -------
    iterator of LayerReport or LayerFailure
        One for each of ``source.layers``, in their order.

    Raises
    ------
    ValueError
        If a rank, rule or alpha is not one.

    Notes
    -----
    The error of a rule at rank r answers: take the best rank-r factors of this layer's update Δ, its own scale
    included, and write them as an adapter with this alpha under this rule, without dividing the scale out again; how
    far is what a reader then applies from Δ?

    .. math:: \sqrt{((1-\gamma)^2 H_r + T_r) / N^2}, \qquad \gamma = \mathrm{rule}(\alpha, r)

    At γ = 1 it is the best possible error.
    """
    asked = checked_ranks(ranks)
    for rule in rules:
        scaling_rule(rule)(DEFAULT_ALPHA if alpha is None else alpha, 1)
    report = partial(_report_or_failure, ranks=asked, rules=tuple(rules), alpha=alpha)
    return map(report, source.layers) if executor is None else executor.map(report, source.layers)


def checked_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """
    Check that ranks are ranks, each of which a layer clamps to its own largest.

    Parameters
    ----------
    ranks : sequence of int
        As a user gave them.

    Returns
    -------
    tuple of int
        The same.

    Raises
    ------
    ValueError
        If one is no whole number of at least 0.
    """
    asked = np.asarray(ranks)
    if asked.ndim != 1 or asked.dtype.kind not in "iu" or np.any(asked < 0):
        raise ValueError(f"ranks are whole numbers of at least 0, as [8, 16, 32]; got {ranks!r}")
    return tuple(int(rank) for rank in asked)


def _report_or_failure(
    layer: AdapterLayer | WeightPair, ranks: tuple[int, ...], rules: tuple[str, ...], alpha: float | None
) -> LayerReport | LayerFailure:
    try:
        if isinstance(layer, WeightPair) and not {layer.base.dtype, layer.tuned.dtype}.isdisjoint(COARSE):
            update, noise = layer.update_and_noise()
            found = spectrum(update)
            return replace(_report(layer, found, ranks, rules, alpha), rounding=layer_rounding(noise, found))
        return _report(layer, spectrum(layer.update()), ranks, rules, alpha)
    except ValueError as error:
        return LayerFailure(layer.name, str(error))
    except MemoryError as error:
        return LayerFailure(layer.name, f"needs more memory than there is ({error})")


def _report(
    layer: AdapterLayer | WeightPair,
    found: Spectrum,
    ranks: tuple[int, ...],
    rules: tuple[str, ...],
    alpha: float | None,
) -> LayerReport:
    m, n = layer.shape
    clamped = tuple(min(int(rank), m, n) for rank in ranks)
    adapted = layer if isinstance(layer, AdapterLayer) else None
    if alpha is None:
        alpha = DEFAULT_ALPHA if adapted is None else adapted.alpha
    errors = error_sweep(found, clamped, alpha=alpha, rules=rules).errors if rules else ()
    return LayerReport(
        name=layer.name,
        shape=layer.shape,
        dtype=layer.dtype,
        parameters=m * n,
        rank=adapted.rank if adapted else None,
        alpha=adapted.alpha if adapted else None,
        scaling=adapted.scaling if adapted else None,
        scaling_source=adapted.scaling_source if adapted else "difference of the two checkpoints",
        norm=float(found.norm),
        singular_values=found.values,
        effective_rank=float(effective_rank(found)),
        stable_rank=float(stable_rank(found)),
        numerical_rank=int(numerical_rank(found)),
        rank_for_variance=ranks_for_variance(found),
        ranks=clamped,
        best_error=floats(reconstruction_error(found, clamped)),
        errors={rule: floats(of_rule) for rule, of_rule in zip(rules, errors, strict=True)},
        adapter_parameters=adapted.parameters if adapted else None,
    )
