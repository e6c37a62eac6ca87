"""Figures for a talk: legible in grey by line style and marker, labels at the ends of lines, drawn without a display.

Matplotlib is slow to load, so the command line imports this module only when a figure is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.lines import Line2D

LineStyle = str | tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """How one quantity is drawn in every figure: by more than a colour."""

    label: str
    color: str
    line: LineStyle
    marker: str


# Okabe and Ito's colours, which colour-blind readers can distinguish; purple and orange darkened for text.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#A04A86", "#B37400"
SKY, BLACK, GREY = "#2E8BC0", "#000000", "#777777"
# Of kinds of layer: colour, line and marker.
KIND_LOOKS: tuple[tuple[str, LineStyle, str], ...] = (
    (BLUE, "-", "o"),
    (VERMILION, (0, (5, 2)), "s"),
    (GREEN, (0, (3, 1, 1, 1)), "^"),
    (PURPLE, (0, (1, 1.2)), "v"),
    (ORANGE, (0, (7, 2, 1, 2)), "D"),
    (BLACK, (0, (2, 1)), "P"),
    (SKY, (0, (7, 2)), "X"),
    (GREY, "-", "p"),
)
LOOKS = {
    "standard": Look("α/r", VERMILION, (0, (5, 2)), "o"),
    "rslora": Look("α/√r", BLUE, "-", "s"),
    "unscaled": Look("γ = 1", PURPLE, (0, (3, 1, 1, 1)), "D"),
    "best": Look("best possible", BLACK, (0, (1, 1.5)), ""),
    "style": Look("style", GREEN, "-", "^"),
    "facts": Look("facts", PURPLE, (0, (5, 2)), "v"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "svg.hashsalt": "lowrank_core",
    "pdf.fonttype": 42,
}
# The height of a label at the end of a line, its distance to the next included.
_LABEL_POINTS = 13.0
# The width for labels, beyond the lines, as a fraction of the lines' own width.
_LABEL_WIDTH = 0.5
_LABELLED = "label:"
# In rows: between the marks of two layers of a kind, and at most between those of the first and the last.
_APART = 0.15
_DEPTH_SPREAD = 0.6


class ReportFigure(Figure):
    """A figure that shows itself in a notebook, as those of pyplot do once that was imported."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        with style():
            self.savefig(content, format="png")
        return content.getvalue()


def save(figure: Figure, path: Path, ending: str) -> None:
    """Write a figure in the format that an ending such as ``.png`` names; the same figure makes the same file."""
    kind = ending.lower().removeprefix(".")
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with style():
        figure.savefig(path, format=kind, dpi=160, metadata=undated.get(kind, {}))


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's style to what is drawn within."""
    with mpl.rc_context():
        # From matplotlib's own defaults: settings made for other work must not change these figures.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def plot(axes: Axes, x: ArrayLike, y: ArrayLike, look: Look, text: str | None = None, **changes: Any) -> None:
    """Draw a line; :func:`place_labels` writes its label, the look's own unless another is given, none for ""."""
    drawn: dict[str, Any] = {"color": look.color, "linestyle": look.line, "marker": look.marker or None, **changes}
    (line,) = axes.plot(x, y, **drawn)
    written = look.label if text is None else text
    if written:
        line.set_gid(_LABELLED + written)


