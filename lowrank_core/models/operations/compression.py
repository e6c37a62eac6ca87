"""What became of updates that were made into an adapter: kept, lost, written, left out; by layer and in total."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LayerCompression:
    """
    What became of one layer's update.

    Attributes
    ----------
    name : str
        The module's name.
    shape : tuple of int
        Shape (m, n) of the update as a matrix.
    dtype : str
        What it was stored in before.
    rank : int
        Number of components kept; a layer of rank 0 is not in the adapter.
    asked : int
        The rank asked for; more than `rank` where the layer has no more.
    stored_rank : int
        The rank of the written factors: `rank`, or more where they were padded with zeros.
    alpha, scaling : float or None
        The alpha that the adapter holds for this layer and the scale γ that a reader applies; None at rank 0.
    norm : float
        Frobenius norm of the update.
    singular_values : ndarray
        Those found, descending: all, or the leading ones.
    variance_captured, best_error : float
        What the best update of this rank holds of the variance, and its relative error.
    error : float
        Relative error of what was written, measured after rounding to the stored dtype.
    storage_error : float
        What that rounding moved, relative to the update's norm.
    source_parameters, source_bytes : int
        Number of entries before, and what they take: of the tuned weight, or of the adapters' factors.
    parameters, bytes : int
        Number of entries of the written factors, padding included, and what they take.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    rank: int
    asked: int
    stored_rank: int
    alpha: float | None
    scaling: float | None
    norm: float
    singular_values: NDArray[np.float64]
    variance_captured: float
    best_error: float
    error: float
    storage_error: float
    source_parameters: int
    source_bytes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class CompressionTotals:
    """
    What became of all layers together, as if they were the diagonal blocks of one update.

    Attributes
    ----------
    layers, failures : int
        How many were decomposed and did change, and how many could not be.
    norm : float
        √ΣN² over the layers.
    variance_captured, best_error, error, storage_error : float
        As of one layer, weighed by N².
    source_parameters, source_bytes, parameters, bytes : int
        Sums over the layers.
    """

    layers: int
    failures: int
    norm: float
    variance_captured: float
    best_error: float
    error: float
    storage_error: float
    source_parameters: int
    source_bytes: int
    parameters: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Compression:
    """
    An adapter that was written, or would be, and what it keeps of the updates it came from.

    Attributes
    ----------
    verb : str
        "extract", "resize" or "merge".
    sources : tuple of str
        What it came from.
    out : str
        Where it was to be written.
    kind : str
        "peft" or "kohya".
    written : bool
        False for a dry run.
    dtype, rule : str
        What the factors are stored in, and the rule that their scale follows.
    layers : tuple of LayerCompression
        Every layer that could be read and is not zero.
    unchanged : tuple of str
        Layers without an update, which are not in the adapter.
    left_out : dict of str to str
        What the adapter does not carry, with its norm where it changed.
    carried : dict of str to str
        Tensors that were copied as they are.
    failures : dict of str to str
        Layers that could not be read, and why; they are not in the adapter.
    warnings : tuple of str
        What a user of the adapter should know: readers that would apply a different scale.
    totals : CompressionTotals
        All layers together.
    config : dict or None
        PEFT's configuration; None for kohya.
    weights : tuple of float or None
        Of a merge: what each source was multiplied with.
    """

    verb: str
    sources: tuple[str, ...]
    out: str
    kind: str
    written: bool
    dtype: str
    rule: str
    layers: tuple[LayerCompression, ...]
    unchanged: tuple[str, ...]
    left_out: dict[str, str]
    carried: dict[str, str]
    failures: dict[str, str]
    warnings: tuple[str, ...]
    totals: CompressionTotals
    config: dict[str, Any] | None
    weights: tuple[float, ...] | None = None


def to_json(report: Compression) -> dict[str, Any]:
    """
    Turn a report into plain JSON: dicts, lists, strings, finite numbers and None.

    Parameters
    ----------
    report : Compression
        As :func:`~lowrank_core.models.operations.extraction.extract` and its kin give it.

    Returns
    -------
    dict
        Every figure of it, singular values included.
    """
    plain = {name: getattr(report, name) for name in ("verb", "out", "kind", "written", "dtype", "rule")}
    return plain | {
        "sources": list(report.sources),
        "totals": dict(vars(report.totals)),
        "layers": [
            {**vars(layer), "shape": list(layer.shape), "singular_values": layer.singular_values.tolist()}
            for layer in report.layers
        ],
        "unchanged": list(report.unchanged),
        "left_out": dict(report.left_out),
        "carried": dict(report.carried),
        "failures": dict(report.failures),
        "warnings": list(report.warnings),
        "config": report.config,
        "weights": None if report.weights is None else list(report.weights),
    }


def to_rows(report: Compression) -> list[dict[str, Any]]:
    """
    Turn a report into rows of a table, one for each layer, failed ones too.

    Parameters
    ----------
    report : Compression
        As :func:`to_json` takes it.

    Returns
    -------
    list of dict
        All with the same keys in the same order; what a row does not have is None.
    """
    fields = [name for name in LayerCompression.__dataclass_fields__ if name not in {"shape", "singular_values"}]
    columns = dict.fromkeys(["name", "rows", "columns", *fields[1:], "failure"])
    done = [
        columns | {name: getattr(layer, name) for name in fields} | {"rows": layer.shape[0], "columns": layer.shape[1]}
        for layer in report.layers
    ]
    return done + [columns | {"name": name, "failure": reason} for name, reason in report.failures.items()]


def totals_of(layers: Sequence[LayerCompression], failures: int) -> CompressionTotals:
    """
    Add layers up as if they were the diagonal blocks of one update.

    Parameters
    ----------
    layers : sequence of LayerCompression
        Any number.
    failures : int
        How many more could not be read.

    Returns
    -------
    CompressionTotals
        Nothing lost where there are no layers.
    """
    norm = math.hypot(*(layer.norm for layer in layers))
    shares = np.array([layer.norm / (norm or 1.0) for layer in layers])

    def together(errors: Iterable[float]) -> float:
        return float(np.linalg.norm(shares * np.array(list(errors))))

    captured = float(np.sum(shares**2 * np.array([layer.variance_captured for layer in layers])))
    return CompressionTotals(
        layers=len(layers),
        failures=failures,
        norm=norm,
        variance_captured=min(captured, 1.0) if norm else 1.0,
        best_error=together(layer.best_error for layer in layers),
        error=together(layer.error for layer in layers),
        storage_error=together(layer.storage_error for layer in layers),
        source_parameters=sum(layer.source_parameters for layer in layers),
        source_bytes=sum(layer.source_bytes for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
    )
