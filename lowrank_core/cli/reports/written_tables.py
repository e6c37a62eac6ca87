"""An extracted, resized, converted or merged adapter for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count, shape_text
from lowrank_core.cli.layer_tables import Column, figure, layer_table, property_of, spanned, total
from lowrank_core.cli.reports.completeness import alignment, completeness
from lowrank_core.cli.tables import failed, heading, listed, note, section
from lowrank_core.cli.texts import RELATIVE_NORM, RULE_LABELS, beginning, bound_text, error_text, percent, span
from lowrank_core.models import Compression, CompressionTotals, LayerCompression
from lowrank_core.models.operations.destinations import IN_MEMORY

_CLAMPED = "*"
_BEFORE = {"extract": "of the full update", "merge": "of all adapters"}
_UNITS = ("B", "kB", "MB", "GB", "TB")


def written(report: Compression, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a written adapter; in full, sizes of every layer and all that was skipped."""
    yield _heading(report)
    yield from alignment(report.alignment)
    yield section("Layers", *layers_of(report, full=full))
    if report.totals.relative_norm is not None:
        yield section("Beside the base", *_beside_base(report, full=full))
    yield section("Size", *_sizes(report, full=full))
    yield from beside(report, report.warnings, full=full)
    if is_unnamed(report):
        yield Text("A dry run: nothing was written.")
    else:
        yield Text(f"{report.out} was written." if report.written else f"A dry run: {report.out} was not written.")


def is_unnamed(report: Compression) -> bool:
    """Whether a report is that of a dry run without OUT."""
    return report.out.startswith(IN_MEMORY)


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
        yield section("Failed, and not in the adapter", *failed(report.failures, full=full))
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
        sources_text(report) if is_unnamed(report) else f"{sources_text(report)} → {report.out}",
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


def layers_of(report: Compression, *, full: bool) -> Iterator[RenderableType]:
    """Yield the table of the layers' ranks and errors, and its notes."""
    columns = _columns(report)
    settings = [""] * (len(columns) - len(losses(report.totals)))
    totals = [*settings, *losses(report.totals)]
    partial = any(layer.missed for layer in report.layers)
    if partial:
        columns.append(figure("missed\n≤", lambda layer: layer.missed, bound_text))
        totals.append(bound_text(report.totals.missed))
    yield from layer_table(report.layers, columns, full=full, totals=totals)
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


def _columns(report: Compression) -> list[Column[LayerCompression]]:
    """Return the columns of settings, and those of `losses` after them."""

    def mark(layer: LayerCompression) -> str:
        return _CLAMPED if layer.requested_rank > layer.rank else ""

    columns: list[Column[LayerCompression]] = [
        property_of("m × n", lambda layer: shape_text(layer.shape)),
        spanned("r", lambda layer: layer.rank, "d", mark),
    ]
    if any(layer.stored_rank > layer.rank for layer in report.layers):
        columns.append(spanned("stored\nr", lambda layer: layer.stored_rank, "d"))
    return [
        *columns,
        figure("variance", lambda layer: layer.variance_captured, percent, min),
        figure("error", lambda layer: layer.error, error_text),
        figure("best\nerror", lambda layer: layer.best_error, error_text),
        figure("storage\nerror", lambda layer: layer.storage_error, error_text),
    ]


def losses(totals: CompressionTotals) -> list[str]:
    """Return the cells of the variance and the three errors of all layers together."""
    errors = map(error_text, (totals.error, totals.best_error, totals.storage_error))
    return [percent(totals.variance_captured), *errors]


def _beside_base(report: Compression, *, full: bool) -> Iterator[RenderableType]:
    columns: list[Column[LayerCompression]] = [
        figure("norm", lambda layer: layer.norm, "{:.4g}".format),
        figure(RELATIVE_NORM, lambda layer: layer.relative_norm, "{:.3g}".format),
    ]
    totals = [f"{report.totals.norm:.4g}", f"{report.totals.relative_norm:.3g}"]
    yield from layer_table(report.layers, columns, full=full, totals=totals)


def _sizes(report: Compression, *, full: bool) -> Iterator[RenderableType]:
    yield from layer_table(report.layers, _SIZES, full=full, totals=[column.text(report.layers) for column in _SIZES])
    yield note(f"Before: {_BEFORE.get(report.verb, 'of the adapter')}.")


def byte_text(number: float) -> str:
    """Return a number of bytes as people say it, in powers of 1000."""
    size, units = float(number), iter(_UNITS)
    unit = next(units)
    # What would round to 1000.0 is 1.0 of the next.
    while size >= 999.95 and unit != _UNITS[-1]:
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}" if unit != _UNITS[0] else f"{number:.0f} {unit}"


def _fraction(layers: Sequence[LayerCompression]) -> str:
    return percent(sum(layer.parameters for layer in layers) / sum(layer.source_parameters for layer in layers))


_SIZES: tuple[Column[LayerCompression], ...] = (
    total("parameters\nbefore", lambda layer: layer.source_parameters, "{:,}".format),
    total("after", lambda layer: layer.parameters, "{:,}".format),
    Column("fraction", _fraction, is_sum=True),
    total("bytes\nbefore", lambda layer: layer.source_bytes, byte_text),
    total("after", lambda layer: layer.bytes, byte_text),
)
