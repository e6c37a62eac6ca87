"""What an adapter, or a pair of checkpoints, holds: every layer's spectrum, ranks and errors, and the totals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_core import (
    Spectrum,
    effective_rank,
    error_sweep,
    numerical_rank,
    rank_for_variance,
    reconstruction_error,
    scaling_rule,
    spectrum,
    stable_rank,
    variance_captured,
)
from lowrank_core.models.adapters import open_adapter
from lowrank_core.models.checkpoints import CheckpointPair, WeightPair, open_checkpoint, pair_checkpoints
from lowrank_core.models.executors import path_for
from lowrank_core.models.layers import Adapter, AdapterLayer
from lowrank_core.models.rounding import COARSE, LayerRounding, layer_rounding, rounding_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from os import PathLike

    from numpy.typing import NDArray

DEFAULT_RANKS = (2, 4, 8, 16, 32, 64)
DEFAULT_RULES = ("standard", "rslora")
DEFAULT_ALPHA = 16.0
VARIANCE_FRACTIONS = (0.90, 0.95, 0.99)


@dataclass(frozen=True, eq=False)
class LayerReport:
    """
    What one layer's update holds.

    Attributes
    ----------
    name : str
        The module's name.
    shape : tuple of int
        Shape (m, n) of the update as a matrix.
    dtype : str
        What it is stored in.
    parameters : int
        Number of entries of the dense update, m·n.
    rank, alpha, scaling : int, float, float or None
        The adapter's rank, alpha and effective scale γ in this layer; None for a difference of checkpoints.
    scaling_source : str
        Where γ came from, in plain words.
    norm : float
        Frobenius norm of the update, its scale included.
    singular_values : ndarray
        All that are not zero for certain, descending: as many as the adapter's rank, or min(m, n).
    effective_rank, stable_rank, numerical_rank : float, float, int
        As the functions of the same names define them.
    rank_for_variance : dict of float to int
        The least rank that holds 90, 95 and 99 % of the variance.
    ranks : tuple of int
        The ranks asked for, each clamped to min(m, n).
    best_error : tuple of float
        The best possible relative error at each of them.
    errors : dict of str to tuple of float
        For each rule, the relative error at each of them, as :func:`layer_reports` defines it.
    adapter_parameters : int or None
        Number of entries of the stored factors; None for a difference of checkpoints.
    rounding : LayerRounding or None
        What of the update cannot be told from the rounding of two checkpoints of which one is stored in float16 or
        bfloat16.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    parameters: int
    rank: int | None
    alpha: float | None
    scaling: float | None
    scaling_source: str
    norm: float
    singular_values: NDArray[np.float64]
    effective_rank: float
    stable_rank: float
    numerical_rank: int
    rank_for_variance: dict[float, int]
    ranks: tuple[int, ...]
    best_error: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]
    adapter_parameters: int | None = None
    rounding: LayerRounding | None = None


