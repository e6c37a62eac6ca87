"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.reports.completeness import completeness
from lowrank_core.cli.tables import add_by_block, heading, listed, note, section, table
from lowrank_core.cli.texts import RULE_LABELS, beginning, count, error_text, percent, shape_text
from lowrank_core.models import Plan, PlannedLayer
from lowrank_core.models.layer_kinds import by_kind

# Up to here a row is printed for every layer; beyond, for every kind of layer.
_FEW_LAYERS = 48


def plan(report: Plan, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a plan; in full, a row for every layer, however many there are."""
    yield _heading(report)
    each = full or len(report.layers) <= _FEW_LAYERS
    yield section("Layers" if each else "Kinds of layers", *(_layers(report) if each else _kinds(report)))
    yield section("One rank for all layers instead", *_uniform(report))
    if report.skipped:
        yield section("Not planned for", *listed(report.skipped, full=full))
    if report.failures:
        yield section("Failed", *listed(report.failures, full=True))
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
    )


def _layers(report: Plan) -> Iterator[RenderableType]:
    rows = table("layer", "m × n", "r", "α", "γ", "parameters", "variance", "best\nerror", names=1)
    add_by_block(rows, report.layers, _cells)
    yield rows
    yield from [note(line) for line in (beginning(report.layers),) if line]
    yield note(f"γ = {RULE_LABELS[report.rule]}, kept at every rank by α. A layer of rank 0 is skipped.")


def _cells(layer: PlannedLayer) -> list[str]:
    return [
        shape_text(layer.shape),
        str(layer.rank),
        "" if layer.alpha is None else f"{layer.alpha:.4g}",
        "" if layer.scaling is None else f"{layer.scaling:.4g}",
        f"{layer.parameters:,}",
        percent(layer.variance_captured),
        error_text(layer.best_error),
    ]


def _kinds(report: Plan) -> Iterator[RenderableType]:
    rows = table("kind", "layers", "least r", "largest r", "parameters", "least\nvariance", names=1)
    for kind, layers in by_kind(report.layers).items():
        ranks = [layer.rank for layer in layers]
        rows.add_row(
            kind,
            str(len(layers)),
            str(min(ranks)),
            str(max(ranks)),
            f"{sum(layer.parameters for layer in layers):,}",
            percent(min(layer.variance_captured for layer in layers)),
        )
    yield rows
    yield note("Every layer's own rank and alpha: --full, --json or --out.")


def _uniform(report: Plan) -> Iterator[RenderableType]:
    rows = table("", "r", "parameters", "variance", names=1)
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
