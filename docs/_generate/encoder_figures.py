"""Draw the figures of the study of a sentence encoder, from its results.

python docs/_generate/encoder_figures.py FOLDER
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from figures import THEMES, canvas, theme_parameters
from matplotlib.ticker import PercentFormatter
from study_figures import color_of

from lowrank_core._figures import rank_ticks, style

sys.path.append(str(Path(__file__).parents[1] / "encoder"))

import curves
import schedule

# The colours of the study of a small transformer.
COLORS = {"plain": "rslora", "weighted": "standard", "lora": "style", "full": "full", "variance": "extracted"}
LABELS = {
    "plain": "extracted, plain",
    "weighted": "extracted, weighted by the inputs",
    "lora": "LoRA trained at the rank",
    "variance": "variance captured",
}
MARKERS = {"plain": "s", "weighted": "o", "lora": "^", "variance": ""}
AXES = {
    "variance": "variance captured",
    "base_relative": "error beside the base",
    "weighted_error": "error weighted by the inputs",
    "output_change": "change of the outputs",
}


def write_all(folder):
    """Write every figure in every theme into a folder."""
    results = curves.load()
    figures = {"encoder-ranks": ranks, "encoder-prediction": prediction, "encoder-sums": sums}
    for theme in THEMES:
        with style():
            mpl.rcParams.update(theme_parameters(theme))
            for name, draw in figures.items():
                draw(results, theme).savefig(
                    Path(folder, f"{name}-{theme.name}.svg"), transparent=True, metadata={"Date": None}
                )


def ranks(results, theme):
    """Draw the fraction of the accuracy gained by rank, for extraction and LoRA, beside the variance."""
    figure, panels = canvas(9.6, 3.6, 2, sharey=True)
    for axes, task in zip(panels, ("movies", "corpus"), strict=True):
        seeds = results.seeds(task)
        lines = {
            "variance": (schedule.PLAIN_RANKS, "plain", lambda _, __, row: row["variance"]),
            "plain": (schedule.PLAIN_RANKS, "plain", results.kept),
            "weighted": (schedule.WEIGHTED_RANKS, "weighted", results.kept),
        }
        for name, (shown, way, figure_of) in lines.items():
            values = [[figure_of(task, seed, results.part(task, seed, way, r)) for r in shown] for seed in seeds]
            band(axes, shown, np.array(values), name, theme)
        if task == "movies":
            shown = schedule.RANKS
            trained = [[results.kept(task, s, results.of("lora", task, s, r)) for r in shown] for s in seeds]
            band(axes, shown, np.array(trained), "lora", theme)
        axes.axhline(1, color=color_of("full", theme), linestyle=(0, (1, 1.5)), linewidth=1)
        axes.set(title=TITLES[task], xlabel="rank r", xscale="log")
        rank_ticks(axes, schedule.PLAIN_RANKS)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("of the accuracy gained")
    key(panels[1], theme, (0.42, 0.36))
    return figure


TITLES = {"movies": "sentiment of movie reviews", "corpus": "which of four corpora"}


def band(axes, x, values, name, theme):
    """Draw the mean over seeds and their range as a band."""
    color = color_of(COLORS[name], theme)
    axes.plot(x, values.mean(0), color=color, marker=MARKERS[name] or None, linestyle="-" if MARKERS[name] else "--")
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.16, linewidth=0)


def key(axes, theme, corner):
    """Write a legend in a corner of a panel: each label in its colour, after its marker."""
    x, y = corner
    for row, (name, label) in enumerate(LABELS.items()):
        color, place = color_of(COLORS[name], theme), y - 0.085 * row
        axes.plot(
            [x, x + 0.03, x + 0.06], [place] * 3, color=color, linestyle="-" if MARKERS[name] else "--",
            marker=MARKERS[name] or None, markevery=[1], transform=axes.transAxes,
        )  # fmt: skip
        axes.text(x + 0.08, place, label, color=color, transform=axes.transAxes, va="center", fontsize=9)


def prediction(results, theme):
    """Draw the accuracy kept against each measure, for all parts of all fine-tunes."""
    figure, panels = canvas(9.6, 3.1, 4, sharey=True)
    for axes, measure in zip(panels, curves.MEASURES, strict=True):
        for name, ways in (("plain", ("plain",)), ("weighted", ("weighted",)), ("variance", OTHER_PARTS)):
            x, kept, _ = curves.points(results, measure, ways)
            color = color_of(COLORS[name], theme)
            axes.plot(x, kept, linestyle="", marker=MARKERS[name] or "x", markersize=4, color=color, alpha=0.8)
        axes.axhline(1, color=color_of("full", theme), linestyle=(0, (1, 1.5)), linewidth=1)
        axes.set(xlabel=AXES[measure])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("of the accuracy gained")
    return figure


OTHER_PARTS = ("attention", "MLP", "half", "random", "matrices")


def sums(results, theme):
    """Draw what a sum keeps of a gain against figures that were to be seen before."""
    figure, panels = canvas(9.6, 3.2, 4, sharey=True)
    rows = curves.sums(results)
    for axes, (candidate, label) in zip(panels, SUM_AXES.items(), strict=True):
        for (relation, color), marker in zip(RELATIONS.items(), "so^", strict=True):
            some = [row for row in rows if row["relation"].startswith(relation)]
            axes.plot(
                [row[candidate] for row in some],
                [row["kept"] for row in some],
                linestyle="",
                marker=marker,
                markersize=4,
                color=color_of(color, theme),
                label=relation,
            )
        axes.axhline(1, color=color_of("full", theme), linestyle=(0, (1, 1.5)), linewidth=1)
        axes.set(xlabel=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("of the accuracy gained")
    panels[0].legend(fontsize=8, frameon=False, loc="lower right", labelcolor="linecolor")
    return figure


SUM_AXES = {
    "cosine": "cosine of the updates",
    "columns": "overlap of the outputs' spaces",
    "weighted_ratio": "‖Δ₂x‖/‖Δ₁x‖",
    "sum_change": "outputs moved by adding",
}
RELATIONS = {"one task": "rslora", "sentiment of two": "style", "sentiment and corpus": "standard"}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
