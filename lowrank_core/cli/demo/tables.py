"""The demo for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.demo.experiments import RULES, Experiments, Learning, Reconstruction
from lowrank_core.cli.demo.verdicts import Verdict, name_of, rate_of
from lowrank_core.cli.tables import heading, note, prose_table, section, table

_OPTIMIZER_LABELS = {"sgd": "descent", "adam": "Adam"}
_OUTCOME_STYLES = {"holds": "bold green", "holds in part": "bold yellow", "fails": "bold red", "undecided": "bold"}
_LEADING = 8
_TRUNCATION_NOTE = (
    "Best is γ = 1 (Eckart–Young). Any other γ has error √((1−γ)²·H + T) / N, where H is what rank r captures of the "
    "squared norm N² and T = N² − H is the rest."
)


def demo(results: Experiments, verdicts: Sequence[Verdict]) -> Iterator[RenderableType]:
    """Yield the sections of the demo."""
    settings = results.settings
    yield heading(
        "Style, facts and the rank of an update",
        f"{settings.size} × {settings.size}, α = {settings.alpha:g}, seed {settings.seed}",
    )
    yield section("1  What rank r can capture", _leading(results), _captured(results))
    yield section("2  What a scaling rule multiplies by", _scalings(results))
    yield section("3  Truncate by SVD, then scale: relative error", _reconstructions(results), note(_TRUNCATION_NOTE))
    yield section(
        "4  Learn the facts spectrum from B = 0: relative error",
        _learned(results),
        note(_learning_note(results)),
    )
    yield section(
        f"5  The two experiments on the facts, side by side ({name_of(results.learning[0])})",
        _side_by_side(results),
        Text(),
        _reach_of_proof(),
    )
    yield section("6  The article's claims, judged by the numbers above", _verdicts(verdicts))


def _leading(results: Experiments) -> Text:
    lines = [
        f"{update.name:<5}  {'  '.join(f'{value:.2f}' for value in update.singular_values[:_LEADING])}"
        + ("  …" if update.singular_values.size > _LEADING else "")
        for update in (results.style, results.facts)
    ]
    return Text("Leading singular values\n" + "\n".join(lines) + "\n")


def _captured(results: Experiments) -> Table:
    rows = table("r", "variance:\nstyle", "facts", "best error:\nstyle", "facts", names=0)
    for rank in results.settings.ranks:
        rows.add_row(
            str(rank),
            *(f"{100 * update.captured[rank - 1]:.4f} %" for update in (results.style, results.facts)),
            *(f"{update.best[rank - 1]:.6f}" for update in (results.style, results.facts)),
        )
    return rows


def _scalings(results: Experiments) -> Table:
    scalings = results.scalings
    rows = table("r", "γ:\nα/r", "α/√r", "gain γ²r:\nα/r", "α/√r", names=0)
    for row, rank in enumerate(scalings.ranks):
        columns = [numbers[rule] for numbers in (scalings.gamma, scalings.gain) for rule in RULES]
        rows.add_row(str(rank), *(f"{column[row]:.5g}" for column in columns))
    return rows


def _reconstructions(results: Experiments) -> Table:
    rows = table("r", "style:\nbest", "α/r", "α/√r", "facts:\nbest", "α/r", "α/√r", names=0)
    for rank in results.settings.ranks:
        rows.add_row(str(rank), *_errors(results.style, rank), *_errors(results.facts, rank))
    return rows


def _errors(update: Reconstruction, rank: int) -> list[str]:
    columns = (update.best, *(update.errors[rule] for rule in RULES))
    return [f"{column[rank - 1]:.6f}" for column in columns]


def _learned(results: Experiments) -> Table:
    rows = table(
        "r", "best", *(heading for learning in results.learning for heading in _learning_headings(learning)), names=0
    )
    for row, rank in enumerate(results.learning[0].ranks):
        errors = (learning.errors[rule][row] for learning in results.learning for rule in RULES)
        rows.add_row(str(rank), _error(results.learning[0].best[row]), *(_error(error) for error in errors))
    return rows


def _learning_headings(learning: Learning) -> tuple[str, str]:
    return f"{_OPTIMIZER_LABELS[learning.optimizer]}\n{rate_of(learning)}:\nα/r", "α/√r"


def _error(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "diverged"


def _learning_note(results: Experiments) -> str:
    first = results.learning[0]
    largest = max(_largest(learning) for learning in results.learning)
    return (
        f"{first.steps} steps, mean of {first.repeats} starts; their standard deviation is at most {largest:.3f}. "
        "Gradient descent sees the spectrum alone; Adam, which is not rotation-invariant, sees the same spectrum in "
        "random bases. No update of rank r is below the best."
    )


def _largest(learning: Learning) -> float:
    spread: NDArray[np.float64] = np.concatenate(list(learning.spread.values()))
    return float(np.max(spread[np.isfinite(spread)], initial=0.0))


def _side_by_side(results: Experiments) -> Table:
    facts, descent = results.facts, results.learning[0]
    rows = table("r", "truncated:\nbest", "α/r", "α/√r", "learned:\nbest", "α/r", "α/√r", names=0)
    for row, rank in enumerate(descent.ranks):
        truncated = [errors[rank - 1] for errors in (facts.best, *(facts.errors[rule] for rule in RULES))]
        learned = [errors[row] for errors in (descent.best, *(descent.errors[rule] for rule in RULES))]
        rows.add_row(str(rank), *map(_error, truncated + learned))
    return rows


def _reach_of_proof() -> Table:
    rows = prose_table("", "truncated, then scaled", "learned from B = 0")
    rows.add_row(
        "can\nprove",
        "The most that rank r can capture, and what a γ does to factors that already have the right size.",
        "How far a fixed number of steps gets under each γ, at this rate and from this start.",
    )
    rows.add_row(
        "cannot\nprove",
        "Which rule trains better: these factors were never trained under it, so every γ ≠ 1 is only a mistake.",
        "What another rate for each rank would reach, nor how a real loss behaves: this one is the distance to the "
        "update itself.",
    )
    return rows


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    rows = Table.grid(padding=(0, 2, 1, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(ratio=1)
    for verdict in verdicts:
        outcome = Text(verdict.outcome.upper(), style=_OUTCOME_STYLES[verdict.outcome])
        rows.add_row(outcome, Text.assemble(verdict.claim, ("\n" + verdict.because, "dim")))
    return rows
