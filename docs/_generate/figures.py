"""Draw every figure of the site as SVG, for light and for dark pages, from results of the library.

python docs/_generate/figures.py FOLDER [FIGURE ...]
python docs/_generate/figures.py docs/_static answers    # that of the README
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from lowrank_core import reconstruction_error, rslora, spectrum, standard
from lowrank_core._figures import LOOKS, style
from lowrank_core.cli.demo.experiments import Settings
from lowrank_core.cli.demo.experiments import run as run_article
from lowrank_core.models import inspect

sys.path[:0] = [str(Path(__file__).parents[1] / "examples")]

import tiny_model  # noqa: E402 - the folder above comes first


@dataclass(frozen=True)
class Theme:
    """Colours that are legible on one background: Okabe and Ito's, lightened for the dark one."""

    name: str
    text: str
    faint: str
    colors: dict


THEMES = (
    Theme("light", "#222222", "#e2e2e2", {name: look.color for name, look in LOOKS.items()}),
    Theme(
        "dark",
        "#d8d8d8",
        "#3c3c40",
        {
            "standard": "#F28A4B",
            "rslora": "#62B8EE",
            "unscaled": "#D79AC6",
            "best": "#FFFFFF",
            "style": "#4BCBA0",
            "facts": "#D79AC6",
        },
    ),
)


def write_all(folder, only=()):
    """Write every figure, or those in `only`, in every theme, into a folder."""
    article = run_article(Settings())
    report = inspected_tiny_model()
    figures = {
        "answers": lambda theme: answers(article, report, theme),
        "scaled-error": scaled_error,
        "truncated": lambda theme: truncated(article, theme),
        "learned": lambda theme: learned(article, theme),
        "curves": lambda theme: curves(article, theme),
    }
    write_figures(folder, {name: figures[name] for name in only or figures})


def write_figures(folder, figures):
    """Write what functions of a theme draw, by the names of the figures, in every theme into a folder."""
    for theme in THEMES:
        with style():
            mpl.rcParams.update(theme_parameters(theme))
            for name, draw in figures.items():
                draw(theme).savefig(Path(folder, f"{name}-{theme.name}.svg"), transparent=True, metadata={"Date": None})


def theme_parameters(theme):
    """Return the settings of matplotlib for a theme."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    sizes = {"font.size": 9.5, "axes.titlesize": 10.5, "lines.linewidth": 1.8, "lines.markersize": 4.5}
    return dict.fromkeys(inked, theme.text) | sizes | {"grid.color": theme.faint, "grid.linewidth": 0.6}


def inspected_tiny_model():
    """Return the inspection of the two checkpoints of the example, as in the guides."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model.main(Path(folder))
        return inspect(Path(folder, "tuned"), Path(folder, "base"))


def answers(article, report, theme):
    """Draw what rank r captures, the error under a scaling rule, and the rank that each layer needs."""
    figure, (captured, learnt, needed) = canvas(9.6, 3.2, 3)
    for update in (article.style, article.facts):
        line(captured, update.ranks, update.captured, update.name, theme, marker="")
    write(captured, (30, 0.93), "style", "style", theme)
    write(captured, (34, 0.62), "facts", "facts", theme)
    captured.set(title="How much can rank r capture?", xlabel="rank r", ylabel="variance captured", ylim=(0, 1.04))
    captured.yaxis.set_major_formatter(PercentFormatter(1.0))
    captured.xaxis.set_major_locator(FixedLocator([1, 16, 32, 48, 64]))

    learning_panel(learnt, article.learning[0], theme)
    learnt.set(title="What does my scaling rule do?", ylabel="relative error after 300 steps")

    layers = report.layers[::-1]
    rows = np.arange(len(layers))
    shades = (("90", "best"), ("95", "rslora"), ("99 %", "standard"))
    widest = max(rows, key=lambda row: layers[row].rank_for_variance[0.99])
    for place, (label, color) in enumerate(shades):
        ranks = [list(layer.rank_for_variance.values())[place] for layer in layers]
        needed.plot(ranks, rows, "osD"[place], color=theme.colors[color])
        needed.annotate(
            label,
            (ranks[widest], widest),
            xytext=((-4, 0, 4)[place], 7),
            textcoords="offset points",
            ha="center",
            color=theme.colors[color],
            fontsize=8.5,
        )
    names = [layer.name.removeprefix("model.layers.") for layer in layers]
    needed.set(title="Which rank per layer?", xlabel="rank for this much variance", xlim=(0, 64))
    needed.set_yticks(rows, names)
    needed.set_ylim(-0.6, len(layers) - 0.2)
    needed.xaxis.set_major_locator(FixedLocator([0, 16, 32, 48, 64]))
    return figure


