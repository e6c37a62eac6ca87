"""What the verbs that write an adapter share: the run, the report, and the exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lowrank_core.cli import output
from lowrank_core.cli.drawing import draw_report
from lowrank_core.cli.options import Reports, Work
from lowrank_core.cli.reports import several_ranks_tables, written_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models import Compression
from lowrank_core.models.operations.compression import to_rows


def write_adapter(
    operation: Callable[..., Compression | list[Compression]],
    paths: Sequence[Path | None],
    work: Work,
    reports: Reports,
    *,
    several: bool = False,
) -> int:
    """Run an operation that writes an adapter, or several, report it, and return the exit code.

    `paths` are what it reads and writes.
    """
    output.check_outputs(reports.figure, reports.json, reports.csv, others=paths)
    if several and reports.figure is not None:
        raise ValueError("--figure draws one adapter: give one --rank, or leave the figure out.")
    written = over_layers(operation, work)
    if isinstance(written, list):
        return _report_each(written, reports)
    output.write_report(
        written,
        partial(written_tables.written, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda adapter: output.csv_text(to_rows(adapter))),
        (reports.figure, draw_report),
    )
    return output.exit_code(complete=written.complete)


def _report_each(adapters: Sequence[Compression], reports: Reports) -> int:
    output.write_report(
        adapters,
        partial(several_ranks_tables.written_each, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda adapters: output.csv_text([row for adapter in adapters for row in to_rows(adapter)])),
    )
    return output.exit_code(complete=all(adapter.complete for adapter in adapters))
