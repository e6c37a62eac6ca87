"""What the verbs that write an adapter share: the run, the report, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lowrank_core.cli import output
from lowrank_core.cli.drawing import draw_written
from lowrank_core.cli.options import Reports, Work
from lowrank_core.cli.reports import written_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models import Compression
from lowrank_core.models.operations.compression import to_rows


def write_adapter(operation: Callable[..., Compression], work: Work, reports: Reports) -> int:
    """Run an operation that writes an adapter, report it, and return the exit code."""
    output.check_outputs(reports.figure, reports.json, reports.csv)
    adapter = over_layers(operation, work)
    output.write_report(
        adapter,
        partial(written_tables.written, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda adapter: output.csv_text(to_rows(adapter))),
        (reports.figure, draw_written),
    )
    return output.exit_code(complete=adapter.complete)
