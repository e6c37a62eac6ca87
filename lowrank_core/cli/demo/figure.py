"""The demo's figure: both experiments and the best possible beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from lowrank_core._figures import LOOKS, index_ticks, mark_one, place_labels, plain_decades, plot, rank_ticks, style
from lowrank_core.cli.demo.experiments import RULES, Experiments, Learning, Reconstruction
from lowrank_core.cli.demo.verdicts import rate_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(results: Experiments) -> Figure:
    """Draw both experiments.

    Above: the spectra, the variance that a rank captures, the scalings, the learning curves. Below: relative error
    against rank beside the best possible, truncated (style, facts) and learned (gradient descent, Adam).
    """
    with style():
        figure = Figure(figsize=(17, 8.6), layout="constrained")
        panels = figure.subplots(2, 4)
        settings = results.settings
        figure.suptitle(
            f"Style, facts and the rank of an update   ({settings.size} × {settings.size}, α = {settings.alpha:g}, "
            f"seed {settings.seed})",
            fontsize=14,
            x=0.01,
            ha="left",
        )
        _spectra(panels[0, 0], results)
        _captured(panels[0, 1], results)
        _scalings(panels[0, 2], results)
        _curves(panels[0, 3], results.learning[0])
        _truncated(panels[1, 0], results.style, settings.ranks)
        _truncated(panels[1, 1], results.facts, settings.ranks)
        _learned(panels[1, 2], results.learning[:1], "Learned by gradient descent")
        _learned(panels[1, 3], results.learning[1:], "Learned by Adam")
        place_labels(figure)
    return figure


def _spectra(axes: Axes, results: Experiments) -> None:
    for update in (results.style, results.facts):
        every = max(1, update.ranks.size // 12)
        plot(axes, update.ranks, update.singular_values, LOOKS[update.name], markevery=every)
    axes.set(title="Spectrum", xlabel="index i", ylabel="singular value σᵢ", yscale="log")
    plain_decades(axes.yaxis)
    index_ticks(axes, results.settings.size)


def _captured(axes: Axes, results: Experiments) -> None:
    for update in (results.style, results.facts):
        every = max(1, update.ranks.size // 12)
        plot(axes, update.ranks, update.captured, LOOKS[update.name], markevery=every)
    axes.set(title="Variance captured", xlabel="rank r", ylabel="H / N²", ylim=(0, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    index_ticks(axes, results.settings.size)


def _scalings(axes: Axes, results: Experiments) -> None:
    for rule in RULES:
        plot(axes, results.scalings.ranks, results.scalings.gamma[rule], LOOKS[rule])
    mark_one(axes, "γ = 1")
    axes.set(title="Scaling γ", xlabel="rank r", ylabel="γ", xscale="log", yscale="log")
    rank_ticks(axes, results.scalings.ranks)
    plain_decades(axes.yaxis)


def _curves(axes: Axes, learning: Learning) -> None:
    chosen = sorted({0, len(learning.ranks) // 2, len(learning.ranks) - 1})
    steps = np.arange(learning.steps + 1)
    for row in chosen:
        for rule in RULES:
            look = LOOKS[rule]
            plot(
                axes,
                steps,
                learning.curves[rule][row],
                look,
                f"{look.label}, r = {learning.ranks[row]}",
                markevery=(row * 7, max(1, learning.steps // 6)),
            )
    axes.set(title="Learning curves, gradient descent", xlabel="step", ylabel="relative error")
    axes.xaxis.set_major_locator(FixedLocator(np.linspace(0, learning.steps, 4).tolist()))


def _truncated(axes: Axes, update: Reconstruction, ranks: Sequence[int]) -> None:
    shown = update.ranks <= max(ranks)
    plot(axes, update.ranks[shown], update.best[shown], LOOKS["best"])
    for rule in RULES:
        plot(axes, ranks, update.at(update.errors[rule], tuple(ranks)), LOOKS[rule])
    mark_one(axes, "no adapter")
    axes.set(
        title=f"Truncated and scaled: {update.name}",
        xlabel="rank r",
        ylabel="relative error",
        xscale="log",
        yscale="log",
    )
    positive = update.best[shown & (update.best > 0)]
    axes.set_ylim(bottom=max(float(np.min(positive, initial=1.0)), 1e-3) / 1.5)
    rank_ticks(axes, ranks)
    plain_decades(axes.yaxis)


def _learned(axes: Axes, experiments: Sequence[Learning], title: str) -> None:
    first = experiments[0]
    plot(axes, first.ranks, first.best, LOOKS["best"])
    for nth, learning in enumerate(experiments):
        for rule in RULES:
            look = LOOKS[rule]
            rate = f", {rate_of(learning)}" if len(experiments) > 1 else ""
            plot(
                axes,
                learning.ranks,
                learning.errors[rule],
                look,
                look.label + rate,
                markerfacecolor="white" if nth else look.color,
            )
    axes.set(
        title=f"{title}, {first.steps} steps",
        xlabel="rank r",
        ylabel="relative error",
        xscale="log",
        ylim=(-0.05, 1.04),
    )
    rank_ticks(axes, first.ranks)
