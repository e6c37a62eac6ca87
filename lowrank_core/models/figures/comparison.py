"""The figure of a comparison: of two updates layer by layer, of more the cosines of all with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank_core._figures import BLUE, GREY, VERMILION, ReportFigure, depth_rows, style
from lowrank_core.models.layer_kinds import by_kind
from lowrank_core.models.overlaps import whole_overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank_core import SpaceOverlap

_MARK = 26
# In rows: the height of the legends above the first row.
_LEGEND_ROWS = 1.0


class Layer(Protocol):
    """A layer of a comparison."""

    @property
    def name(self) -> str:
        """The module's name."""

    @property
    def cosine(self) -> float:
        """The cosine between the updates."""

    @property
    def cosine_deviation(self) -> float:
        """Its standard deviation for random updates."""

    @property
    def growth(self) -> float:
        """Norm of the sum over that of orthogonal updates."""

    @property
    def columns(self) -> SpaceOverlap:
        """The leading column spaces."""

    @property
    def rows(self) -> SpaceOverlap:
        """The leading row spaces."""


def draw_layers(title: str, compared: Sequence[Layer]) -> ReportFigure:
    """Draw a comparison of two updates: the cosine, the norm of the sum and the overlap of each layer.

    A layer is a mark, the deeper in the model the lower. What random updates have is grey.
    """
    if not compared:
        raise ValueError("there is no figure to draw: no layer could be compared.")
    kinds = by_kind(compared)
    layers = [layer for members in kinds.values() for layer in members]
    with style():
        figure = ReportFigure(figsize=(15, max(3.6, 2.0 + 0.55 * len(kinds))), layout="constrained")
        cosines, sums, overlaps = figure.subplots(1, 3, sharey=True)
        figure.suptitle(f"{title}   ({len(layers)} layers)", fontsize=14, x=0.01, ha="left")
        heights = depth_rows(cosines, kinds, above=_LEGEND_ROWS)
        deviations = 2.0 * np.array([layer.cosine_deviation for layer in layers])
        cosines.hlines(heights, -deviations, deviations, color=GREY, linewidth=1.5, label="random updates, ±2 s.d.")
        _marks(cosines, [layer.cosine for layer in layers], heights, BLUE, "o", "these")
        cosines.set(title="Cosine", xlabel="⟨Δ₁, Δ₂⟩ / (‖Δ₁‖‖Δ₂‖)")
        sums.axvline(1.0, color=GREY, label="orthogonal updates")
        _marks(sums, [layer.growth for layer in layers], heights, BLUE, "o", "these")
        sums.set(title="Norm of the sum", xlabel="‖Δ₁ + Δ₂‖ / √(‖Δ₁‖² + ‖Δ₂‖²)")
        for side, name, color, marker in (("columns", "outputs", BLUE, "o"), ("rows", "inputs", VERMILION, "s")):
            levels = [whole_overlap(getattr(layer, side)) for layer in layers]
            for place, drawn, label in ((1, GREY, f"{name}, random spaces"), (0, color, name)):
                _marks(overlaps, [level[place] for level in levels], heights, drawn, marker, label)
        overlaps.set(title="Overlap of leading spaces", xlabel="φ", xlim=(-0.03, 1.03))
        for axes in (cosines, sums, overlaps):
            axes.legend(loc="upper left", ncols=2, framealpha=0.9, edgecolor="none", fontsize=9)
            axes.locator_params(axis="x", nbins=5)
    return figure


def _marks(
    axes: Axes, values: Sequence[float], heights: NDArray[np.float64], color: str, marker: str, label: str
) -> None:
    axes.scatter(values, heights, s=_MARK, c=color, marker=marker, linewidths=0, alpha=0.8, zorder=2, label=label)


def draw_matrix(paths: Sequence[str], cosines: NDArray[np.float64]) -> ReportFigure:
    """Draw a comparison of several updates: the cosines of all with all."""
    with style():
        figure = ReportFigure(figsize=(max(6.0, 2.5 + 0.8 * len(cosines)),) * 2, layout="constrained")
        axes = figure.subplots()
        axes.imshow(cosines, cmap="RdBu", vmin=-1.0, vmax=1.0)
        for (row, column), cosine in np.ndenumerate(cosines):
            color = "white" if abs(cosine) > 0.6 else "black"
            axes.text(column, row, f"{cosine:.3f}", ha="center", va="center", color=color)
        places = range(len(cosines))
        axes.set_xticks(places, [str(place + 1) for place in places])
        axes.set_yticks(places, [f"{place + 1}: {path}" for place, path in zip(places, paths, strict=True)])
        axes.grid(visible=False)
        axes.set(title="Cosine of the updates, over all layers")
    return figure
