"""An extracted, resized, converted or merged adapter for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.reports.completeness import alignment, completeness
from lowrank_core.cli.tables import FEW_LAYERS, add_by_block, heading, listed, note, rows_of_layers, section, table
from lowrank_core.cli.texts import RULE_LABELS, beginning, bound_text, count, error_text, percent, shape_text, span
from lowrank_core.models import Compression, CompressionTotals, LayerCompression

_CLAMPED = "*"
_TOGETHER = "all together"
_BEFORE = {"extract": "of the full update", "merge": "of all adapters"}
_UNITS = ("B", "kB", "MB", "GB", "TB")


def written(report: Compression, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a written adapter; in full, sizes of every layer and all that was skipped."""
    each = full or len(report.layers) <= FEW_LAYERS
    yield _heading(report)
    yield from alignment(report.alignment)
    yield section("Layers", *layer_table(report))
    yield section("Size" if each else "Size, by kind of layer", *_sizes(report, each=each))
    yield from beside(report, report.warnings, full=full)
    yield Text(f"{report.out} was written." if report.written else f"A dry run: {report.out} was not written.")


def beside(report: Compression, warnings: Iterable[str], *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections on what is beside the layers, what failed, and whether the report is complete."""
    for title, entries in (
        ("Without an update, and not in the adapter", dict.fromkeys(report.unchanged, "")),
        ("Not in the adapter", report.skipped),
        ("Copied unchanged", report.copied),
    ):
        if entries:
            yield section(title, *listed(entries, full=full))
    if report.failures:
        yield section("Failed, and not in the adapter", *listed(report.failures, full=True))
    lines = [Text(f"- {warning}") for warning in warnings]
    if lines:
        yield section("Warnings", *lines)
    yield from completeness(
        complete=report.complete, failures=len(report.failures), compared_fraction=report.compared_fraction
    )


def _heading(report: Compression) -> Text:
    kept = [layer for layer in report.layers if layer.rank]
    alphas = span(layer.alpha for layer in kept if layer.alpha is not None)
    ranks = span(layer.rank for layer in kept)
    totals = report.totals
    scale = f"α = {alphas} under {RULE_LABELS[report.reader_rule]}"
    return heading(
        f"{sources_text(report)} → {report.out}",
        f"{count(len(kept), 'layer')} of rank {ranks}, with {scale}, in {report.dtype} ({report.format})",
        f"{percent(totals.variance_captured)} of the variance in "
        f"{percent(totals.parameters / totals.source_parameters)} of the parameters",
        beginning(report.layers),
    )


def sources_text(report: Compression) -> str:
    """Return what an adapter was made from, as a sum."""
    if report.verb == "extract":
        return " − ".join(reversed(report.sources))
    if report.weights is None or set(report.weights) == {1.0}:
        return " + ".join(report.sources)
    terms = zip(report.weights, report.sources, strict=True)
    signed = (f"{'−' if weight < 0 else '+'} {abs(weight):g} × {source}" for weight, source in terms)
    return " ".join(signed).removeprefix("+ ")


def layer_table(report: Compression) -> Iterator[RenderableType]:
    """Yield the table of the layers' ranks and errors, and its notes."""
    padded = any(layer.stored_rank > layer.rank for layer in report.layers)
    partial = any(layer.missed for layer in report.layers)
    headings = ["m × n", "r", *(["stored\nr"] if padded else []), "variance", "error", "best\nerror", "storage\nerror"]
    headings += ["missed\n≤"] if partial else []
    rows = table("layer", *headings, names=1)

    def cells(layer: LayerCompression) -> list[str]:
        stored = [str(layer.stored_rank)] if padded else []
        mark = _CLAMPED if layer.requested_rank > layer.rank else ""
        return [shape_text(layer.shape), f"{layer.rank}{mark}", *stored, *losses(layer, partial=partial)]

    add_by_block(rows, report.layers, cells)
    rows.add_section()
    rows.add_row(_TOGETHER, "", "", *([""] if padded else []), *losses(report.totals, partial=partial))
    yield rows
    yield note(
        "Error: ‖Δ − γBA‖/‖Δ‖ of what is stored; best: the least of any update of rank r; storage: what rounding to "
        f"{report.dtype} changed."
    )
    if partial:
        yield note(
            "Missed: the energy that the best update of rank r has beyond the one found, at most, over all energy "
            "beyond r (the bound fails with a probability of 1e-9); 0 where the layer was decomposed in full."
        )
    clamped = [layer.requested_rank for layer in report.layers if layer.requested_rank > layer.rank]
    if clamped:
        yield note(f"{_CLAMPED} all that the layer has, where rank {span(clamped)} was requested.")
    if any(layer.rank == 0 for layer in report.layers):
        yield note("A layer with r = 0 is not in the adapter.")


def losses(kept: LayerCompression | CompressionTotals, *, partial: bool = False) -> list[str]:
    """Return the cells of the variance and the three errors, and of what is missed where layers are partial."""
    errors = map(error_text, (kept.error, kept.best_error, kept.storage_error))
    return [percent(kept.variance_captured), *errors, *([bound_text(kept.missed)] if partial else [])]


def _sizes(report: Compression, *, each: bool) -> Iterator[RenderableType]:
    rows = table(
        "layer" if each else "kind", "parameters\nbefore", "after", "fraction", "bytes\nbefore", "after", names=1
    )
    for title, layers in rows_of_layers(report.layers, each=each):
        _add_sizes(rows, title, layers)
    rows.add_section()
    _add_sizes(rows, _TOGETHER, report.layers)
    yield rows
    yield note(
        f"Before: {_BEFORE.get(report.verb, 'of the adapter')}."
        + ("" if each else " Every layer's own: --full, --csv or --json.")
    )


def _add_sizes(rows: Table, title: str, layers: Sequence[LayerCompression]) -> None:
    before, after = sum(layer.source_parameters for layer in layers), sum(layer.parameters for layer in layers)
    sizes = sum(layer.source_bytes for layer in layers), sum(layer.bytes for layer in layers)
    rows.add_row(title, f"{before:,}", f"{after:,}", percent(after / before), *map(byte_text, sizes))


def byte_text(number: int) -> str:
    """Return a number of bytes as people say it, in powers of 1000."""
    size, units = float(number), iter(_UNITS)
    unit = next(units)
    # What would round to 1000.0 is 1.0 of the next.
    while size >= 999.95 and unit != _UNITS[-1]:
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}" if unit != _UNITS[0] else f"{number} {unit}"
