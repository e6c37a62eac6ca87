"""The history of a run for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.reports.completeness import completeness
from lowrank_core.cli.tables import failed, heading, listed, note, section, table
from lowrank_core.cli.texts import percent
from lowrank_core.models import HistoryRow, RunHistory
from lowrank_core.models.layer_kinds import in_natural_order, steps_by_kind


def history(report: RunHistory, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a history: a table for each kind of layer, in full for each, with a row for each step."""
    layers = count(len({row.name for row in report.rows}), "layer")
    yield heading(
        f"{count(len(report.paths), 'checkpoint')} of one run", f"{layers}; {report.paths[0]} to {report.paths[-1]}"
    )
    if full:
        for name in in_natural_order({row.name for row in report.rows}):
            yield section(name, _table({row.step: [row] for row in report.rows if row.name == name}))
    else:
        yield from _tables_of_kinds(report)
    yield note(
        "σ₁: the largest singular value; in σ₁: its part of the variance, σ₁²/N². Turned: the largest angle between "
        f"the {report.leading} leading directions of outputs and of inputs, and those at the step before."
    )
    if report.not_low_rank:
        yield section("Not low-rank, and not in the rows above", *listed(report.not_low_rank, full=full))
    if report.failures:
        yield section("Failed", *failed(report.failures, full=full))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    yield from completeness(complete=report.complete, failures=len(report.failures), compared_fraction=None)


def _tables_of_kinds(report: RunHistory) -> Iterator[RenderableType]:
    kinds = steps_by_kind(report.rows)
    for kind, steps in kinds.items():
        members = len(next(iter(steps.values())))
        title = f"{kind}{f', median of {members} layers' if members > 1 else ''}"
        yield section(title, _table(steps))
    if any(len(layers) > 1 for steps in kinds.values() for layers in steps.values()):
        yield note("\nEvery layer: --full, --csv or --json.")


def _table(steps: dict[int, list[HistoryRow]]) -> RenderableType:
    rows = table("step", "norm", "growth", "σ₁", "in σ₁", "eff.\nrank", "outputs\nturned", "inputs\nturned")
    before = 0.0
    for step, layers in sorted(steps.items()):
        norm = median(layer.norm for layer in layers)
        rows.add_row(
            str(step),
            f"{norm:.3g}",
            f"× {norm / before:.2f}" if before else "",
            f"{median(layer.largest_value for layer in layers):.3g}",
            percent(median(layer.leading_variance for layer in layers)),
            f"{median(layer.effective_rank for layer in layers):.1f}",
            _angle([layer.column_angle for layer in layers]),
            _angle([layer.row_angle for layer in layers]),
        )
        before = norm
    return rows


def _angle(angles: Sequence[float]) -> str:
    known = [angle for angle in angles if angle == angle]  # noqa: PLR0124 - NaN is not itself
    return f"{median(known):.1f}°" if known else ""
