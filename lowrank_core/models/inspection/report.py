"""The report of an inspection, as values: each layer's figures, their totals, and both as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import Spectrum, rank_for_variance, reconstruction_error, variance_captured
from lowrank_core._results import count
from lowrank_core.models.pairing.alignment import AlignedNames
from lowrank_core.models.printable import for_figure
from lowrank_core.models.results import to_json
from lowrank_core.models.shown import Columns, layers_table, shape_of
from lowrank_core.rounding_noise import RoundingNoise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The figures of a base's weight alone.
_OF_WEIGHT = ("norm", "spectral_norm")
VARIANCE_FRACTIONS = (0.90, 0.95, 0.99)
# Of the table in a notebook.
_COLUMNS: Columns = {
    "m × n": shape_of,
    "norm": lambda layer: layer.norm,
    "effective rank": lambda layer: layer.effective_rank,
    "stable rank": lambda layer: layer.stable_rank,
    "rank for 95 %": lambda layer: layer.rank_for_variance[0.95],
}


@dataclass(frozen=True)
class LayerNoise:
    """What of one layer's update cannot be told from the rounding of its stored weights.

    Two figures each, where one side was rounded and where both were: the number of singular values above the noise's
    edge, and the fraction of the update's variance in the others.
    """

    noise: RoundingNoise
    rank_above: tuple[int, int]
    variance_below: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class BaseFigures:
    """The figures of an update Δ beside the base's weight W that it is added to.

    Attributes
    ----------
    norm, spectral_norm : float, float or None
        ‖W‖ and σ₁(W). The second is up to 5 % too small where the smaller side is more than 512, and None where two
        weights are too large to be in memory as a whole.
    relative_norm, relative_spectral_norm : float, float or None
        ‖Δ‖/‖W‖ and σ₁(Δ)/σ₁(W).
    merge_error, merge_unchanged : float or None
        Of an adapter: ‖round(W + Δ) − (W + Δ)‖/‖Δ‖, with the sum rounded to the dtype of W, and the fraction of the
        entries of W that it leaves as they are. None for two checkpoints, whose difference is of rounded weights.
    intruders : int or None
        How many of the examined leading left singular vectors of W + Δ are near none of W; None if none was examined.
    """

    norm: float
    relative_norm: float
    spectral_norm: float | None = None
    relative_spectral_norm: float | None = None
    merge_error: float | None = None
    merge_unchanged: float | None = None
    intruders: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerReport:
    """The figures of one layer's update.

    Attributes
    ----------
    name, shape : str, tuple of int
        The module's name, and the shape (m, n) of its update as a matrix.
    dtype : str
        What it is stored in.
    parameters, adapter_parameters : int, int or None
        Number of entries of the dense update, m·n, and of the stored factors; None for a difference of checkpoints.
    rank, alpha, scaling : int, float, float or None
        The adapter's rank, alpha and effective scale γ in this layer; None for a difference of checkpoints.
    scaling_source : str
        Where γ came from, in words.
    norm : float
        Frobenius norm of the update, its scale included.
    effective_rank, stable_rank, numerical_rank : float, float, int
        As the functions of the same names define them.
    rank_for_variance : dict of float to int
        The least rank that captures 90, 95 and 99 % of the variance.
    ranks : tuple of int
        The requested ranks, each clamped to min(m, n).
    best_error : tuple of float
        The best possible relative error at each of them.
    errors : dict of str to tuple of float
        For each rule, the relative error at each of them, as :func:`~lowrank_core.models.inspect`
        defines it.
    rounding : LayerNoise or None
        What of the update cannot be told from the rounding of two checkpoints of which one is stored in float16,
        bfloat16, or 8 or 4 bits.
    base : BaseFigures or None
        The update beside the base's weight; None where no base was given, or it has no such weight.
    singular_values : ndarray
        Those that can differ from zero, descending: as many as the adapter's rank, or min(m, n).
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    parameters: int
    adapter_parameters: int | None = None
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    scaling_source: str
    norm: float
    effective_rank: float
    stable_rank: float
    numerical_rank: int
    rank_for_variance: dict[float, int]
    ranks: tuple[int, ...]
    best_error: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]
    rounding: LayerNoise | None = None
    base: BaseFigures | None = None
    singular_values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The figures of all reported layers together, as the diagonal blocks of one update.

    Attributes
    ----------
    layers, failures : int
        How many were reported, and how many were not.
    parameters, adapter_parameters : int, int or None
        Number of entries of all dense updates, and of all stored factors; None for checkpoints.
    norm : float
        √ΣN² over the layers.
    relative_norm : float or None
        √ΣN² / √Σ‖W‖² over the layers that the base has a weight for; None where there are none.
    intruders : int or None
        Number of intruder dimensions of all layers.
    rank_for_variance : dict of float to int
        The least rank that, given to every layer alike, captures 90, 95 and 99 % of the variance: Σ heads ≥ t·Σ N².
        It is what a copy of the update takes; a task may need a lower one.
    error_for_variance : dict of float to float
        The best possible relative error at each of these ranks.
    variance_captured, best_error : tuple of float
        Σ heads / Σ N² and √(Σ tails / Σ N²) at each requested rank; every layer is taken at its own largest rank where
        that is less.
    errors : dict of str to tuple of float
        For each rule, the relative error of all layers together at each requested rank.
    """

    layers: int
    failures: int
    parameters: int
    adapter_parameters: int | None
    norm: float
    relative_norm: float | None
    intruders: int | None
    rank_for_variance: dict[float, int]
    error_for_variance: dict[float, float]
    variance_captured: tuple[float, ...]
    best_error: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Verdict:
    """What the figures of an inspection say is wrong with the update.

    Attributes
    ----------
    kind : str
        "zero", "not-finite", "under-rounding" or "spike".
    layers : tuple of str
        The layers that it is on.
    number : float
        What it rests on: how many layers are zero, or not finite; the largest fraction of N² that rounding loses; the
        largest σ₁²/N².
    sentence : str
        The verdict in words, with that number.
    """

    kind: str
    layers: tuple[str, ...]
    number: float
    sentence: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Inspection:
    """What is in an adapter, or in the difference of two checkpoints.

    Attributes
    ----------
    path, base : str, str or None
        What was inspected, and the checkpoint that it was tuned from.
    format : str
        The name of an adapter's format, as "peft"; "checkpoints" for two of these.
    ranks, rules : tuple
        The requested ranks and rules.
    alpha : float or None
        The alpha of the errors; None where each layer's own was taken.
    totals : Totals
        All reported layers together.
    layers : tuple of LayerReport
        Every layer that could be read.
    failures : dict of str to str
        Layers that could not, and why.
    not_low_rank : dict of str to str
        Tensors that are not in any low-rank update, described with their norms.
    complete : bool
        Whether the layers are all that differs, but for vectors of two checkpoints, and none lacks a requested figure.
    compared_fraction : float or None
        Of two checkpoints: the fraction of the entries of all tensors that differ which is in the layers.
    alignment : tuple of AlignedNames
        How the names of two checkpoints differ, where they do.
    warnings : tuple of str
        What a user of it should know.
    verdicts : tuple of Verdict
        What is wrong with the update, by its figures; empty where nothing is.
    """

    path: str
    base: str | None
    format: str
    ranks: tuple[int, ...]
    rules: tuple[str, ...]
    alpha: float | None
    totals: Totals
    layers: tuple[LayerReport, ...]
    failures: dict[str, str]
    not_low_rank: dict[str, str]
    complete: bool
    compared_fraction: float | None = None
    alignment: tuple[AlignedNames, ...] = ()
    warnings: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def __repr__(self) -> str:
        title = self.path if self.base is None else f"{self.path} − {self.base}"
        failed = f", {self.totals.failures} failed" if self.totals.failures else ""
        layers = count(self.totals.layers, "layer")
        return f"<Inspection of {title} ({self.format}): {layers}{failed}, norm {self.totals.norm:.4g}>"

    def _repr_html_(self) -> str:
        return layers_table(repr(self), self.layers, _COLUMNS)

    def figure(self) -> Figure:
        """Draw what ``lowrank inspect --figure`` does: spectra, best errors, and the ranks for 95 % of the variance.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If every update is zero.
        """
        from lowrank_core.models.figures import inspection

        shown = for_figure(self)
        title = shown.path if shown.base is None else f"{shown.path} − {shown.base}"
        return inspection.draw(title, shown.layers)


def layer_noise(noise: RoundingNoise, spectrum: Spectrum) -> LayerNoise:
    """Compare the spectrum of two weights' difference with the noise of their rounding, for one side and for two."""
    one, two = noise.one_side, noise.two_sides
    return LayerNoise(
        noise=noise,
        rank_above=(one.rank(spectrum), two.rank(spectrum)),
        variance_below=(one.variance_below(spectrum), two.variance_below(spectrum)),
    )


