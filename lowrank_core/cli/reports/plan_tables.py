"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count, shape_text
from lowrank_core.cli.layer_tables import Column, figure, layer_table, property_of, spanned, total
from lowrank_core.cli.reports.completeness import completeness
from lowrank_core.cli.tables import failed, heading, listed, note, section, table
from lowrank_core.cli.texts import RULE_LABELS, beginning, error_text, percent
from lowrank_core.models import Plan, PlannedLayer


def plan(report: Plan, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a plan; in full, a row for every layer, however many there are."""
    yield _heading(report)
    yield section("Layers", *_layers(report, full=full))
    yield section("One rank for all layers instead", *_uniform(report))
    if report.skipped:
        yield section("Not planned for", *listed(report.skipped, full=full))
    if report.failures:
        yield section("Failed", *failed(report.failures, full=full))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    yield from completeness(complete=report.complete, failures=len(report.failures), compared_fraction=None)


def _heading(report: Plan) -> Text:
    budget = (
        f"{report.budget.parameters:,} parameters"
        if report.budget.parameters is not None
        else f"{report.budget.variance:.4g} of the variance"
    )
    kept = sum(layer.rank > 0 for layer in report.layers)
    gap = report.upper_bound - report.variance
    # A smaller gap comes from two sums in different orders.
    near = "the best possible" if gap < 1e-12 else f"within {100 * gap:.2g} points of the best"
    return heading(
        report.path if report.base is None else f"{report.path} − {report.base}",
        f"budget: {budget}; {report.budget.objective} objective",
        f"{report.parameters:,} parameters in {kept} of {count(len(report.layers), 'layer')} keep "
        f"{percent(report.variance)} of the variance",
        f"no other ranks with as many parameters keep more than {percent(report.upper_bound)}: {near}",
        beginning(report.layers),
    )


_COLUMNS: tuple[Column[PlannedLayer], ...] = (
    property_of("m × n", lambda layer: shape_text(layer.shape)),
    spanned("r", lambda layer: layer.rank, "d"),
    spanned("α", lambda layer: layer.alpha, ".4g"),
    spanned("γ", lambda layer: layer.scaling, ".4g"),
    total("parameters", lambda layer: layer.parameters, "{:,}".format),
    figure("variance", lambda layer: layer.variance_captured, percent, min),
    figure("best\nerror", lambda layer: layer.best_error, error_text),
)


def _layers(report: Plan, *, full: bool) -> Iterator[RenderableType]:
    yield from layer_table(report.layers, _COLUMNS, full=full, files="--full, --json or --out")
    yield note(f"γ = {RULE_LABELS[report.rule]}, kept at every rank by α. A layer of rank 0 is skipped.")


def _uniform(report: Plan) -> Iterator[RenderableType]:
    rows = table("", "r", "parameters", "variance")
    for title, rank, kept in (
        ("this plan", "by layer", report),
        ("the largest that costs no more", str(report.same_parameters.rank), report.same_parameters),
        ("the least that keeps no less", str(report.same_variance.rank), report.same_variance),
    ):
        rows.add_row(title, rank, f"{kept.parameters:,}", percent(kept.variance))
    yield rows
    more = 100 * (report.variance - report.same_parameters.variance)
    fraction = report.parameters / report.same_variance.parameters
    yield note(
        f"The plan keeps {more:.2f} points more than any one rank within its parameters, and needs "
        f"{100 * fraction:.0f} % of the parameters of the one rank that keeps as much."
    )
