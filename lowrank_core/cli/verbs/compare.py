"""The verb ``lowrank compare``: whether adapters, or fine-tunes, share directions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options, output
from lowrank_core.cli.drawing import draw_comparison
from lowrank_core.cli.reports import comparison_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models.operations.compared import to_rows
from lowrank_core.models.operations.comparison import DEFAULT_RANK

EXAMPLES = options.examples(
    "lowrank compare style/ facts/",
    "lowrank compare one/ two/ three/ --figure cosines.pdf",
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
        int,
        typer.Option(min=0, metavar="R", help="Compare the R leading directions of each update, or all that it has."),
    ] = DEFAULT_RANK,
    reports: options.Reports,
    work: options.Work,
) -> int:
    """Compare updates layer by layer: the cosine between them, the overlap of their spaces, and the norm of their sum.

    Each figure stands beside the level that random updates have. Overlap is geometry: updates that share nothing may
    still change the same outputs, so that no figure says that their sum keeps what each does. The exit code is 1 if the
    report is not complete: a layer could not be compared, only one of a pair has it, or something beside the layers
    changes too. All are named, and not in the totals.
    """
    output.check_outputs(reports.figure, reports.json, reports.csv)
    comparison = over_layers(partial(models.compare, paths, base, rank=rank, **pairing.arguments), work)
    output.write_report(
        comparison,
        partial(comparison_tables.comparison, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda comparison: output.csv_text(to_rows(comparison))),
        (reports.figure, draw_comparison),
    )
    return output.exit_code(complete=comparison.complete)
