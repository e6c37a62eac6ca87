"""An inspection for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.reports import base_tables, rounding_tables
from lowrank_core.cli.reports.completeness import alignment, completeness
from lowrank_core.cli.tables import FEW_LAYERS, add_by_block, heading, listed, note, rows_of_layers, section, table
from lowrank_core.cli.texts import RULE_LABELS, beginning, count, error_text, percent, shape_text
from lowrank_core.models import Inspection, LayerReport
from lowrank_core.models.inspection.report import VARIANCE_FRACTIONS
from lowrank_core.models.pairing.pairs import CheckpointPair

_RANKS_PER_TABLE = 6
_SOURCES_SHOWN = 6
VARIANCE_HEADINGS = tuple(f"{fraction:.0%}" for fraction in VARIANCE_FRACTIONS)


def inspection(report: Inspection, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of an inspection; in full, errors of every layer, however many there are."""
    each = full or len(report.layers) <= FEW_LAYERS
    yield _heading(report)
    yield from alignment(report.alignment)
    if report.layers:
        yield section("Layers", *_layers(report))
        what = "Relative error" if report.rules else "Best relative error"
        of_kinds = "" if each else ", median over the layers of a kind"
        yield section(f"{what} at rank r{of_kinds}", *_errors(report, each=each))
        yield section("All layers together", *_totals(report))
    if any(layer.base for layer in report.layers):
        of_kinds = "" if each else ", median over the layers of a kind"
        yield section(f"Beside the base{of_kinds}", *base_tables.beside_base(report.layers, report.totals, each=each))
    rounded = [layer for layer in report.layers if layer.rounding]
    if rounded:
        yield section("Rounding of the stored weights", *rounding_tables.rounding(rounded))
    if report.not_low_rank:
        yield section("Not low-rank, and not in the numbers above", *listed(report.not_low_rank, full=full))
    if report.failures:
        yield section("Failed", *listed(report.failures, full=True))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    if report.verdicts:
        yield section("Verdicts", Text(" ".join(verdict.sentence for verdict in report.verdicts)))
    yield from completeness(
        complete=report.complete, failures=len(report.failures), compared_fraction=report.compared_fraction
    )


def _is_adapter(report: Inspection) -> bool:
    return report.format != CheckpointPair.format


def _heading(report: Inspection) -> Text:
    totals = report.totals
    adapter = f"{report.path} ({report.format} adapter)"
    title = adapter if report.base is None else f"{adapter} on {report.base}"
    if not _is_adapter(report):
        title = f"{report.path} − {report.base}"
    stored = f", {totals.adapter_parameters:,} in the factors" if totals.adapter_parameters is not None else ""
    size = f"{count(totals.layers, 'layer')}, {totals.parameters:,} entries{stored}; norm {totals.norm:.4g}"
    return heading(title, size, beginning(report.layers))


def _layers(report: Inspection) -> Iterator[RenderableType]:
    adapter = _is_adapter(report)
    sources = Counter(layer.scaling_source for layer in report.layers)
    marks = {source: chr(ord("a") + place) for place, (source, _) in enumerate(sources.most_common(_SOURCES_SHOWN))}
    several = len(sources) > 1
    rows = table(
        "layer",
        "m × n",
        *(["r", "γ"] if adapter else []),
        "norm",
        "eff.\nrank",
        "stable\nrank",
        *VARIANCE_HEADINGS,
        names=1,
    )
    add_by_block(
        rows,
        report.layers,
        lambda layer: _cells(layer, f" {marks.get(layer.scaling_source, ' ')}" if several else ""),
    )
    yield rows
    if adapter:
        yield from (note(f"γ{' ' + mark if several else ''}: {source}") for source, mark in marks.items())
        if len(sources) > len(marks):
            yield note(f"… and {count(len(sources) - len(marks), 'other source')} of γ: --json has them.")
    else:
        shown = sources.most_common(_SOURCES_SHOWN)
        yield from (note(f"Update of {count(layers, 'layer')}: {source}.") for source, layers in shown)
    yield note(
        "Effective rank: exp of the entropy of σ/Σσ; stable rank: N²/σ₁². Last: the least rank for that much of the "
        "variance."
    )


