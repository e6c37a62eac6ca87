"""The report of an inspection, as values: each layer's figures, all of them added up, and both as JSON and rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_core import Spectrum, rank_for_variance, reconstruction_error, variance_captured
from lowrank_core.models.inspection.rounding import LayerRounding, rounding_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

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
        For each rule, the relative error at each of them, as
        :func:`~lowrank_core.models.inspection.layers.layer_reports` defines it.
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
        rank_for_variance=ranks_for_variance(together),
        ranks=tuple(int(rank) for rank in ranks),
        variance_captured=floats(variance_captured(together, clamped)),
        best_error=floats(reconstruction_error(together, clamped)),
        errors={rule: _combined_error([layer.errors[rule] for layer in layers], shares, len(ranks)) for rule in rules},
    )


def ranks_for_variance(found: Spectrum) -> dict[float, int]:
    """
    Find the least ranks that hold the shares of the variance that reports give.

    Parameters
    ----------
    found : Spectrum
        Of one update.

    Returns
    -------
    dict of float to int
        A rank for each of :data:`VARIANCE_FRACTIONS`.
    """
    needed = rank_for_variance(found, np.array(VARIANCE_FRACTIONS))
    return {fraction: int(rank) for fraction, rank in zip(VARIANCE_FRACTIONS, needed, strict=True)}


def floats(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """
    Turn an array into numbers of Python, as reports hold them.

    Parameters
    ----------
    numbers : ndarray of shape (k,)

    Returns
    -------
    tuple of float
    """
    return tuple(float(number) for number in numbers)


def to_json(inspection: Inspection) -> dict[str, Any]:
    """
    Turn an inspection into plain JSON: dicts, lists, strings, finite numbers and None.

    Parameters
    ----------
    inspection : Inspection
        As :func:`~lowrank_core.models.inspection.layers.inspect` gives it.

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
        As :func:`~lowrank_core.models.inspection.layers.inspect` gives it.

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


def _combined_error(errors: Sequence[tuple[float, ...]], shares: NDArray[np.float64], ranks: int) -> tuple[float, ...]:
    absolute = shares[:, np.newaxis] * np.asarray(errors, dtype=np.float64).reshape(len(errors), ranks)
    # hypot, because an error may be as large as the alpha that a file gives, and its square beyond float64.
    return tuple(math.hypot(*of_rank) for of_rank in absolute.T)


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
