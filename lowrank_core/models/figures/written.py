"""The figure of an extracted, resized or merged adapter: each layer's rank, error and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from lowrank_core._figures import BLUE, GREY, ORANGE, VERMILION, ReportFigure, depth_rows, plain_decades, style
from lowrank_core.models.layer_kinds import by_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Layer(Protocol):
    """A layer of a written adapter."""

    @property
    def name(self) -> str:
        """The module's name."""

    @property
    def rank(self) -> int:
        """Number of components kept."""

    @property
    def error(self) -> float:
        """Relative error of what was written."""

    @property
    def storage_error(self) -> float:
        """What rounding moved of it."""

    @property
    def source_parameters(self) -> int:
        """Number of entries before."""

    @property
    def parameters(self) -> int:
        """Number of entries of the written factors."""


class _Series(NamedTuple):
    """A quantity of a layer: its label, its value, and how it is drawn."""

    label: str
    value: Callable[[Layer], float]
    color: str
    marker: str


_RANK = (_Series("", lambda layer: layer.rank, BLUE, "o"),)
_ERRORS = (
    _Series("storage", lambda layer: layer.storage_error, ORANGE, "D"),
    _Series("total", lambda layer: layer.error, VERMILION, "o"),
)
_SIZES = (
    _Series("before", lambda layer: layer.source_parameters, GREY, "s"),
    _Series("after", lambda layer: layer.parameters, BLUE, "o"),
)
# In rows: the height of the labels above the first row.
_LABEL_ROWS = 0.5
# On both sides of the marks, as a fraction of a panel's width: half a label.
_SIDE_MARGIN = 0.18
# As many powers of ten as can be read beside each other.
_DECADES = 6


def draw(title: str, compressed: Sequence[Layer]) -> ReportFigure:
    """Draw what became of the layers: the rank kept, the relative error, and the number of parameters.

    Each kind of layer has a row and each layer a mark, the deeper in the model the lower. A value of zero, for which
    logarithmic axes have no place, has no mark.
    """
    kinds = by_kind(compressed)
    layers = [layer for members in kinds.values() for layer in members]
    with style():
        figure = ReportFigure(figsize=(15, max(3.6, 2.0 + 0.55 * len(kinds))), layout="constrained")
        ranks, errors, sizes = figure.subplots(1, 3, sharey=True)
        figure.suptitle(f"{title}   ({len(layers)} layers)", fontsize=14, x=0.01, ha="left")
        heights = depth_rows(ranks, kinds, above=_LABEL_ROWS)
        ranks.set(title="Rank kept", xlabel="rank r (a mark a layer, lower when deeper)")
        errors.set(title="Relative error", xlabel="‖Δ − γBA‖ / ‖Δ‖", xscale="log")
        sizes.set(title="Parameters", xlabel="number of entries", xscale="log")
        for axes, series in ((ranks, _RANK), (errors, _ERRORS), (sizes, _SIZES)):
            _draw_marks(axes, layers, heights, series)
            _label(axes, next(iter(kinds.values())), heights[0], series)
        ranks.set_xlim(left=0)
        ranks.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        for axes in (errors, sizes):
            plain_decades(axes.xaxis)
            axes.locator_params(axis="x", numticks=_DECADES)
        sizes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _draw_marks(axes: Axes, layers: Sequence[Layer], heights: NDArray[np.float64], series: Sequence[_Series]) -> None:
    for one in series:
        values = np.array([one.value(layer) for layer in layers], dtype=np.float64)
        axes.scatter(values, heights, s=26, c=one.color, marker=one.marker, linewidths=0, alpha=0.8, zorder=2)
    axes.margins(x=_SIDE_MARGIN)


def _label(axes: Axes, first_row: Sequence[Layer], top: float, series: Sequence[_Series]) -> None:
    """Write what marks mean above those of the first row, each label to its own side."""
    places = {one: float(np.median([one.value(layer) for layer in first_row])) for one in series if one.label}
    for one, side in zip(sorted(places, key=lambda one: places[one]), ("right", "left"), strict=False):
        axes.annotate(
            one.label,
            (places[one], top),
            xytext=(4 if side == "left" else -4, 8),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=one.color,
            fontsize=10,
        )
