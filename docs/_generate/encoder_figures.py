"""Draw the figures of the study of a sentence encoder, from its results.

python docs/_generate/encoder_figures.py FOLDER
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from figures import canvas, write_figures
from matplotlib.ticker import PercentFormatter
from study_figures import color_of

from lowrank_core._figures import rank_ticks

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
    write_figures(folder, {name: partial(draw, results) for name, draw in figures.items()})


def ranks(results, theme):
    """Draw the accuracy by rank, extracted and trained by LoRA, between nothing and the whole, beside the variance."""
    figure, panels = canvas(9.6, 3.6, 2, sharey=True)
    for axes, task in zip(panels, ("movies", "corpus"), strict=True):
        seeds = results.seeds(task)
        for name, what in (("variance", "variance"), ("plain", "accuracy"), ("weighted", "accuracy")):
            shown = schedule.WEIGHTED_RANKS if name == "weighted" else schedule.PLAIN_RANKS
            way = "weighted" if name == "weighted" else "plain"
            values = [[results.part(task, seed, way, rank)[what] for rank in shown] for seed in seeds]
            band(axes, shown, np.array(values), name, theme)
        shown = schedule.RANKS if task == "movies" else (schedule.SUMMED_RANK,)
        trained = [[results.of("lora", task, seed, rank)["accuracy"] for rank in shown] for seed in seeds]
        band(axes, shown, np.array(trained), "lora", theme)
        for label, records in (
            ("the whole fine-tune", [results.of("full", task, seed) for seed in seeds]),
            ("its head alone", [results.part(task, seed, "nothing") for seed in seeds]),
        ):
            height = np.mean([record["accuracy"] for record in records])
            axes.axhline(height, color=color_of("full", theme), linestyle=(0, (1, 1.5)), linewidth=1)
            axes.annotate(label, (schedule.PLAIN_RANKS[-1], height), (0, 3), textcoords="offset points", ha="right")
        axes.set(title=TITLES[task], xlabel="rank r", xscale="log", ylim=(0.15, 1))
        rank_ticks(axes, schedule.PLAIN_RANKS)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("accuracy; variance captured")
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
    """Draw what is kept of the loss against each measure, for all parts of all fine-tunes."""
    figure, panels = canvas(9.6, 3.3, 4, sharey=True)
    for axes, measure in zip(panels, curves.MEASURES, strict=True):
        for label, (ways, color, marker) in KINDS_OF_PARTS.items():
            x, kept, _ = curves.points(results, measure, ways, "loss")
            scatter(axes, x, kept, label, color_of(color, theme), marker)
        axes.set(xlabel=AXES[measure])
        whole_line(axes, theme)
    panels[0].set_ylabel("loss kept")
    legend(panels[0])
    return figure


def scatter(axes, x, y, label, color, marker):
    """Draw points of one kind."""
    axes.plot(x, y, linestyle="", marker=marker, markersize=4, color=color, alpha=0.8, label=label)


def whole_line(axes, theme):
    """Draw the line of the whole fine-tune, and write fractions in percent."""
    axes.axhline(1, color=color_of("full", theme), linestyle=(0, (1, 1.5)), linewidth=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def legend(axes):
    """Write the legend of a panel above the figure."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles, labels, fontsize=9, frameon=False, labelcolor="linecolor", loc="outside upper left", ncols=3
    )


KINDS_OF_PARTS = {
    "plain truncation": (("plain",), "rslora", "s"),
    "weighted truncation": (("weighted",), "standard", "o"),
    "other parts": (("attention", "MLP", "half", "random", "matrices"), "extracted", "x"),
}


def sums(results, theme):
    """Draw what a sum keeps of a gain against figures of the pair."""
    figure, panels = canvas(9.6, 3.3, 4, sharey=True)
    rows = curves.sums(results)
    for axes, (candidate, label) in zip(panels, SUM_AXES.items(), strict=True):
        for relation, (color, marker) in RELATIONS.items():
            some = [row for row in rows if row["relation"].startswith(relation)]
            x, kept = ([row[name] for row in some] for name in (candidate, "loss kept"))
            scatter(axes, x, kept, relation, color_of(color, theme), marker)
        axes.set(xlabel=label)
        whole_line(axes, theme)
    panels[0].set_ylabel("loss kept")
    legend(panels[0])
    return figure


SUM_AXES = {
    "cosine": "cosine of the updates",
    "columns": "overlap of the outputs' spaces",
    "norm_ratio": "‖Δ₂‖/‖Δ₁‖",
    "output_ratio": "outputs moved by the other",
}
RELATIONS = {
    "one task": ("rslora", "s"),
    "sentiment of two corpora": ("style", "o"),
    "sentiment and corpus": ("standard", "^"),
}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
