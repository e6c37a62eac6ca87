"""What the verbs that write an adapter share: the run, the report, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lowrank_core.cli import output
from lowrank_core.cli.options import Reports, Work
from lowrank_core.cli.reports import written_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models.operations.compression import Compression, to_rows
from lowrank_core.models.results import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_adapter"]


def write_adapter(operation: Callable[..., Compression], work: Work, reports: Reports) -> int:
    """Run an operation that writes an adapter, report it, and return the exit code."""
    output.check_outputs(reports.figure, reports.json, reports.csv)
    adapter = over_layers(operation, work)
    output.write_report(
        adapter,
        partial(written_tables.written, full=reports.full),
        [
            (reports.json, lambda: output.json_text(to_json(adapter))),
            (reports.csv, lambda: output.csv_text(to_rows(adapter))),
        ],
        reports.figure,
        _draw,
    )
    return output.exit_code(adapter.failures)


def _draw(adapter: Compression) -> Figure:
    # Imported here, because matplotlib takes a second to load and most runs draw nothing.
    from lowrank_core.cli.reports import written_figure

    return written_figure.draw(adapter)
