"""The figure of an extracted, resized or merged adapter: by layer, the rank kept, what was lost, and the size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lowrank_core.cli.figures import BLUE, GREY, VERMILION, style
from lowrank_core.cli.names import common_prefix, in_natural_order, kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank_core.models.compression import Compression, LayerCompression

__all__ = ["draw"]


class Series(NamedTuple):
    """One quantity of a layer: its name in the figure, its value, and how it is drawn."""

    label: str
    value: Callable[[LayerCompression], float]
    color: str
    marker: str


RANK = (Series("rank kept", lambda layer: layer.rank, BLUE, "o"),)
LOSSES = (
    Series("storage", lambda layer: layer.storage_error, GREY, "D"),
    Series("total", lambda layer: layer.error, VERMILION, "o"),
)
SIZES = (
    Series("after", lambda layer: layer.parameters, BLUE, "o"),
    Series("before", lambda layer: layer.source_parameters, GREY, "s"),
)


def draw(report: Compression) -> Figure:
    """Draw what became of the layers.

    Parameters
    ----------
    report : Compression

    Returns
    -------
    matplotlib.figure.Figure
        A row for each kind of layer and in it a mark for each layer, the deeper in the model the lower. Left, the rank
        kept; middle, the relative error of what is stored and the part of it that rounding added; right, the
        parameters before and after.
    """
    kinds = _by_kind(report.layers)
    with style():
        figure = Figure(figsize=(14, max(3.6, 1.9 + 0.5 * len(kinds))), layout="constrained")
        ranks, losses, sizes = figure.subplots(1, 3, sharey=True)
        figure.suptitle(f"{' + '.join(report.sources)} → {report.out}", fontsize=14, x=0.01, ha="left")
        _marks(ranks, kinds, RANK)
        ranks.set(title="Rank kept", xlabel="rank r")
        ranks.set_xlim(left=0)
        ranks.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        _marks(losses, kinds, LOSSES)
        losses.set(title="Relative error", xlabel="‖Δ − γBA‖ / ‖Δ‖", xscale="log")
        _marks(sizes, kinds, SIZES)
        sizes.set(title="Parameters", xlabel="entries of a layer", xscale="log")
        ranks.set_yticks(range(len(kinds)), list(kinds))
        ranks.set_ylim(len(kinds) - 0.5, -0.5)
    return figure
