"""Results as figures, drawn by matplotlib, which is imported only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._results import few_ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_errors", "draw_overlap", "draw_ranks", "draw_spectra"]

Floats = NDArray[np.float64]

# Names beside the axis can be read of so many layers.
_NAMES_SHOWN = 60
# Marks on a line, and ranks beside its axis.
_MARKS = 12
# Relative values below are not drawn: float64 has nothing there but rounding.
_SMALLEST = 1e-17


def draw_spectra(values: Floats, axes: Any) -> Axes:
    """Draw singular values (count, p), each matrix's relative to its first, and the median where there are several."""
    drawn = _axes(axes)
    from lowrank_core._figures import BLUE, plain_decades, rank_ticks

    largest = values[:, :1] if values.shape[1] else np.ones((len(values), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(values > _SMALLEST * largest, values / largest, np.nan)
    indices = np.arange(1, values.shape[1] + 1)
    if len(values) > 1:
        drawn.plot(indices, relative.T, color="#c4c4c4", linewidth=0.6)
    known = np.isfinite(relative).any(axis=0)
    middle = np.full(len(indices), np.nan)
    middle[known] = np.nanmedian(relative[:, known], axis=0)
    drawn.plot(indices, middle, color=BLUE)
    drawn.set(title="Spectrum", xlabel="index i", ylabel="σᵢ / σ₁", xscale="log")
    rank_ticks(drawn, few_ranks(max(1, len(indices))))
    if known.any():
        drawn.set_yscale("log")
        plain_decades(drawn.yaxis)
    return drawn


def draw_errors(ranks: NDArray[np.int64], best: Floats, errors: Mapping[str, Floats], title: str, axes: Any) -> Axes:
    """Draw errors against ranks under each rule, beside the least possible, on a logarithmic axis of ranks from 1."""
    drawn, shown = _axes(axes), ranks > 0
    from lowrank_core._figures import GREY, LOOKS, Look, plot, rank_ticks

    for name, curve in {"best": best, **errors}.items():
        look = LOOKS.get(name, Look(name, GREY, "-", "x"))
        plot(drawn, ranks[shown], curve[shown], look, "", label=look.label, markevery=max(1, len(ranks) // _MARKS))
    drawn.set(title=title, xlabel="rank r", ylabel="relative error", xscale="log")
    if shown.any():
        rank_ticks(drawn, ranks[shown] if len(ranks) <= _MARKS else few_ranks(int(ranks.max())))
    drawn.legend(frameon=False)
    return drawn


def draw_overlap(overlap: Floats, axes: Any) -> Axes:
    """Draw overlaps (count, k₁, k₂) of leading spaces from 0 to 1, of several their mean."""
    drawn = _axes(axes)
    k_1, k_2 = overlap.shape[1:]
    if overlap.size:
        extent = (0.5, k_2 + 0.5, k_1 + 0.5, 0.5)
        image = drawn.imshow(overlap.mean(axis=0), cmap="viridis", vmin=0.0, vmax=1.0, extent=extent)
        drawn.figure.colorbar(image, ax=drawn)
    drawn.grid(visible=False)
    drawn.set(title="Overlap φ(i, j) of leading spaces", xlabel="j of the second", ylabel="i of the first")
    return drawn


def draw_ranks(names: Sequence[str], ranks: Sequence[int], axes: Any) -> Axes:
    """Draw the rank of each layer as a bar, the first at the top."""
    drawn = _axes(axes, height=max(2.4, 1.2 + 0.22 * min(len(names), _NAMES_SHOWN)))
    from lowrank_core._figures import BLUE

    drawn.set_axisbelow(True)
    drawn.barh(range(len(names)), ranks, color=BLUE)
    drawn.set(title="Rank of each layer", xlabel="rank r", ylim=(len(names) - 0.5, -0.5))
    if len(names) <= _NAMES_SHOWN:
        drawn.set_yticks(range(len(names)), names)
    return drawn


def _axes(axes: Any, height: float = 4.0) -> Axes:
    """Return given axes, or those of a new figure in the project's style."""
    if axes is not None:
        return axes  # type: ignore[no-any-return]  # matplotlib is not imported before it is needed
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib, which is not installed: pip install "lowrank_core[cli]"') from error
    from lowrank_core._figures import style

    with style():
        return plt.subplots(figsize=(6.4, height), layout="constrained")[1]
