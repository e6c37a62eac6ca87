"""The verb ``lowrank compare``: whether adapters, or fine-tunes, share directions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options, output
from lowrank_core.cli.drawing import draw_report
from lowrank_core.cli.reports import comparison_tables, history_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models.operations.compared import to_rows
from lowrank_core.models.operations.comparison import DEFAULT_RANK
from lowrank_core.models.operations.history import to_rows as history_rows
from lowrank_core.models.operations.history_rows import DEFAULT_LEADING

EXAMPLES = options.examples(
    "lowrank compare style/ facts/",
    "lowrank compare one/ two/ three/ --figure cosines.pdf",
    "lowrank compare --series run/ --figure history.pdf",
    "lowrank compare tuned-a/ tuned-b/ --base base/ --rank 32 --csv layers.csv",
)


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH PATH…", help="Adapters of any formats; with --base, adapters or checkpoints."),
    ],
    *,
    base: Annotated[
        Path | None, typer.Option(metavar="BASE", help="The checkpoint that all of them were tuned from.")
    ] = None,
    pairing: options.Pairing,
    rank: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="R",
            help="Compare the R leading directions of each update, or all that it has.",
            show_default=f"{DEFAULT_RANK}; {DEFAULT_LEADING} with --series",
        ),
    ] = None,
    series: Annotated[
        bool,
        typer.Option("--series", help="Report how one run went: PATHs are its checkpoints, or a folder checkpoint-*."),
    ] = False,
    reports: options.Reports,
    work: options.Work,
) -> int:
    """Compare updates layer by layer: the cosine between them, the overlap of their spaces, and the norm of their sum.

    Each figure stands beside the level that random updates have. Overlap is geometry: updates that share nothing may
    still change the same outputs, so that no figure says that their sum keeps what each does. The exit code is 1 if the
    report is not complete: a layer could not be compared, only one of a pair has it, or something beside the layers
    changes too. All are named, and not in the totals.
    """
    output.check_outputs(reports.figure, reports.json, reports.csv, others=(*paths, base))
    if series:
        return _history(paths, base, pairing, DEFAULT_LEADING if rank is None else rank, reports, work)
    chosen = DEFAULT_RANK if rank is None else rank
    comparison = over_layers(partial(models.compare, paths, base, rank=chosen, **pairing.arguments), work)
    output.write_report(
        comparison,
        partial(comparison_tables.comparison, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda comparison: output.csv_text(to_rows(comparison))),
        (reports.figure, draw_report),
    )
    return output.exit_code(complete=comparison.complete)


def _history(
    paths: list[Path],
    base: Path | None,
    pairing: options.Pairing,
    leading: int,
    reports: options.Reports,
    work: options.Work,
) -> int:
    """Report the history of a run."""
    if pairing.match or pairing.component:
        raise ValueError("--match and --component are for two checkpoints of other names, not for one run (--series)")
    report = over_layers(partial(models.history, paths, base, leading=leading), work)
    output.write_report(
        report,
        partial(history_tables.history, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda report: output.csv_text(history_rows(report))),
        (reports.figure, draw_report),
    )
    return output.exit_code(complete=report.complete)
