"""Draw the figures of the study, from its results.

python docs/_generate/study_figures.py FOLDER
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from figures import canvas, write_figures
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from lowrank_core._figures import GREY, LOOKS, ORANGE, Look, rank_ticks

sys.path.append(str(Path(__file__).parents[1] / "study"))

import analysis
import findings

NAMES = {
    "standard": LOOKS["standard"],
    "rslora": LOOKS["rslora"],
    "twice": Look("α = 2r", ORANGE, (0, (3, 1, 1, 1)), "D"),
    "full": replace(LOOKS["best"], label="full fine-tuning"),
    "extracted": Look("extracted", GREY, (0, (5, 1)), "P"),
    "style": LOOKS["style"],
    "facts": LOOKS["facts"],
}
DARK = {"twice": "#E3B23C", "full": "#FFFFFF", "extracted": "#A6A6A6"}
RULES = tuple(findings.LABELS)


def write_all(folder):
    """Write every figure in every theme into a folder."""
    study = analysis.load()
    figures = {
        "study-spectra": spectra,
        "study-ranks": ranks,
        "study-collapse": collapse,
        "study-prediction": prediction,
        "study-extraction": extraction,
    }
    write_figures(folder, {name: partial(draw, study) for name, draw in figures.items()})


def spectra(study, theme):
    """Draw the variance of the full updates that rank r captures, for both tasks."""
    figure, panels = canvas(9.6, 3.3, 2, sharey=True)
    for axes, (title, kinds) in zip(panels, (("attention", analysis.ATTENTION), ("MLP", analysis.MLP)), strict=True):
        for task, name in zip(study.sizes.tasks, ("style", "facts"), strict=False):
            captured = study.captured(task, kinds)
            shown = np.arange(1, captured.shape[1] + 1)
            band(axes, shown, captured, name, theme, marker="")
            middle = captured.mean(0)
            place = int(np.argmax(middle > (0.62 if name == "style" else 0.45)))
            offset, side = ((-7, 5), "right") if name == "style" else ((8, -8), "left")
            beside(axes, name, (shown[place], middle[place]), offset, side, name, theme)
        axes.axhline(0.9, color=theme.text, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set(title=title, xlabel="rank r", xscale="log", ylim=(0, 1.04))
        rank_ticks(axes, study.sizes.ranks)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("variance captured")
    panels[0].annotate("90 %", (1, 0.9), xytext=(0, 3), textcoords="offset points", fontsize=8.5)
    return figure


def ranks(study, theme):
    """Draw the recall of LoRA by rank and rule, beside that of full fine-tuning and of extracted adapters."""
    figure, panels = canvas(9.6, 3.5, 2, sharey=True)
    for axes, task in zip(panels, study.sizes.tasks, strict=False):
        shown = study.sizes.ranks
        for rule in RULES:
            recalls = [study.at("recall", "best", task, "adamw", rule, rank) for rank in shown]
            band(axes, shown, np.transpose(recalls), rule, theme)
        extracted = [study.extracted("recall", task, rank) for rank in shown]
        band(axes, shown, np.transpose(extracted), "extracted", theme)
        full_line(axes, study.at("recall", "best", task, "adamw"), theme)
        axes.set(title=title_of(task), xlabel="rank r", xscale="log", ylim=(-0.03, 1.06))
        rank_ticks(axes, shown)
    panels[0].set_ylabel("recall (answers right in every word)")
    key(panels[0], (*RULES, "extracted", "full"), theme, (0.52, 0.42))
    return figure


def collapse(study, theme):
    """Draw the loss on facts against rank, with the rate kept from one rank and with the best of each."""
    figure, panels = canvas(9.6, 3.6, 2, sharey=True)
    facts = study.sizes.tasks[1]
    arms = (("sgd", study.sizes.sgd_ranks), ("adamw", study.sizes.ranks))
    for axes, (optimizer, shown) in zip(panels, arms, strict=True):
        for rule in RULES:
            for choice, changes in (("kept", {}), ("best", {"markerfacecolor": "none", "linewidth": 0.9})):
                losses = [study.at("loss", choice, facts, optimizer, rule, rank) for rank in shown]
                band(axes, shown, np.transpose(losses), rule, theme, **changes)
        full_line(axes, study.at("loss", "best", facts, optimizer), theme)
        axes.set(title=f"facts, {findings.OPTIMIZERS[optimizer]}", xlabel="rank r", xscale="log", yscale="log")
        rank_ticks(axes, shown)
        axes.axvline(analysis.TUNED_AT, color=theme.text, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1, 3]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("loss (nats a word)")
    key(panels[0], (*RULES, "full"), theme, (0.52, 0.95))
    return figure


def prediction(study, theme):
    """Draw for each task the ranks that were enough, and just below them the ranks by the measures."""
    figure, (axes,) = canvas(9.6, 3.6, 1)
    style, *facts = study.sizes.tasks
    tasks = [style, *sorted(facts, key=lambda task: int(task.split()[1]))]
    rows = np.arange(len(tasks))
    for name, source, marker, side in (
        ("twice", ("best", "twice"), "D", "right"),
        ("extracted", "extracted", "P", "left"),
    ):
        needed = [np.median(analysis.rank_enough(study, "recall", task, source)) for task in tasks]
        axes.plot(needed, rows + 0.14, marker, color=color_of(name, theme), markersize=7)
        label = {"twice": "LoRA needed", "extracted": "extraction needed"}[name]
        beside(axes, label, (needed[-1], rows[-1] + 0.14), (4 if side == "left" else -4, 8), side, name, theme)
    for measure, label, marker in (
        ("stable rank", "stable rank", "x"),
        ("variance 0.9", "90 % of the variance", "|"),
        ("effective rank", "effective rank", "+"),
    ):
        ranks = [study.measure(measure, task, analysis.ATTENTION + analysis.MLP).mean() for task in tasks]
        axes.plot(ranks, rows - 0.14, marker, color=color_of("full", theme), markersize=8, markeredgewidth=1.8)
        beside(axes, label, (ranks[0], -0.14), (0, -15), "center", "full", theme)
    axes.set_yticks(rows, tasks)
    axes.set(xlabel="rank", xscale="log", xlim=(0.8, 80), ylim=(-0.75, rows[-1] + 0.7))
    rank_ticks(axes, study.sizes.ranks)
    return figure


def extraction(study, theme):
    """Draw the recall of extracted adapters, with the ranks that the library picks."""
    figure, panels = canvas(9.6, 3.4, 2, sharey=True)
    for axes, task in zip(panels, study.sizes.tasks, strict=False):
        shown = study.sizes.ranks
        band(axes, shown, np.transpose([study.extracted("recall", task, rank) for rank in shown]), "extracted", theme)
        full_line(axes, study.at("recall", "best", task, "adamw"), theme)
        for pick, label, offset, side in (
            ("stable rank", "stable rank", (7, -12), "left"),
            ("variance 0.9", "90", (-3, -15), "center"),
            ("variance 0.95", "95", (0, -15), "center"),
            ("variance 0.99", "99 %", (0, -15), "center"),
        ):
            place = study.extracted("rank", task, pick).mean(), study.extracted("recall", task, pick).mean()
            axes.plot(*place, "o", color=color_of("rslora", theme), markersize=6)
            beside(axes, label, place, offset, side, "rslora", theme)
        axes.set(title=title_of(task), xlabel="rank r (mean over the matrices)", xscale="log", ylim=(-0.03, 1.06))
        rank_ticks(axes, shown)
    panels[0].set_ylabel("recall (answers right in every word)")
    return figure


def beside(axes, label, place, offset, side, name, theme):
    """Write a small label near a point, in a quantity's colour."""
    axes.annotate(
        label,
        place,
        xytext=offset,
        textcoords="offset points",
        ha=side,
        fontsize=8.5,
        color=color_of(name, theme),
        annotation_clip=False,
    )


