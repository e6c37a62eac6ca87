"""The adapters of several ranks, of one decomposition of each layer, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import PurePath

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.reports.completeness import alignment
from lowrank_core.cli.reports.written_tables import beside, byte_text, is_unnamed, layers_of, losses, sources_text
from lowrank_core.cli.tables import heading, note, section, table
from lowrank_core.cli.texts import beginning, percent
from lowrank_core.models import Compression
from lowrank_core.models.operations.destinations import IN_MEMORY


def written_each(reports: Sequence[Compression], *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of adapters of several ranks; in full, those of every layer at each."""
    largest = reports[-1]
    yield heading(
        f"{sources_text(largest)} → {', '.join(map(_name, reports))}",
        f"{count(len(largest.layers), 'layer')}, in {largest.dtype} ({largest.format}){_beside_base(largest)}",
        beginning(largest.layers),
    )
    yield from alignment(largest.alignment)
    yield section(
        "All layers together",
        _ranks(reports),
        note(
            "Variance is what it takes to copy the update, and not what a task needs: try the adapters on the task, "
            "and keep the smallest that does."
        ),
    )
    if full:
        for report in reports:
            yield section(f"Layers of {_name(report)}", *layers_of(report, full=True))
    warnings = dict.fromkeys(chain.from_iterable(report.warnings for report in reports))
    yield from beside(largest, warnings, full=full)
    if is_unnamed(largest):
        yield Text("A dry run: nothing was written.")
        return
    adapters = f"{count(len(reports), 'adapter')} in {PurePath(largest.out).parent}"
    yield Text(f"{adapters} were written." if largest.written else f"A dry run: {adapters} were not written.")


def _name(report: Compression) -> str:
    """Return the name of an adapter without its folder, or how it ends for its rank where there is none."""
    return PurePath(report.out).name.removeprefix(f"{IN_MEMORY}-")


def _beside_base(report: Compression) -> str:
    relative = report.totals.relative_norm
    return "" if relative is None else f"; ‖Δ‖ is {percent(relative)} of ‖W‖"


def _ranks(reports: Sequence[Compression]) -> Table:
    rows = table("adapter", "r", "variance", "error", "best\nerror", "storage\nerror", "parameters", "bytes")
    for report in reports:
        totals, rank = report.totals, max(layer.requested_rank for layer in report.layers)
        rows.add_row(_name(report), str(rank), *losses(totals), f"{totals.parameters:,}", byte_text(totals.bytes))
    rows.add_section()
    totals = reports[-1].totals
    rows.add_row("before", *[""] * 5, f"{totals.source_parameters:,}", byte_text(totals.source_bytes))
    return rows