@to_json.register(LayerNoise)
def noise_columns(layer: LayerNoise) -> dict[str, Any]:
    """Return the figures by the names of their columns."""
    noise = layer.noise
    columns: dict[str, Any] = {"rounding_applies": noise.applies, "unchanged": noise.unchanged}
    for index, (sides, side) in enumerate((("one_side", noise.one_side), ("two_sides", noise.two_sides))):
        columns |= {
            f"rounding_noise_{sides}": side.std,
            f"rounding_edge_{sides}": side.edge,
            f"rank_above_rounding_{sides}": layer.rank_above[index],
            f"variance_below_rounding_{sides}": layer.variance_below[index],
        }
    return {name: to_json(figure) for name, figure in columns.items()}


def total(layers: Sequence[LayerReport], failures: int, ranks: Sequence[int], rules: Sequence[str]) -> Totals:
    """Compute the totals of layers as the diagonal blocks of one update, from their spectra alone."""
    largest = max((min(layer.shape) for layer in layers), default=1)
    scale = max((layer.norm for layer in layers), default=0.0) or 1.0
    # The i-th singular values of all layers, in quadrature: the head of rank r is then the sum of all layers' heads.
    energy = np.zeros(largest)
    for layer in layers:
        energy[: layer.singular_values.size] += (layer.singular_values / scale) ** 2
    whole = math.fsum((layer.norm / scale) ** 2 for layer in layers)
    combined = Spectrum(np.sqrt(energy), np.array(math.sqrt(whole)), (largest, largest), complete=True)
    clamped = np.minimum(np.asarray(ranks, dtype=np.int64), largest)
    needed = ranks_for_variance(combined)
    weights = np.array([layer.norm / scale / math.sqrt(whole) if whole else 0.0 for layer in layers])
    adapter_parameters = [layer.adapter_parameters for layer in layers if layer.adapter_parameters is not None]
    return Totals(
        layers=len(layers),
        failures=failures,
        parameters=sum(layer.parameters for layer in layers),
        adapter_parameters=sum(adapter_parameters) if adapter_parameters else None,
        norm=scale * math.sqrt(whole),
        **_beside_base(layers),
        rank_for_variance=needed,
        error_for_variance={part: float(reconstruction_error(combined, rank)) for part, rank in needed.items()},
        variance_captured=to_floats(variance_captured(combined, clamped)),
        best_error=to_floats(reconstruction_error(combined, clamped)),
        errors={rule: _combined_error([layer.errors[rule] for layer in layers], weights, len(ranks)) for rule in rules},
    )