def band(axes, x, values, name, theme, **changes):
    """Draw the mean over seeds and their range as a band, with a gap where a seed diverged."""
    look = NAMES[name]
    mean = np.where(np.isfinite(values).all(0), values.mean(0), np.nan)
    drawn = {"linestyle": look.line, "marker": look.marker or None} | changes
    axes.plot(x, mean, color=color_of(name, theme), **drawn)
    low, high = (np.where(np.isfinite(mean), edge, np.nan) for edge in (values.min(0), values.max(0)))
    axes.fill_between(x, low, high, color=color_of(name, theme), alpha=0.16, linewidth=0)


def full_line(axes, values, theme):
    """Draw the mean of full fine-tuning as a horizontal line, and the range of its seeds."""
    look = NAMES["full"]
    axes.axhline(values.mean(), color=color_of("full", theme), linestyle=look.line)
    axes.axhspan(values.min(), values.max(), color=color_of("full", theme), alpha=0.1, linewidth=0)


def key(axes, names, theme, corner):
    """Write a legend in a corner of a panel: each label in its colour, after its line and marker."""
    x, y = corner
    for row, name in enumerate(names):
        look = NAMES[name]
        place = y - 0.085 * row
        axes.plot(
            [x, x + 0.035, x + 0.07], [place] * 3, color=color_of(name, theme), linestyle=look.line,
            marker=look.marker or None, markevery=[1], transform=axes.transAxes,
        )  # fmt: skip
        axes.text(
            x + 0.09, place, look.label, color=color_of(name, theme), transform=axes.transAxes, va="center", fontsize=9
        )


def title_of(task):
    """Return the title of a task, without the number of facts, which the page has."""
    return task.split()[0]


def color_of(name, theme):
    """Return the colour of a quantity on a theme's background."""
    if name in theme.colors:
        return theme.colors[name]
    return NAMES[name].color if theme.name == "light" else DARK[name]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