def scaled_error(theme):
    """Draw the error of a truncation against the factor that it is multiplied by."""
    values = np.linspace(3.0, 0.5, 64)
    facts = spectrum(np.diag(values))
    gammas = np.linspace(0.0, 4.0, 201)
    figure, (axes,) = canvas(6.4, 3.2, 1)
    looks = {8: ("standard", "o"), 32: ("rslora", "s"), 64: ("style", "^")}
    for rank, (name, marker) in looks.items():
        color = theme.colors[name]
        errors = reconstruction_error(facts, rank, gammas)
        axes.plot(gammas, errors, color=color)
        axes.annotate(f"r = {rank}", (gammas[-1], errors[-1]), xytext=(5, -3), textcoords="offset points", color=color)
        for rule, fill in ((standard, color), (rslora, "none")):
            gamma = float(rule(16, rank))
            if gamma <= gammas[-1]:
                error = float(reconstruction_error(facts, rank, gamma))
                axes.plot(gamma, error, marker, color=color, markerfacecolor=fill, markersize=6)
    axes.axhline(1.0, color=theme.text, linewidth=0.8)
    axes.annotate("no adapter", (0.1, 1.0), xytext=(0, 3), textcoords="offset points", fontsize=8.5)
    axes.axvline(1.0, color=theme.text, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.axvline(2.0, color=theme.text, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set(xlabel="factor γ on the best rank-r truncation", ylabel="relative error", ylim=(0, 3), xlim=(0, 4.0))
    axes.xaxis.set_major_locator(FixedLocator([0, 1, 2, 3, 4]))
    return figure


def truncated(article, theme):
    """Draw the article's experiment: truncated by SVD, multiplied by γ."""
    figure, panels = canvas(9.6, 3.3, 2, sharey=True)
    ranks = article.settings.ranks
    for axes, update in zip(panels, (article.style, article.facts), strict=True):
        shown = update.ranks <= max(ranks)
        line(axes, update.ranks[shown], update.best[shown], "best", theme)
        for rule in ("standard", "rslora"):
            line(axes, ranks, update.at(update.errors[rule], ranks), rule, theme)
            write_at_end(axes, max(ranks), update.at(update.errors[rule], ranks)[-1], rule, theme)
        write_at_end(axes, max(ranks), update.best[max(ranks) - 1], "best", theme)
        axes.axhline(1.0, color=theme.text, linewidth=0.8)
        if update is article.style:
            axes.annotate("no adapter", (2, 1.0), xytext=(0, 3), textcoords="offset points", fontsize=8.5)
        axes.set(title=f"{update.name}, truncated and scaled", xlabel="rank r", xscale="log", yscale="log")
        rank_axis(axes, ranks)
        axes.yaxis.set_major_locator(FixedLocator([0.01, 0.1, 1, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("relative error")
    return figure


def learned(article, theme):
    """Draw the other experiment: learned from B = 0, by gradient descent and by Adam at two rates."""
    figure, panels = canvas(9.6, 3.2, 3, sharey=True)
    titles = {"sgd": "gradient descent", "adam": "Adam"}
    for axes, learning in zip(panels, article.learning, strict=True):
        learning_panel(axes, learning, theme)
        axes.set_title(f"{titles[learning.optimizer]}, rate {learning.learning_rate:g}")
    panels[0].set_ylabel("relative error")
    return figure


def curves(article, theme):
    """Draw learning curves of gradient descent at three ranks."""
    learning = article.learning[0]
    figure, panels = canvas(9.6, 3.0, 3, sharey=True)
    steps = np.arange(learning.steps + 1)
    for axes, rank in zip(panels, (8, 32, 64), strict=True):
        row = int(np.flatnonzero(learning.ranks == rank)[0])
        ends = {"best": learning.best[row]}
        for rule in ("standard", "rslora"):
            line(axes, steps, learning.curves[rule][row], rule, theme, marker="")
            ends[rule] = learning.curves[rule][row, -1]
        line(axes, [0, learning.steps], [learning.best[row]] * 2, "best", theme)
        write_ends(axes, learning.steps, ends, theme)
        axes.set(title=f"rank {rank}", xlabel="step", xlim=(0, learning.steps * 1.32), ylim=(-0.03, 1.04))
        axes.xaxis.set_major_locator(FixedLocator([0, 100, 200, 300]))
    panels[0].set_ylabel("relative error")
    return figure


def learning_panel(axes, learning, theme):
    """Draw the error after learning against rank, for both rules, with the best possible."""
    line(axes, learning.ranks, learning.best, "best", theme)
    ends = {"best": learning.best[-1]}
    for rule in ("standard", "rslora"):
        line(axes, learning.ranks, learning.errors[rule], rule, theme)
        ends[rule] = learning.errors[rule][-1]
    write_ends(axes, learning.ranks[-1], ends, theme)
    axes.set(xlabel="rank r", xscale="log", ylim=(-0.05, 1.06))
    rank_axis(axes, learning.ranks)


def canvas(width, height, panels, **options):
    """Return a figure with a row of panels, and the panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def line(axes, x, y, name, theme, **changes):
    """Draw a quantity in its colour, line style and marker."""
    look = LOOKS[name]
    drawn = {"linestyle": look.line, "marker": look.marker or None} | changes
    axes.plot(x, y, color=theme.colors[name], **drawn)


def write(axes, where, text, name, theme):
    """Write a label in a quantity's colour."""
    axes.annotate(text, where, color=theme.colors[name])


def write_at_end(axes, x, y, name, theme):
    """Write a quantity's label at the right end of its line."""
    label = {"best": "best"}.get(name, LOOKS[name].label)
    axes.annotate(label, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=theme.colors[name])


def write_ends(axes, x, ends, theme):
    """Write the labels at the ends of lines, one above the other where the lines end close together."""
    place = -np.inf
    for name in sorted(ends, key=ends.get):
        place = max(ends[name], place + 0.085)
        write_at_end(axes, x, place, name, theme)


def rank_axis(axes, ranks):
    """Label a logarithmic axis with ranks, and leave space for labels at its end."""
    # Labels of 32, 48 and 64 would overlap: the last is shown, and those well below it.
    shown = [rank for rank in ranks if rank == max(ranks) or 1.6 * rank < max(ranks)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_xlim(min(ranks) * 0.9, max(ranks) * 2.1)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target, sys.argv[2:])