def rank_ticks(axes: Axes, ranks: Sequence[int] | NDArray[np.int64]) -> None:
    """Label a logarithmic axis with ranks, as many as can be read."""
    axes.xaxis.set_major_locator(FixedLocator(_apart([float(rank) for rank in ranks])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def _apart(ranks: Sequence[float]) -> list[float]:
    """Return the last rank and those whose numbers do not overlap on a logarithmic axis."""
    kept = [ranks[-1]]
    for rank in reversed(ranks[:-1]):
        if rank * 1.5 < kept[-1]:
            kept.append(rank)
    return kept


def index_ticks(axes: Axes, size: int) -> None:
    """Label a linear axis that begins at 1 with the quarters of a size."""
    axes.xaxis.set_major_locator(FixedLocator(np.unique(np.linspace(0, size, 5).round()).clip(1).tolist()))


def plain_decades(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, not with powers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if np.log10(high / low) > 2 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def mark_one(axes: Axes, meaning: str) -> None:
    """Draw a line at 1, labelled with what it means."""
    axes.axhline(1.0, color=GREY, linewidth=1)
    axes.annotate(
        meaning,
        (1.0, 1.0),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=GREY,
        fontsize=9,
    )


def depth_rows(axes: Axes, kinds: Mapping[str, Sequence[object]], *, above: float = 0.0) -> NDArray[np.float64]:
    """Set a row for each kind of layer, from the top, and return each layer's height, the deeper the lower.

    `above` is the space over the first row, in rows.
    """
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.set_ylim(len(kinds) - 0.5, -0.5 - above)
    return np.concatenate([row + _depths(len(layers)) for row, layers in enumerate(kinds.values())])


def _depths(layers: int) -> NDArray[np.float64]:
    reach = min(_DEPTH_SPREAD, _APART * (layers - 1)) / 2
    return np.linspace(-reach, reach, layers)


def place_labels(figure: Figure) -> None:
    """Write each line's label at its right end, moved apart where ends meet."""
    labelled = {axes: [line for line in axes.lines if _label_of(line)] for axes in figure.axes}
    for axes, lines in labelled.items():
        if lines:
            _widen(axes, max(float(np.asarray(line.get_xdata())[-1]) for line in lines))
    # Where the ends lie on the page is known only after the layout.
    figure.draw_without_rendering()
    for axes, lines in labelled.items():
        _write_apart(axes, lines, figure.dpi)


def _label_of(line: Line2D) -> str:
    return (line.get_gid() or "").partition(_LABELLED)[2]


def _widen(axes: Axes, end: float) -> None:
    left, right = axes.get_xlim()
    forward, back = axes.transScale.transform, axes.transScale.inverted().transform
    (start, _), (stop, _) = forward([(left, 1.0), (end, 1.0)])
    (limit, _) = back((start + (stop - start) * (1 + _LABEL_WIDTH), 1.0))
    axes.set_xlim(left, max(right, limit))


def _write_apart(axes: Axes, lines: Sequence[Line2D], dpi: float) -> None:
    box = axes.get_window_extent()
    gap = _LABEL_POINTS * dpi / 72
    ends = [_last_visible(line, axes) for line in lines]
    heights = [float(np.clip(axes.transData.transform(end)[1], box.y0, box.y1)) for end in ends]
    order = np.argsort(heights, kind="stable")
    for index, placed in zip(order, _spread(np.asarray(heights)[order], gap, box.y0 + gap / 2, box.y1), strict=True):
        line = lines[index]
        text = axes.annotate(
            _label_of(line),
            ends[index],
            xytext=(7, (placed - axes.transData.transform(ends[index])[1]) * 72 / dpi),
            textcoords="offset points",
            va="center",
            ha="left",
            color=line.get_color(),
            fontsize=10,
            annotation_clip=False,
        )
        text.set_in_layout(False)
        line.set_gid(None)


def _last_visible(line: Line2D, axes: Axes) -> tuple[float, float]:
    points = np.asarray(line.get_xydata(), dtype=np.float64)
    low, high = axes.get_ylim()
    seen = points[np.isfinite(points[:, 1]) & (points[:, 1] >= low) & (points[:, 1] <= high)]
    x, y = seen[-1] if seen.size else (points[-1, 0], low)
    return float(x), float(y)


def _spread(heights: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Return sorted heights moved apart to the gap, as little as needed: those that touch keep their common centre."""

    def within(mean: float, members: int) -> float:
        reach = gap * (members - 1) / 2
        return min(max(mean, low + reach), high - reach)

    groups: list[tuple[float, int]] = []
    for height in heights:
        mean, members = float(height), 1
        while groups and within(mean, members) - within(*groups[-1]) < gap * (members + groups[-1][1]) / 2:
            other, others = groups.pop()
            mean = (mean * members + other * others) / (members + others)
            members += others
        groups.append((mean, members))
    return np.concatenate(
        [within(*group) + gap * (np.arange(group[1]) - (group[1] - 1) / 2) for group in groups] or [np.empty(0)]
    )
