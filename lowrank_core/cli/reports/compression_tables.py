"""The report of an extracted, resized or merged adapter for the terminal: figures in, rich renderables out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.names import common_prefix, in_natural_order, kind
from lowrank_core.cli.tables import RULE_LABELS, add_by_block, count, error_text, note, section, table
from lowrank_core.models.operations.compression import Compression, CompressionTotals, LayerCompression

__all__ = ["compression"]

# Up to here sizes are printed for every layer; beyond, for every kind of layer.
FEW_LAYERS = 24
OTHERS_SHOWN = 12
CLAMPED = "*"
TOGETHER = "all together"
BEFORE = {"extract": "of the full update", "resize": "of the adapter", "merge": "of all adapters"}
SIZE_HEADINGS = ("parameters\nbefore", "after", "share", "bytes\nbefore", "after")
UNITS = ("B", "kB", "MB", "GB", "TB")


def compression(report: Compression, *, full: bool) -> Iterator[RenderableType]:
    """Lay out what became of the layers, section by section.

    Parameters
    ----------
    report : Compression
    full : bool
        Sizes of every layer and all that is left out, however many there are.

    Yields
    ------
    rich renderable
    """
    prefix = common_prefix([layer.name for layer in report.layers])
    each = full or len(report.layers) <= FEW_LAYERS
    yield _heading(report, prefix)
    yield section("Layers", *_layers(report, prefix))
    yield section("Size" if each else "Size, by kind of layer", *_sizes(report, prefix, each=each))
    if report.unchanged:
        yield section("Without an update, and not in the adapter", *_names(report.unchanged, all_of_them=full))
    if report.skipped:
        yield section("Not in the adapter", *_listed(report.skipped, all_of_them=full))
    if report.copied:
        yield section("Copied as they are", *_listed(report.copied, all_of_them=full))
    if report.failures:
        yield section("Failed, and not in the adapter", *_listed(report.failures, all_of_them=True))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    yield Text(f"\n{report.out} was written." if report.written else f"\nA dry run: {report.out} was not written.")


def _heading(report: Compression, prefix: str) -> Text:
    kept = [layer for layer in report.layers if layer.rank]
    alphas = _span([layer.alpha for layer in kept if layer.alpha is not None])
    ranks = _span([layer.rank for layer in kept])
    totals = report.totals
    share = totals.parameters / totals.source_parameters
    scale = f"α = {alphas} under {RULE_LABELS[report.reader_rule]}"
    lines = [
        f"{count(len(kept), 'layer')} of rank {ranks}, with {scale}, in {report.dtype} ({report.format})",
        f"{_percent(totals.variance_captured)} of the variance in {_percent(share)} of the parameters",
    ]
    if prefix:
        lines.append(f"names begin with {prefix}")
    return Text.assemble((f"{_sources(report)} → {report.out}", "bold"), *(f"\n{line}" for line in lines))


def _sources(report: Compression) -> str:
    if report.verb == "extract":
        return " − ".join(reversed(report.sources))
    if report.weights is None or set(report.weights) == {1.0}:
        return " + ".join(report.sources)
    terms = zip(report.weights, report.sources, strict=True)
    return " ".join(f"{'−' if weight < 0 else '+'} {abs(weight):g} × {of}" for weight, of in terms).removeprefix("+ ")


def _layers(report: Compression, prefix: str) -> Iterator[RenderableType]:
    padded = any(layer.stored_rank > layer.rank for layer in report.layers)
    headings = ["m × n", "r", *(["stored\nr"] if padded else []), "variance", "error", "best\nerror", "storage\nerror"]
    found = table("layer", *headings, names=1)
    by_name = {layer.name.removeprefix(prefix): layer for layer in report.layers}

    def figures(name: str) -> list[str]:
        layer = by_name[name]
        stored = [str(layer.stored_rank)] if padded else []
        mark = CLAMPED if layer.requested_rank > layer.rank else ""
        return [f"{layer.shape[0]} × {layer.shape[1]}", f"{layer.rank}{mark}", *stored, *_losses(layer)]

    add_by_block(found, by_name, figures)
    found.add_section()
    found.add_row(TOGETHER, "", "", *([""] if padded else []), *_losses(report.totals))
    yield found
    yield note(
        "Error: ‖Δ − γBA‖/‖Δ‖ of what is stored; best: the least that any update of rank r has; storage: what rounding "
        f"to {report.dtype} moved."
    )
    clamped = [layer.requested_rank for layer in report.layers if layer.requested_rank > layer.rank]
    if clamped:
        yield note(f"{CLAMPED} all that the layer has, where rank {_span(clamped)} was asked for.")
    if any(layer.rank == 0 for layer in report.layers):
        yield note("Of a layer with r = 0 nothing is in the adapter.")


def _losses(of: LayerCompression | CompressionTotals) -> list[str]:
    return [_percent(of.variance_captured), *map(error_text, (of.error, of.best_error, of.storage_error))]


def _sizes(report: Compression, prefix: str, *, each: bool) -> Iterator[RenderableType]:
    found = table("layer" if each else "kind", *SIZE_HEADINGS, names=1)
    groups: dict[str, list[LayerCompression]] = {}
    for layer in report.layers:
        name = layer.name.removeprefix(prefix)
        groups.setdefault(name if each else kind(name), []).append(layer)
    for name in in_natural_order(groups):
        members = groups[name]
        _add_sizes(found, name if each else f"{name} ({len(members)})", members)
    found.add_section()
    _add_sizes(found, TOGETHER, report.layers)
    yield found
    yield note(f"Before: {BEFORE[report.verb]}." + ("" if each else " Every layer's own: --full, --csv or --json."))


def _add_sizes(found: Table, title: str, layers: Sequence[LayerCompression]) -> None:
    before, after = sum(layer.source_parameters for layer in layers), sum(layer.parameters for layer in layers)
    sizes = sum(layer.source_bytes for layer in layers), sum(layer.bytes for layer in layers)
    found.add_row(title, f"{before:,}", f"{after:,}", _percent(after / before), *map(_bytes, sizes))


def _listed(entries: Mapping[str, str], *, all_of_them: bool) -> Iterator[RenderableType]:
    names = in_natural_order(entries)
    shown = names if all_of_them else names[:OTHERS_SHOWN]
    for name in shown:
        yield Text(f"{name}: {entries[name]}")
    if len(names) > len(shown):
        yield note(f"… and {len(names) - len(shown):,} more: --full or --json.")


def _names(names: Sequence[str], *, all_of_them: bool) -> Iterator[RenderableType]:
    ordered = in_natural_order(names)
    shown = ordered if all_of_them else ordered[:OTHERS_SHOWN]
    more = f", … and {len(names) - len(shown):,} more: --full or --json." if len(names) > len(shown) else ""
    yield Text(", ".join(shown) + more)


def _span(values: Sequence[float]) -> str:
    smallest, largest = f"{min(values):.5g}", f"{max(values):.5g}"
    return smallest if smallest == largest else f"{smallest} to {largest}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _bytes(number: int) -> str:
    """Write a number of bytes as people say it, in powers of 1000."""
    size, units = float(number), iter(UNITS)
    unit = next(units)
    # What would round to 1000.0 is 1.0 of the next.
    while size >= 999.95 and unit != UNITS[-1]:
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}" if unit != UNITS[0] else f"{number} {unit}"
