"""An inspection for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count, shape_text
from lowrank_core.cli.layer_tables import Column, figure, layer_table, property_of, spanned
from lowrank_core.cli.reports import base_tables, rounding_tables
from lowrank_core.cli.reports.completeness import alignment, completeness
from lowrank_core.cli.tables import failed, heading, listed, note, section, table
from lowrank_core.cli.texts import RULE_LABELS, beginning, error_text, percent
from lowrank_core.models import Inspection, LayerReport
from lowrank_core.models.inspection.report import VARIANCE_FRACTIONS
from lowrank_core.models.pairing.pairs import CheckpointPair

_SOURCES_SHOWN = 6
VARIANCE_HEADINGS = tuple(f"{fraction:.0%}" for fraction in VARIANCE_FRACTIONS)


def inspection(report: Inspection, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of an inspection; in full, every layer, however many there are."""
    yield _heading(report)
    yield from alignment(report.alignment)
    if report.layers:
        yield section("Layers", *_layers(report, full=full))
        what = "Relative error" if report.rules else "Best relative error"
        yield section(f"{what} at rank r", *_errors(report, full=full))
        yield section("All layers together", *_totals(report))
    if any(layer.base for layer in report.layers):
        yield section("Beside the base", *base_tables.beside_base(report.layers, report.totals, full=full))
    rounded = [layer for layer in report.layers if layer.rounding]
    if rounded:
        yield section("Rounding of the stored weights", *rounding_tables.rounding(rounded, full=full))
    if report.not_low_rank:
        yield section("Not low-rank, and not in the numbers above", *listed(report.not_low_rank, full=full))
    if report.failures:
        yield section("Failed", *failed(report.failures, full=full))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    if report.verdicts:
        yield section("Verdicts", Text(" ".join(verdict.sentence for verdict in report.verdicts)))
    yield from completeness(
        complete=report.complete,
        failures=len(report.failures),
        compared_fraction=report.compared_fraction,
        all_in_layers=not report.not_low_rank,
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


def _layers(report: Inspection, *, full: bool) -> Iterator[RenderableType]:
    sources = Counter(layer.scaling_source for layer in report.layers)
    marks = {source: chr(ord("a") + place) for place, (source, _) in enumerate(sources.most_common(_SOURCES_SHOWN))}
    several = len(sources) > 1

    def mark(layer: LayerReport) -> str:
        return f" {marks.get(layer.scaling_source, ' ')}" if several else ""

    settings: list[Column[LayerReport]] = [
        spanned("r", lambda layer: layer.rank, "d"),
        spanned("γ", lambda layer: layer.scaling, ".4g", mark),
    ]
    adapter = _is_adapter(report)
    shape: Column[LayerReport] = property_of("m × n", lambda layer: shape_text(layer.shape))
    yield from layer_table(report.layers, [shape, *(settings if adapter else []), *_FIGURES], full=full)
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


def _rank_for(fraction: float) -> Callable[[LayerReport], float]:
    return lambda layer: layer.rank_for_variance[fraction]


_FIGURES: tuple[Column[LayerReport], ...] = (
    figure("norm", lambda layer: layer.norm, "{:.3g}".format),
    figure("eff.\nrank", lambda layer: layer.effective_rank, "{:.1f}".format),
    figure("stable\nrank", lambda layer: layer.stable_rank, "{:.1f}".format),
    *(figure(f"{fraction:.0%}", _rank_for(fraction), "{:g}".format) for fraction in VARIANCE_FRACTIONS),
)


def _errors(report: Inspection, *, full: bool) -> Iterator[RenderableType]:
    lines = [_errors_under(rule, report) for rule in ("best", *report.rules)]
    yield from layer_table(report.layers, *lines, full=full)
    if report.rules:
        whose_alpha = "each layer's own α" if report.alpha is None else f"α = {report.alpha:g}"
        yield note(f"Under a rule: the best rank-r factors multiplied by γ, with {whose_alpha}. Best: γ = 1.")
    clamped = [layer for layer in report.layers if layer.ranks != report.ranks]
    if clamped:
        yield note(
            f"Ranks are clamped to a layer's largest, min(m, n): in {count(len(clamped), 'layer')}, to "
            f"{min(min(layer.shape) for layer in clamped)} in the smallest."
        )


def _errors_under(rule: str, report: Inspection) -> list[Column[LayerReport]]:
    """Return the columns of a line: its rule, which needs saying only of several, and each rank's error."""
    label: list[Column[LayerReport]] = [Column("", lambda _: RULE_LABELS.get(rule, rule))] if report.rules else []
    return [*label, *(_error(rule, place, rank) for place, rank in enumerate(report.ranks))]


def _error(rule: str, place: int, rank: int) -> Column[LayerReport]:
    """Return the column of a rank's error, under a rule or the best possible."""

    def value(layer: LayerReport) -> float:
        return float((layer.best_error if rule == "best" else layer.errors[rule])[place])

    return figure(f"r = {rank}", value, error_text)


def _totals(report: Inspection) -> Iterator[RenderableType]:
    totals = report.totals
    rows = table("", *(f"r = {rank}" for rank in report.ranks))
    rows.add_row("variance", *map(percent, totals.variance_captured))
    rows.add_row("best error", *map(error_text, totals.best_error))
    for rule, errors in totals.errors.items():
        rows.add_row(f"error, {RULE_LABELS.get(rule, rule)}", *map(error_text, errors))
    yield rows
    if not totals.norm:
        return
    needed = ", ".join(
        f"{fraction:.0%} takes rank {rank} (error {error_text(totals.error_for_variance[fraction])})"
        for fraction, rank in totals.rank_for_variance.items()
    )
    ranks = ",".join(map(str, _ranks_to_try(report)))
    smaller = f": {_command(report)} {ranks} writes an adapter of each rank" if ranks else ""
    yield Text(
        f"To copy the update, with one rank for all layers and so much of its variance: {needed}. A task may need "
        f"less, which only a test on it can tell{smaller}."
    )


def _command(report: Inspection) -> str:
    """Return the command that writes adapters of the update, but for their ranks."""
    if not _is_adapter(report):
        return "lowrank extract BASE TUNED OUT --rank"
    return "lowrank resize ADAPTER OUT --rank" if report.base is None else "lowrank extract BASE ADAPTER OUT --rank"


def _ranks_to_try(report: Inspection) -> list[int]:
    """Return the requested ranks of which an adapter is smaller than the update itself."""
    largest = max(layer.singular_values.size for layer in report.layers)
    return [rank for rank in report.ranks if 0 < rank < largest]
