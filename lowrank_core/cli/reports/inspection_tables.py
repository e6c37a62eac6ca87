"""The report of an inspection for the terminal: figures in, rich renderables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.names import common_prefix, in_natural_order, kind
from lowrank_core.cli.reports import rounding_tables
from lowrank_core.cli.tables import RULE_LABELS, add_by_block, count, error_text, note, section, table
from lowrank_core.models.inspection.report import VARIANCE_FRACTIONS, Inspection, LayerReport

__all__ = ["inspection"]

# Up to here errors are printed for every layer, three lines each; beyond, for every kind of layer.
FEW_LAYERS = 24
RANKS_A_TABLE = 6
SOURCES_SHOWN = 6
VARIANCE_HEADINGS = tuple(f"{fraction:.0%}" for fraction in VARIANCE_FRACTIONS)
OTHERS_SHOWN = 12


def inspection(report: Inspection, *, full: bool) -> Iterator[RenderableType]:
    """Lay out an inspection, section by section.

    Parameters
    ----------
    report : Inspection
    full : bool
        Errors of every layer, however many there are.

    Yields
    ------
    rich renderable
    """
    each = full or len(report.layers) <= FEW_LAYERS
    prefix = common_prefix([layer.name for layer in report.layers])
    yield _heading(report, prefix)
    if report.layers:
        yield section("Layers", *_layers(report, prefix))
        yield section(_errors_title(each=each), *_errors(report, prefix, each=each))
        yield section("All layers together", *_totals(report))
    rounded = {layer.name.removeprefix(prefix): layer.rounding for layer in report.layers if layer.rounding}
    if rounded:
        yield section("Rounding of the stored weights", *rounding_tables.rounding(rounded))
    if report.not_low_rank:
        yield section("Not low-rank, and not in the figures above", *_listed(report.not_low_rank))
    if report.failures:
        yield section("Failed", *_listed(report.failures, all_of_them=True))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))


def _heading(report: Inspection, prefix: str) -> Text:
    totals = report.totals
    what = f"{report.path} − {report.base}" if report.base is not None else f"{report.path} ({report.format} adapter)"
    held = f", {totals.adapter_parameters:,} in the factors" if totals.adapter_parameters is not None else ""
    lines = [f"{count(totals.layers, 'layer')}, {totals.parameters:,} entries{held}; norm {totals.norm:.4g}"]
    if prefix:
        lines.append(f"names begin with {prefix}")
    return Text.assemble((what, "bold"), *(f"\n{line}" for line in lines))


def _layers(report: Inspection, prefix: str) -> Iterator[RenderableType]:
    adapter = report.base is None
    sources = Counter(layer.scaling_source for layer in report.layers)
    marks = {source: chr(ord("a") + place) for place, (source, _) in enumerate(sources.most_common(SOURCES_SHOWN))}
    several = len(sources) > 1
    found = table(
        "layer",
        "m × n",
        *(["r", "γ"] if adapter else []),
        "norm",
        "eff.\nrank",
        "stable\nrank",
        *VARIANCE_HEADINGS,
        names=1,
    )
    by_name = {layer.name.removeprefix(prefix): layer for layer in report.layers}

    def figures(name: str) -> list[str]:
        layer = by_name[name]
        return _figures(layer, f" {marks.get(layer.scaling_source, ' ')}" if several else "")

    add_by_block(found, by_name, figures)
    yield found
    if adapter:
        more = len(sources) - len(marks)
        yield from (note(f"γ {marks[source] + ': ' if several else ''}{source}") for source in marks)
        yield from [note(f"… and {count(more, 'other source')} of γ: --json has them.")] if more else []
    yield note(
        "Effective rank: exp of the entropy of σ/Σσ; stable: N²/σ₁²; then the least rank with that much variance."
    )


def _figures(layer: LayerReport, mark: str) -> list[str]:
    adapted = [] if layer.scaling is None else [str(layer.rank), f"{layer.scaling:.4g}{mark}"]
    return [
        f"{layer.shape[0]} × {layer.shape[1]}",
        *adapted,
        f"{layer.norm:.3g}",
        f"{layer.effective_rank:.1f}",
        f"{layer.stable_rank:.1f}",
        *(str(rank) for rank in layer.rank_for_variance.values()),
    ]


def _errors_title(*, each: bool) -> str:
    return "Relative error at rank r" + ("" if each else ", median over the layers of a kind")


def _errors(report: Inspection, prefix: str, *, each: bool) -> Iterator[RenderableType]:
    whose_alpha = "each layer's own α" if report.alpha is None else f"α = {report.alpha:g}"
    groups: dict[str, list[LayerReport]] = {}
    for layer in report.layers:
        name = layer.name.removeprefix(prefix)
        groups.setdefault(name if each else kind(name), []).append(layer)
    for start in range(0, len(report.ranks), RANKS_A_TABLE):
        chosen = range(start, min(start + RANKS_A_TABLE, len(report.ranks)))
        found = table("layer" if each else "kind", "", *(f"r = {report.ranks[at]}" for at in chosen), names=2)
        for name in in_natural_order(groups):
            members = groups[name]
            title = name if each else f"{name} ({len(members)})"
            for rule in ("best", *report.rules):
                errors = [member.best_error if rule == "best" else member.errors[rule] for member in members]
                found.add_row(
                    title, RULE_LABELS.get(rule, rule), *(error_text(median(e[at] for e in errors)) for at in chosen)
                )
                title = ""
        yield found
    yield note(f"Under a rule: the best rank-r factors multiplied by γ, with {whose_alpha}. Best: γ = 1.")
    if not each:
        yield note("Every layer's own errors: --full, --csv or --json.")
    clamped = [layer for layer in report.layers if layer.ranks != report.ranks]
    if clamped:
        smallest = min(min(layer.shape) for layer in clamped)
        yield note(
            f"A rank beyond a layer's own largest is taken as that: so in {count(len(clamped), 'layer')}, of which the "
            f"smallest has {smallest}."
        )


def _totals(report: Inspection) -> Iterator[RenderableType]:
    totals = report.totals
    for start in range(0, len(report.ranks), RANKS_A_TABLE):
        chosen = slice(start, start + RANKS_A_TABLE)
        found = table("", *(f"r = {rank}" for rank in report.ranks[chosen]), names=1)
        found.add_row("variance", *(f"{100 * share:.2f} %" for share in totals.variance_captured[chosen]))
        found.add_row("best error", *map(error_text, totals.best_error[chosen]))
        for rule, errors in totals.errors.items():
            found.add_row(f"error, {RULE_LABELS.get(rule, rule)}", *map(error_text, errors[chosen]))
        yield found
    needed = ", ".join(f"{fraction:.0%} takes rank {rank}" for fraction, rank in totals.rank_for_variance.items())
    yield Text(f"With one rank for all layers, {needed}.")


def _listed(entries: Mapping[str, str], *, all_of_them: bool = False) -> Iterator[RenderableType]:
    names = in_natural_order(entries)
    shown = names if all_of_them else names[:OTHERS_SHOWN]
    for name in shown:
        yield Text(f"{name}: {entries[name]}")
    if len(names) > len(shown):
        yield note(f"… and {len(names) - len(shown)} more: --json has them all.")
