"""A merged model for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.reports.loss_tables import losses
from lowrank_core.cli.tables import failed, heading, listed, section
from lowrank_core.cli.texts import beginning, percent
from lowrank_core.models import Application


def applied(report: Application, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a merged model; in full, every layer and all that is listed."""
    yield heading(
        f"{report.base} + {report.adapter} → {report.out}",
        f"{count(len(report.layers), 'update')} of {report.rounding.entries:,} entries, of which rounding leaves "
        f"{percent(report.rounding.unchanged)} as in the base; {count(report.copied, 'tensor')} copied",
        beginning(report.layers),
    )
    yield section("What rounding lost of the updates", *losses(report.layers, report.rounding, full=full))
    for title, entries in (
        ("From the adapter in full", report.replaced),
        ("Dequantised", dict.fromkeys(report.dequantised, "")),
        ("Files that were not copied", report.skipped_files),
    ):
        if entries:
            yield section(title, *listed(entries, full=full))
    for title, entries in (("Not applied", report.skipped), ("Failed, and as in the base", report.failures)):
        if entries:
            yield section(title, *failed(entries, full=full))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    yield Text(f"\n{report.out} was written." if report.written else f"\nA dry run: {report.out} was not written.")
    yield Text("All of the adapter is in it." if report.complete else "Not all of the adapter is in it.")