def _cells(layer: LayerReport, mark: str) -> list[str]:
    adapted = [] if layer.scaling is None else [str(layer.rank), f"{layer.scaling:.4g}{mark}"]
    return [
        shape_text(layer.shape),
        *adapted,
        f"{layer.norm:.3g}",
        f"{layer.effective_rank:.1f}",
        f"{layer.stable_rank:.1f}",
        *(str(rank) for rank in layer.rank_for_variance.values()),
    ]


def _errors(report: Inspection, *, each: bool) -> Iterator[RenderableType]:
    first = "layer" if each else "kind"
    # Which rule a row is of needs saying only where there are several.
    labels = [""] if report.rules else []
    for chosen in _slices(report.ranks):
        columns = [f"r = {rank}" for rank in report.ranks[chosen]]
        rows = table(first, *labels, *columns, names=1 + len(labels))
        for title, layers in rows_of_layers(report.layers, each=each):
            for rule in ("best", *report.rules):
                errors = [(layer.best_error if rule == "best" else layer.errors[rule])[chosen] for layer in layers]
                rows.add_row(
                    title if rule == "best" else "",
                    *(RULE_LABELS.get(rule, rule) for _ in labels),
                    *(error_text(median(column)) for column in zip(*errors, strict=True)),
                )
        yield rows
    if report.rules:
        whose_alpha = "each layer's own α" if report.alpha is None else f"α = {report.alpha:g}"
        yield note(f"Under a rule: the best rank-r factors multiplied by γ, with {whose_alpha}. Best: γ = 1.")
    if not each:
        yield note("Every layer's own errors: --full, --csv or --json.")
    clamped = [layer for layer in report.layers if layer.ranks != report.ranks]
    if clamped:
        yield note(
            f"Ranks are clamped to a layer's largest, min(m, n): in {count(len(clamped), 'layer')}, to "
            f"{min(min(layer.shape) for layer in clamped)} in the smallest."
        )


def _totals(report: Inspection) -> Iterator[RenderableType]:
    totals = report.totals
    for chosen in _slices(report.ranks):
        rows = table("", *(f"r = {rank}" for rank in report.ranks[chosen]), names=1)
        rows.add_row("variance", *map(percent, totals.variance_captured[chosen]))
        rows.add_row("best error", *map(error_text, totals.best_error[chosen]))
        for rule, errors in totals.errors.items():
            rows.add_row(f"error, {RULE_LABELS.get(rule, rule)}", *map(error_text, errors[chosen]))
        yield rows
    if not totals.norm:
        return
    needed = ", ".join(
        f"{fraction:.0%} takes rank {rank} (error {error_text(totals.error_for_variance[fraction])})"
        for fraction, rank in totals.rank_for_variance.items()
    )
    ranks = ",".join(map(str, _ranks_to_try(report)))
    smaller = f": lowrank {_command(report)} OUT --rank {ranks} writes an adapter of each rank" if ranks else ""
    yield Text(
        f"To copy the update, with one rank for all layers and so much of its variance: {needed}. A task may need "
        f"less, which only a test on it can tell{smaller}."
    )


def _command(report: Inspection) -> str:
    """Return what writes an adapter of the update: its verb, and what that is given."""
    if not _is_adapter(report):
        return "extract BASE TUNED"
    return "resize ADAPTER" if report.base is None else "extract BASE ADAPTER"


def _ranks_to_try(report: Inspection) -> list[int]:
    """Return the requested ranks of which an adapter is smaller than the update itself."""
    largest = max(layer.singular_values.size for layer in report.layers)
    return [rank for rank in report.ranks if 0 < rank < largest]


def _slices(ranks: tuple[int, ...]) -> list[slice]:
    """Return the slices of ranks that fit beside each other in one table."""
    return [slice(start, start + _RANKS_PER_TABLE) for start in range(0, len(ranks), _RANKS_PER_TABLE)]
