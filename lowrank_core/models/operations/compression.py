"""What became of updates that were made into an adapter: kept, lost, written, skipped; by layer and in total."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._results import count
from lowrank_core.models.formats import Adapter
from lowrank_core.models.norms import ratio
from lowrank_core.models.pairing.alignment import AlignedNames
from lowrank_core.models.printable import for_figure
from lowrank_core.models.results import NOT_IN_JSON
from lowrank_core.models.shown import Columns, layers_table, shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the table in a notebook.
_COLUMNS: Columns = {
    "m × n": shape_of,
    "rank": lambda layer: layer.rank,
    "variance": lambda layer: layer.variance_captured,
    "error": lambda layer: layer.error,
    "best error": lambda layer: layer.best_error,
}


@dataclass(frozen=True, eq=False)
class LayerCompression:
    """What became of one layer's update.

    Attributes
    ----------
    name, shape : str, tuple of int
        The module's name, and the shape (m, n) of its update as a matrix.
    dtype : str
        What it was stored in before.
    rank : int
        Number of components kept; a layer of rank 0 is not in the adapter.
    requested_rank : int
        The rank asked for; more than `rank` where the layer has no more.
    stored_rank : int
        The rank of the written factors: `rank`, or more where they were padded with zeros.
    alpha, scaling : float or None
        The alpha that the adapter has for this layer and the scale γ that a reader applies; None at rank 0.
    norm : float
        Frobenius norm of the update.
    base_norm, relative_norm : float or None
        That of the weight in the base, ‖W‖, and ‖Δ‖/‖W‖, where there is a base.
    singular_values : ndarray
        All, or the leading ones, descending.
    variance_captured, best_error : float
        The fraction of the variance in the best update of this rank, and its relative error.
    error : float
        Relative error of what was written, measured after rounding to the stored dtype.
    storage_error : float
        What that rounding moved, relative to the update's norm.
    missed : float
        A bound of what the best update of this rank has more than the one found before rounding, as a fraction of the
        energy beyond it: certified where a large layer was decomposed in part, 0 where it was decomposed in full. As in
        :class:`~lowrank_core.Spectrum`.
    source_parameters, source_bytes : int
        Number of entries before, and what they take: of the tuned weight, or of the adapters' factors.
    parameters, bytes : int
        Number of entries of the written factors, padding included, and what they take.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    rank: int
    requested_rank: int
    stored_rank: int
    alpha: float | None
    scaling: float | None
    norm: float
    base_norm: float | None
    relative_norm: float | None
    singular_values: NDArray[np.float64]
    variance_captured: float
    best_error: float
    error: float
    storage_error: float
    missed: float
    source_parameters: int
    source_bytes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class CompressionTotals:
    """What became of all layers together, as if they were the diagonal blocks of one update.

    Attributes
    ----------
    layers, failures : int
        How many were decomposed and did change, and how many could not be.
    norm : float
        √ΣN² over the layers.
    relative_norm : float or None
        ‖Δ‖/‖W‖ of the layers that have a weight in the base.
    variance_captured, best_error, error, storage_error : float
        As of one layer, weighted by N².
    missed : float
        The largest of any layer, which bounds that of all together.
    source_parameters, source_bytes, parameters, bytes : int
        Sums over the layers.
    """

    layers: int
    failures: int
    norm: float
    relative_norm: float | None
    variance_captured: float
    best_error: float
    error: float
    storage_error: float
    missed: float
    source_parameters: int
    source_bytes: int
    parameters: int
    bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class Compression:
    """An adapter that was written, or would be, and what it keeps of the updates it came from.

    Attributes
    ----------
    verb : str
        "extract", "resize" or "merge".
    out, format : str
        Where it was to be written, or "in memory"; and the name of its format, as "peft".
    written : bool
        False for a dry run, and in memory.
    dtype, rule : str
        What the factors are stored in, and the rule that their scale follows.
    reader_rule : str
        The rule that the format's readers apply to the stored alpha; another where they know only one.
    sources : tuple of str
        What it came from.
    totals : CompressionTotals
        All layers together.
    layers : tuple of LayerCompression
        Every layer that could be read and is not zero.
    unchanged : tuple of str
        Layers without an update, which are not in the adapter.
    skipped, copied : dict of str to str
        What is not in the adapter, with its norm where it changed; and tensors that were copied as they are.
    failures : dict of str to str
        Layers that could not be read, and why; they are not in the adapter.
    complete : bool
        Whether the layers are all that was to be written: nothing failed, and what was skipped is vectors (biases,
        norms) of two checkpoints, or did not differ.
    warnings : tuple of str
        What a user of the adapter should know: readers that would apply a different scale.
    config : dict or None
        The configuration that was written; None where the format has none.
    weights : tuple of float or None
        Of a merge: what each source was multiplied with.
    compared_fraction, alignment : float or None, tuple of AlignedNames
        Of two checkpoints: the fraction of the entries of all tensors that differ which is in the layers; and how their
        names differ, where they do.
    adapter : Adapter or None
        The adapter itself, where no path was given to write it to; in no JSON.
    """

    verb: str
    out: str
    format: str
    written: bool
    dtype: str
    rule: str
    reader_rule: str
    sources: tuple[str, ...]
    totals: CompressionTotals
    layers: tuple[LayerCompression, ...]
    unchanged: tuple[str, ...]
    skipped: dict[str, str]
    copied: dict[str, str]
    failures: dict[str, str]
    complete: bool
    warnings: tuple[str, ...]
    config: dict[str, Any] | None
    weights: tuple[float, ...] | None = None
    compared_fraction: float | None = None
    alignment: tuple[AlignedNames, ...] = ()
    adapter: Adapter | None = field(default=None, repr=False, metadata=NOT_IN_JSON)

    def __repr__(self) -> str:
        kept = sum(layer.rank > 0 for layer in self.layers)
        totals = f"{self.totals.variance_captured:.1%} of the variance, {self.totals.parameters:,} parameters"
        return f"<Compression {self.verb} → {self.out} ({self.format}): {count(kept, 'layer')}, {totals}>"

    def _repr_html_(self) -> str:
        return layers_table(repr(self), self.layers, _COLUMNS)

    def figure(self) -> Figure:
        """Draw what ``lowrank extract --figure`` does: the rank kept, the relative error and the parameters.

        Each kind of layer has a row and each layer a mark, the deeper in the model the lower.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from lowrank_core.models.figures import written

        shown = for_figure(replace(self, adapter=None))
        return written.draw(shown.out, shown.layers)


def _relative_norm(layers: Sequence[LayerCompression]) -> float | None:
    known = [(layer.norm, layer.base_norm) for layer in layers if layer.base_norm is not None]
    return ratio(*(math.hypot(*norms) for norms in zip(*known, strict=True))) if known else None


def to_rows(report: Compression) -> list[dict[str, Any]]:
    """Return a report as rows of a table with the same columns, one for each layer; None where there is no figure."""
    fields = [name for name in LayerCompression.__dataclass_fields__ if name not in {"shape", "singular_values"}]
    columns = dict.fromkeys(["name", "rows", "columns", *fields[1:], "failure"])
    done = [
        columns | {name: getattr(layer, name) for name in fields} | {"rows": layer.shape[0], "columns": layer.shape[1]}
        for layer in report.layers
    ]
    return done + [columns | {"name": name, "failure": reason} for name, reason in report.failures.items()]


def totals_of(layers: Sequence[LayerCompression], failures: int) -> CompressionTotals:
    """Return the totals of layers, as if they were the diagonal blocks of one update, and of failures beside them."""
    norm = math.hypot(*(layer.norm for layer in layers))
    fractions = np.array([layer.norm / (norm or 1.0) for layer in layers])

    def together(errors: Iterable[float]) -> float:
        return math.hypot(*(fractions * np.array(list(errors))))

    captured = float(np.sum(fractions**2 * np.array([layer.variance_captured for layer in layers])))
    return CompressionTotals(
        layers=len(layers),
        failures=failures,
        norm=norm,
        relative_norm=_relative_norm(layers),
        variance_captured=min(captured, 1.0) if norm else 1.0,
        best_error=together(layer.best_error for layer in layers),
        error=together(layer.error for layer in layers),
        storage_error=together(layer.storage_error for layer in layers),
        missed=max((layer.missed for layer in layers), default=0.0),
        source_parameters=sum(layer.source_parameters for layer in layers),
        source_bytes=sum(layer.source_bytes for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
    )