def _beside_base(layers: Sequence[LayerReport]) -> dict[str, Any]:
    """Return the totals of the figures beside the base."""
    norms = [(layer.norm, layer.base.norm) for layer in layers if layer.base is not None]
    whole = math.hypot(*(norm for _, norm in norms))
    intruders = [layer.base.intruders for layer in layers if layer.base and layer.base.intruders is not None]
    return {
        "relative_norm": math.hypot(*(norm for norm, _ in norms)) / whole if whole else None,
        "intruders": sum(intruders) if intruders else None,
    }


def ranks_for_variance(spectrum: Spectrum) -> dict[float, int]:
    """Return the least rank that captures each of :data:`VARIANCE_FRACTIONS`."""
    ranks = rank_for_variance(spectrum, np.array(VARIANCE_FRACTIONS))
    return {fraction: int(rank) for fraction, rank in zip(VARIANCE_FRACTIONS, ranks, strict=True)}


def to_floats(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """Convert an array to a tuple of Python's own numbers."""
    return tuple(float(number) for number in numbers)


def to_rows(inspection: Inspection) -> list[dict[str, Any]]:
    """Convert an inspection to rows with the same columns, one for each layer; None where there is no figure."""
    columns = dict.fromkeys(
        (
            *("name", "rows", "columns", "dtype", "parameters", "adapter_parameters", "rank", "alpha", "scaling"),
            *("scaling_source", "norm", "effective_rank", "stable_rank", "numerical_rank", *variance_columns({})),
            *(f"{rule}_{rank}" for rank in inspection.ranks for rule in ("best_error", *inspection.rules)),
            *(name for layer in inspection.layers if layer.rounding for name in noise_columns(layer.rounding)),
            *(name for layer in inspection.layers if layer.base for name in _base_columns(layer.base)),
            "failure",
        )
    )
    reported = [columns | _layer_row(layer, inspection.ranks) for layer in inspection.layers]
    return reported + [columns | {"name": name, "failure": reason} for name, reason in inspection.failures.items()]


def variance_columns(ranks: Mapping[float, int]) -> dict[str, int | None]:
    """Return the ranks for fractions of the variance by the names of their columns, "rank_for_90_percent"."""
    return {f"rank_for_{round(100 * fraction)}_percent": ranks.get(fraction) for fraction in VARIANCE_FRACTIONS}


def rank_columns(name: str, ranks: Sequence[int], figures: Sequence[float]) -> dict[str, float | None]:
    """Return the figures of ranks by the names of their columns, "best_error_8"; None where there are none."""
    return {f"{name}_{rank}": figure for rank, figure in zip_longest(ranks, figures)}


def _combined_error(errors: Sequence[tuple[float, ...]], weights: NDArray[np.float64], ranks: int) -> tuple[float, ...]:
    weighted = weights[:, np.newaxis] * np.asarray(errors, dtype=np.float64).reshape(len(errors), ranks)
    # hypot, because an error may be as large as the alpha that a file gives, and its square beyond float64.
    return tuple(math.hypot(*column) for column in weighted.T)


def _layer_row(layer: LayerReport, ranks: tuple[int, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {name: value for name, value in vars(layer).items() if isinstance(value, str | int | float)}
    row |= {"rows": layer.shape[0], "columns": layer.shape[1]} | variance_columns(layer.rank_for_variance)
    for name, errors in {"best_error": layer.best_error, **layer.errors}.items():
        row |= rank_columns(name, ranks, errors)
    row |= noise_columns(layer.rounding) if layer.rounding else {}
    return row | (_base_columns(layer.base) if layer.base else {})


def _base_columns(figures: BaseFigures) -> dict[str, Any]:
    """Return the figures by the names of their columns: of the weight itself, with "base_" before them."""
    return {f"base_{name}" if name in _OF_WEIGHT else name: figure for name, figure in vars(figures).items()}
