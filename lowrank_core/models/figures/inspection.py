"""The figure of an inspection: spectra, best error against rank, and the rank for 95 % of the variance, by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lowrank_core import Spectrum, reconstruction_error
from lowrank_core._figures import (
    BLACK,
    KIND_LOOKS,
    VERMILION,
    Look,
    ReportFigure,
    depth_rows,
    place_labels,
    plain_decades,
    plot,
    rank_ticks,
    style,
)
from lowrank_core.models.layer_kinds import by_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Layer(Protocol):
    """A layer of an inspection."""

    @property
    def name(self) -> str:
        """The module's name."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of its update."""

    @property
    def norm(self) -> float:
        """The Frobenius norm of its update."""

    @property
    def singular_values(self) -> NDArray[np.float64]:
        """All of them, descending."""

    @property
    def rank_for_variance(self) -> Mapping[float, int]:
        """The least rank for each fraction of the variance."""


Curve = Callable[[Layer, NDArray[np.int64]], NDArray[np.float64]]

_FRACTION = 0.95
_POINTS = 200
_LONGEST_LABEL = 20
_SMALLEST = 1e-6


def draw(title: str, layers: Sequence[Layer]) -> ReportFigure:
    """Draw an inspection: spectra, best possible error against rank, and the rank for 95 % of the variance.

    On the left every layer is a thin line, and the median of each kind of layer (of all, where there are many kinds) a
    thick one. On the right every layer is a mark, the deeper in the model the lower.
    """
    kinds = by_kind(layer for layer in layers if layer.norm > 0)
    if not kinds:
        raise ValueError("there is no figure to draw: every update is zero.")
    with style():
        figure = ReportFigure(figsize=(16, max(5.2, 1.6 + 0.32 * len(kinds))), layout="constrained")
        spectra, errors, ranks = figure.subplots(1, 3)
        figure.suptitle(f"{title}   ({len(layers)} layers)", fontsize=14, x=0.01, ha="left")
        _lines(spectra, kinds, _relative_values)
        spectra.set(title="Spectra", xlabel="index i", ylabel="σᵢ / σ₁", xscale="log", yscale="log")
        spectra.set_ylim(bottom=max(_SMALLEST, spectra.get_ylim()[0]))
        plain_decades(spectra.yaxis)
        _rank_axis(spectra, kinds)
        _lines(errors, kinds, _best_errors, labelled=False)
        errors.set(
            title="Best possible error", xlabel="rank r", ylabel="relative error", xscale="log", ylim=(-0.03, 1.03)
        )
        _rank_axis(errors, kinds)
        # The curves meet in one point at the full rank, where labels at their ends would overlap.
        errors.legend(loc="best", framealpha=0.9, edgecolor="none", fontsize=10, handlelength=3.5)
        _needed(ranks, kinds)
        place_labels(figure)
    return figure


def _relative_values(layer: Layer, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    relative: NDArray[np.float64] = layer.singular_values[indices - 1] / layer.singular_values[0]
    return relative


def _best_errors(layer: Layer, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    values, norm = layer.singular_values, np.asarray(layer.norm)
    return np.asarray(reconstruction_error(Spectrum(values, norm, layer.shape, complete=True), ranks))


def _lines(axes: Axes, kinds: Mapping[str, Sequence[Layer]], curve: Curve, *, labelled: bool = True) -> None:
    layers = [layer for members in kinds.values() for layer in members]
    shown = kinds if len(kinds) <= len(KIND_LOOKS) else {f"median of {len(layers)}": layers}
    for nth, ((name, members), look) in enumerate(zip(shown.items(), KIND_LOOKS, strict=False)):
        grid = _thinned(max(layer.singular_values.size for layer in members))
        table = np.full((len(members), grid.size), np.nan)
        for row, layer in zip(table, members, strict=True):
            known = grid <= layer.singular_values.size
            row[known] = curve(layer, grid[known])
        axes.plot(grid, table.T, color="#c4c4c4", linewidth=0.6, zorder=1)
        every = max(1, grid.size // 6)
        shown_name = _shortened(name)
        plot(
            axes,
            grid,
            np.nanmedian(table, axis=0),
            Look(shown_name, *look),
            None if labelled else "",
            label=shown_name,
            markevery=(nth * 5 % every, every),
        )


def _rank_axis(axes: Axes, kinds: Mapping[str, Sequence[Layer]]) -> None:
    largest = max(layer.singular_values.size for members in kinds.values() for layer in members)
    rank_ticks(axes, [2**power for power in range(largest.bit_length())])


def _thinned(last: int) -> NDArray[np.int64]:
    return np.unique(np.geomspace(1, last, _POINTS).round().astype(np.int64))


def _shortened(name: str) -> str:
    """Return a name, or as many of its last parts as fit a label."""
    if len(name) <= _LONGEST_LABEL:
        return name
    end = name[1 - _LONGEST_LABEL :]
    # From the first whole part on, where there is one.
    return f"…{end[end.find('.') + 1 :].removeprefix('*.')}"


def _needed(axes: Axes, kinds: Mapping[str, Sequence[Layer]]) -> None:
    heights = depth_rows(axes, kinds)
    needed = [[layer.rank_for_variance[_FRACTION] for layer in layers] for layers in kinds.values()]
    axes.scatter(np.concatenate(needed), heights, c=BLACK, s=26, linewidths=0, alpha=0.8, zorder=2)
    repeated = [row for row, ranks in enumerate(needed) if len(ranks) > 1]
    for row in repeated:
        middle = float(np.median(needed[row]))
        axes.plot([middle, middle], [row - 0.4, row + 0.4], color=VERMILION, linewidth=2.5, zorder=1.8)
    axes.set_xlim(0, 1.04 * max(map(max, needed)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(
        title=f"Rank for {_FRACTION:.0%} of the variance",
        xlabel="rank (a mark a layer, lower when deeper; bar: median)" if repeated else "rank",
    )
