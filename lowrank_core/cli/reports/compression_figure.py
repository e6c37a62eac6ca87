"""The figure of an extracted, resized or merged adapter: by layer, the rank kept, what was lost, and the size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from lowrank_core.cli.figures import BLUE, GREY, ORANGE, VERMILION, plain_decades, style
from lowrank_core.cli.names import by_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank_core.models.operations.compression import Compression, LayerCompression

__all__ = ["draw"]


class Series(NamedTuple):
    """One quantity of a layer: what it is called in the figure, how it is found, and how it is drawn."""

    label: str
    value: Callable[[LayerCompression], float]
    color: str
    marker: str


RANK = (Series("", lambda layer: layer.rank, BLUE, "o"),)
ERRORS = (
    Series("storage", lambda layer: layer.storage_error, ORANGE, "D"),
    Series("in all", lambda layer: layer.error, VERMILION, "o"),
)
SIZES = (
    Series("before", lambda layer: layer.source_parameters, GREY, "s"),
    Series("after", lambda layer: layer.parameters, BLUE, "o"),
)
# In rows: between two layers of a kind, what all of them take at most, and what the labels above the first row do.
APART = 0.15
SPREAD = 0.6
LABEL_ROWS = 0.5
# The part of a panel's width, on both sides of the marks, in which there is room for half a label.
SIDE_ROOM = 0.18
# As many powers of ten as can be read beside each other.
DECADES = 6


def draw(report: Compression) -> Figure:
    """Draw what became of the layers.

    Parameters
    ----------
    report : Compression

    Returns
    -------
    matplotlib.figure.Figure
        A row for each kind of layer and in it a mark for each layer, the deeper in the model the lower. Left, the rank
        kept; middle, the relative error of what is stored, and what rounding to the stored dtype moved; right, the
        number of parameters before and after. A value of zero has no place on the logarithmic axes, and no mark.
    """
    layers = {layer.name: layer for layer in report.layers}
    kinds = {name: [layers[member] for member in members] for name, members in by_kind(layers).items()}
    with style():
        figure = Figure(figsize=(15, max(3.6, 2.0 + 0.55 * len(kinds))), layout="constrained")
        ranks, errors, sizes = figure.subplots(1, 3, sharey=True)
        figure.suptitle(f"{report.out}   ({len(report.layers)} layers)", fontsize=14, x=0.01, ha="left")
        ranks.set_yticks(range(len(kinds)), list(kinds))
        ranks.set_ylim(len(kinds) - 0.5, -0.5 - LABEL_ROWS)
        ranks.set(title="Rank kept", xlabel="rank r (a dot a layer, lower when deeper)")
        _draw_marks(ranks, kinds, RANK)
        ranks.set_xlim(left=0)
        ranks.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        errors.set(title="Relative error", xlabel="‖Δ − γBA‖ / ‖Δ‖", xscale="log")
        _draw_marks(errors, kinds, ERRORS)
        sizes.set(title="Parameters", xlabel="number of entries", xscale="log")
        _draw_marks(sizes, kinds, SIZES)
        for axes in (errors, sizes):
            plain_decades(axes.xaxis)
            axes.locator_params(axis="x", numticks=DECADES)
        sizes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _draw_marks(axes: Axes, kinds: Mapping[str, Sequence[LayerCompression]], series: Sequence[Series]) -> None:
    heights = np.concatenate([row + _spread(len(members)) for row, members in enumerate(kinds.values())])
    for one in series:
        values = np.array([one.value(member) for members in kinds.values() for member in members], dtype=np.float64)
        axes.scatter(values, heights, s=26, c=one.color, marker=one.marker, linewidths=0, alpha=0.8, zorder=2)
    axes.margins(x=SIDE_ROOM)
    _label(axes, next(iter(kinds.values())), series)


def _spread(members: int) -> NDArray[np.float64]:
    reach = min(SPREAD, APART * (members - 1)) / 2
    return np.linspace(-reach, reach, members)


def _label(axes: Axes, first_row: Sequence[LayerCompression], series: Sequence[Series]) -> None:
    """Write what marks mean above those of the first row, each label to its own side."""
    places = {one: float(np.median([one.value(layer) for layer in first_row])) for one in series if one.label}
    for one, side in zip(sorted(places, key=lambda one: places[one]), ("right", "left"), strict=False):
        axes.annotate(
            one.label,
            (places[one], float(_spread(len(first_row))[0])),
            xytext=(4 if side == "left" else -4, 8),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=one.color,
            fontsize=10,
        )
