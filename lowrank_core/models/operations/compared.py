"""The report of a comparison of adapters or fine-tunes, as values: pairs, their layers and totals, and all as rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_core import SpaceOverlap
from lowrank_core.models.overlaps import smallest_angle, whole_overlap
from lowrank_core.models.printable import for_figure
from lowrank_core.models.results import to_json
from lowrank_core.models.shown import Columns, layers_table, shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A layer reinforces or cancels where the norm of the sum differs by more than this from that of orthogonal updates.
NOTABLE = 0.05
# Of the table in a notebook.
_COLUMNS: Columns = {
    "m × n": shape_of,
    "norms": lambda layer: f"{layer.first_norm:.4g} and {layer.second_norm:.4g}",
    "cosine": lambda layer: layer.cosine,
    "sum over orthogonal": lambda layer: layer.growth,
    "overlap of outputs": lambda layer: whole_overlap(layer.columns)[0],
    "overlap of inputs": lambda layer: whole_overlap(layer.rows)[0],
}


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparedLayer:
    """One layer that two sources have: how their updates lie to each other.

    Attributes
    ----------
    name, shape : str, tuple of int
        The module's name, and the shape (m, n) of both updates.
    first_norm, second_norm : float
        Frobenius norms.
    cosine, cosine_deviation : float
        The cosine between the updates, and its standard deviation for random ones, whose mean is 0.
    sum_norm, orthogonal_norm : float
        The norm of the sum, and what it would be if the updates were orthogonal.
    columns, rows : SpaceOverlap
        Their leading column spaces and row spaces.
    """

    name: str
    shape: tuple[int, int]
    first_norm: float
    second_norm: float
    cosine: float
    cosine_deviation: float
    sum_norm: float
    orthogonal_norm: float
    columns: SpaceOverlap
    rows: SpaceOverlap

    @property
    def growth(self) -> float:
        """Norm of the sum over that of orthogonal updates; 1 where both are zero."""
        return self.sum_norm / self.orthogonal_norm if self.orthogonal_norm else 1.0


@dataclass(frozen=True, kw_only=True)
class PairTotals:
    """All layers of a pair together, as the diagonal blocks of one update.

    Attributes
    ----------
    first_norm, second_norm, cosine, cosine_deviation, sum_norm, orthogonal_norm : float
        As of a layer.
    reinforcing, cancelling : tuple of str
        Layers whose sum is larger, or smaller, than that of orthogonal updates by more than 5 %.
    """

    first_norm: float
    second_norm: float
    cosine: float
    cosine_deviation: float
    sum_norm: float
    orthogonal_norm: float
    reinforcing: tuple[str, ...]
    cancelling: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparedPair:
    """Two of the sources that were compared.

    Attributes
    ----------
    first, second : str
        Which.
    totals : PairTotals
        All compared layers together.
    layers : tuple of ComparedLayer
        Every layer that both have and that could be read.
    only_in_first, only_in_second : tuple of str
        Layers that the other does not have, which are in no figure.
    failures : dict of str to str
        Layers that could not be compared, and why.
    """

    first: str
    second: str
    totals: PairTotals
    layers: tuple[ComparedLayer, ...]
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    failures: dict[str, str]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class UpdateComparison:
    """Adapters, or fine-tunes of one base, compared in pairs.

    Attributes
    ----------
    paths, base : tuple of str, str or None
        What was compared, and the checkpoint that they were tuned from.
    rank : int
        How many leading singular vectors of each update were compared.
    pairs : tuple of ComparedPair
        Every pair of the sources, in their order.
    cosines : tuple of tuple of float
        The cosine of every source with every other over all layers that both have.
    not_low_rank : dict of str to str
        Tensors that are in no update, described with their norms.
    failures : dict of str to str
        Layers of a source that are in no figure, and why.
    complete : bool
        Whether all that the sources change is in the figures.
    warnings : tuple of str
        What a user of it should know.
    """

    paths: tuple[str, ...]
    base: str | None
    rank: int
    pairs: tuple[ComparedPair, ...]
    cosines: tuple[tuple[float, ...], ...]
    not_low_rank: dict[str, str]
    failures: dict[str, str]
    complete: bool
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        cosines = ", ".join(f"{pair.totals.cosine:.3f}" for pair in self.pairs[:3])
        more = ", …" if len(self.pairs) > 3 else ""
        return f"<UpdateComparison of {' and '.join(self.paths)}: cosine {cosines}{more}>"

    def _repr_html_(self) -> str:
        return "".join(
            layers_table(f"{pair.first} and {pair.second}: cosine {pair.totals.cosine:.3f}", pair.layers, _COLUMNS)
            for pair in self.pairs
        )

    def figure(self) -> Figure:
        """Draw what ``lowrank compare --figure`` does: two updates layer by layer, or the cosines of several.

        A layer is a mark, the deeper in the model the lower. What random updates have is grey.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If no layer of two updates could be compared.
        """
        from lowrank_core.models.figures import comparison

        shown = for_figure(self)
        if len(shown.paths) > 2:
            return comparison.draw_matrix(shown.paths, np.array(shown.cosines))
        (pair,) = shown.pairs
        return comparison.draw_layers(f"{pair.first} and {pair.second}", pair.layers)


@to_json.register(SpaceOverlap)
def space_columns(space: SpaceOverlap) -> dict[str, Any]:
    """Return the figures of a space by name, the levels of chance among them."""
    names = [field.name for field in fields(space)]
    chance = ("overlap_by_chance", "overlap_deviation", "first_captured_by_chance", "second_captured_by_chance")
    return {name: to_json(getattr(space, name)) for name in (*names, *chance)}


def total(layers: Sequence[ComparedLayer]) -> PairTotals:
    """Compute the totals of layers as the diagonal blocks of one update."""
    first, second = (math.hypot(*(getattr(layer, name) for layer in layers)) for name in ("first_norm", "second_norm"))
    # Over the norms of all layers, so that no product overflows.
    weights = [(layer.first_norm / (first or 1.0)) * (layer.second_norm / (second or 1.0)) for layer in layers]
    deviations = (weight * layer.cosine_deviation for weight, layer in zip(weights, layers, strict=True))
    return PairTotals(
        first_norm=first,
        second_norm=second,
        cosine=math.fsum(weight * layer.cosine for weight, layer in zip(weights, layers, strict=True)),
        cosine_deviation=math.hypot(*deviations),
        sum_norm=math.hypot(*(layer.sum_norm for layer in layers)),
        orthogonal_norm=math.hypot(first, second),
        reinforcing=tuple(layer.name for layer in layers if layer.growth > 1.0 + NOTABLE),
        cancelling=tuple(layer.name for layer in layers if layer.growth < 1.0 - NOTABLE),
    )


def to_rows(report: UpdateComparison) -> list[dict[str, Any]]:
    """Convert a comparison to rows with the same columns, one for each layer of each pair."""
    rows = [_layer_row(pair, layer) for pair in report.pairs for layer in pair.layers]
    columns = dict.fromkeys(("first", "second", "name", *(name for row in rows for name in row), "failure"))
    failed = [
        {"first": pair.first, "second": pair.second, "name": name, "failure": reason}
        for pair in report.pairs
        for name, reason in pair.failures.items()
    ]
    return [columns | row for row in (*rows, *failed)]


def _layer_row(pair: ComparedPair, layer: ComparedLayer) -> dict[str, Any]:
    row: dict[str, Any] = {"first": pair.first, "second": pair.second, "name": layer.name}
    row |= {"matrix_rows": layer.shape[0], "matrix_columns": layer.shape[1]}
    row |= {name: value for name, value in vars(layer).items() if isinstance(value, float)}
    for side, space in (("columns", layer.columns), ("rows", layer.rows)):
        overlap, chance = whole_overlap(space)
        row |= {
            f"{side}_first_rank": int(space.first_rank),
            f"{side}_second_rank": int(space.second_rank),
            f"{side}_overlap": overlap,
            f"{side}_overlap_by_chance": chance,
            f"{side}_smallest_angle": smallest_angle(space),
        }
    return row