@dataclass(frozen=True)
class LayerFailure:
    """
    A layer that could not be reported, and why; the others go on.

    Attributes
    ----------
    name : str
        The module's name.
    reason : str
        What is wrong with it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Totals:
    """
    What all reported layers hold together, as if they were the diagonal blocks of one update.

    Attributes
    ----------
    layers, failures : int
        How many were reported, and how many were not.
    parameters : int
        Number of entries of all dense updates.
    adapter_parameters : int or None
        Number of entries of all stored factors; None for checkpoints.
    norm : float
        √ΣN² over the layers.
    rank_for_variance : dict of float to int
        The least rank that, given to every layer alike, holds 90, 95 and 99 % of the variance: Σ heads ≥ t·Σ N².
    ranks : tuple of int
        The ranks asked for; every layer is taken at its own largest rank where that is less.
    variance_captured, best_error : tuple of float
        Σ heads / Σ N² and √(Σ tails / Σ N²) at each of them.
    errors : dict of str to tuple of float
        For each rule, the relative error of all layers together at each of them.
    """

    layers: int
    failures: int
    parameters: int
    adapter_parameters: int | None
    norm: float
    rank_for_variance: dict[float, int]
    ranks: tuple[int, ...]
    variance_captured: tuple[float, ...]
    best_error: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Inspection:
    """
    What an adapter, or the difference of two checkpoints, holds.

    Attributes
    ----------
    path, base : str, str or None
        What was inspected, and the checkpoint that it was tuned from.
    kind : str
        "peft", "kohya" or "checkpoints".
    layers : tuple of LayerReport
        Every layer that could be read.
    failures : dict of str to str
        Layers that could not, and why.
    not_low_rank : dict of str to str
        Tensors that no low-rank update carries, described with their norms.
    warnings : tuple of str
        What a user of it should know.
    totals : Totals
        All reported layers together.
    ranks, rules : tuple
        The ranks and rules asked for.
    alpha : float or None
        The alpha of the errors; None where each layer's own was taken.
    """

    path: str
    base: str | None
    kind: str
    layers: tuple[LayerReport, ...]
    failures: dict[str, str]
    not_low_rank: dict[str, str]
    warnings: tuple[str, ...]
    totals: Totals
    ranks: tuple[int, ...]
    rules: tuple[str, ...]
    alpha: float | None


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
    >>> from lowrank_core.models.inspection import inspect
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
        As :func:`~lowrank_core.models.adapters.open_adapter` and
        :func:`~lowrank_core.models.checkpoints.pair_checkpoints`.
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


def total(layers: Sequence[LayerReport], failures: int, ranks: Sequence[int], rules: Sequence[str]) -> Totals:
    """
    Add up layers as if they were the diagonal blocks of one update.

    Parameters
    ----------
    layers : sequence of LayerReport
        What was reported.
    failures : int
        How many layers were not.
    ranks : sequence of int
        The ranks asked for, of which each layer has its own clamped ones.
    rules : sequence of str
        The rules of their errors.

    Returns
    -------
    Totals
        No decomposition is made: the layers' spectra have all that is needed.
    """
    largest = max((min(layer.shape) for layer in layers), default=1)
    scale = max((layer.norm for layer in layers), default=0.0) or 1.0
    # The i-th singular values of all layers, in quadrature: the head of rank r is then the sum of all layers' heads.
    energy = np.zeros(largest)
    for layer in layers:
        energy[: layer.singular_values.size] += (layer.singular_values / scale) ** 2
    whole = math.fsum((layer.norm / scale) ** 2 for layer in layers)
    together = Spectrum(np.sqrt(energy), np.array(math.sqrt(whole)), (largest, largest), complete=True)
    clamped = np.minimum(np.asarray(ranks, dtype=np.int64), largest)
    shares = np.array([layer.norm / scale / math.sqrt(whole) if whole else 0.0 for layer in layers])
    adapter_parameters = [layer.adapter_parameters for layer in layers if layer.adapter_parameters is not None]
    return Totals(
        layers=len(layers),
        failures=failures,
        parameters=sum(layer.parameters for layer in layers),
        adapter_parameters=sum(adapter_parameters) if adapter_parameters else None,
        norm=scale * math.sqrt(whole),
        rank_for_variance=_ranks_for_variance(together),
        ranks=tuple(int(rank) for rank in ranks),
        variance_captured=_floats(variance_captured(together, clamped)),
        best_error=_floats(reconstruction_error(together, clamped)),
        errors={rule: _combined_error([layer.errors[rule] for layer in layers], shares, len(ranks)) for rule in rules},
    )


def to_json(inspection: Inspection) -> dict[str, Any]:
    """
    Turn an inspection into plain JSON: dicts, lists, strings, finite numbers and None.

    Parameters
    ----------
    inspection : Inspection
        As :func:`inspect` gives it.

    Returns
    -------
    dict
        Every figure of it, singular values included.
    """
    totals = inspection.totals
    return {
        "path": inspection.path,
        "base": inspection.base,
        "kind": inspection.kind,
        "ranks": list(inspection.ranks),
        "rules": list(inspection.rules),
        "alpha": inspection.alpha,
        "totals": {
            "layers": totals.layers,
            "failures": totals.failures,
            "parameters": totals.parameters,
            "adapter_parameters": totals.adapter_parameters,
            "norm": totals.norm,
            "rank_for_variance": _by_text(totals.rank_for_variance),
            "variance_captured": list(totals.variance_captured),
            "best_error": list(totals.best_error),
            "errors": {rule: list(errors) for rule, errors in totals.errors.items()},
        },
        "layers": [_layer_json(layer) for layer in inspection.layers],
        "failures": dict(inspection.failures),
        "not_low_rank": dict(inspection.not_low_rank),
        "warnings": list(inspection.warnings),
    }


def to_rows(inspection: Inspection) -> list[dict[str, Any]]:
    """
    Turn an inspection into rows of a table, one for each layer, failed ones too.

    Parameters
    ----------
    inspection : Inspection
        As :func:`inspect` gives it.

    Returns
    -------
    list of dict
        All with the same keys in the same order; what a row does not have is None. Columns of errors are named by the
        rank asked for: "best_error_8", "standard_8".
    """
    columns = dict.fromkeys(
        (
            *("name", "rows", "columns", "dtype", "parameters", "adapter_parameters", "rank", "alpha", "scaling"),
            *("scaling_source", "norm", "effective_rank", "stable_rank", "numerical_rank"),
            *(variance_column(fraction) for fraction in VARIANCE_FRACTIONS),
            *(f"{rule}_{rank}" for rank in inspection.ranks for rule in ("best_error", *inspection.rules)),
            *(name for layer in inspection.layers if layer.rounding for name in rounding_json(layer.rounding)),
            "failure",
        )
    )
    reported = [columns | _layer_row(layer, inspection.ranks) for layer in inspection.layers]
    return reported + [columns | {"name": name, "failure": reason} for name, reason in inspection.failures.items()]


def variance_column(fraction: float) -> str:
    """
    Name the column of a rank for a share of the variance.

    Parameters
    ----------
    fraction : float
        The share.

    Returns
    -------
    str
        As "rank_for_90_percent".
    """
    return f"rank_for_{round(100 * fraction)}_percent"


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
        rank_for_variance=_ranks_for_variance(found),
        ranks=clamped,
        best_error=_floats(reconstruction_error(found, clamped)),
        errors={rule: _floats(of_rule) for rule, of_rule in zip(rules, errors, strict=True)},
        adapter_parameters=adapted.parameters if adapted else None,
    )


def _ranks_for_variance(found: Spectrum) -> dict[float, int]:
    needed = rank_for_variance(found, np.array(VARIANCE_FRACTIONS))
    return {fraction: int(rank) for fraction, rank in zip(VARIANCE_FRACTIONS, needed, strict=True)}


def _combined_error(errors: Sequence[tuple[float, ...]], shares: NDArray[np.float64], ranks: int) -> tuple[float, ...]:
    absolute = shares[:, np.newaxis] * np.asarray(errors, dtype=np.float64).reshape(len(errors), ranks)
    # hypot, because an error may be as large as the alpha that a file gives, and its square beyond float64.
    return tuple(math.hypot(*of_rank) for of_rank in absolute.T)


def _floats(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)


def _by_text(ranks: dict[float, int]) -> dict[str, int]:
    return {f"{fraction:g}": rank for fraction, rank in ranks.items()}


def _layer_json(layer: LayerReport) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
        "parameters": layer.parameters,
        "adapter_parameters": layer.adapter_parameters,
        "rank": layer.rank,
        "alpha": layer.alpha,
        "scaling": layer.scaling,
        "scaling_source": layer.scaling_source,
        "norm": layer.norm,
        "effective_rank": layer.effective_rank,
        "stable_rank": layer.stable_rank,
        "numerical_rank": layer.numerical_rank,
        "rank_for_variance": _by_text(layer.rank_for_variance),
        "ranks": list(layer.ranks),
        "best_error": list(layer.best_error),
        "errors": {rule: list(errors) for rule, errors in layer.errors.items()},
        "rounding": None if layer.rounding is None else rounding_json(layer.rounding),
        "singular_values": layer.singular_values.tolist(),
    }


def _layer_row(layer: LayerReport, ranks: tuple[int, ...]) -> dict[str, Any]:
    described = _layer_json(layer)
    row = {key: described[key] for key in described if isinstance(described[key], str | int | float)}
    row |= {"rows": layer.shape[0], "columns": layer.shape[1]}
    row |= {variance_column(fraction): rank for fraction, rank in layer.rank_for_variance.items()}
    for name, errors in {"best_error": layer.best_error, **layer.errors}.items():
        row |= {f"{name}_{rank}": error for rank, error in zip(ranks, errors, strict=True)}
    return row | (rounding_json(layer.rounding) if layer.rounding else {})
