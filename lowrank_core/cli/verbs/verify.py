"""The verb ``lowrank verify``: whether a merged model is its base with an adapter's updates added."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options, output
from lowrank_core.cli.reports import verified_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models.operations.verification import to_rows

EXAMPLES = options.examples(
    "lowrank verify base/ my-adapter/ merged/",
    "lowrank verify base/ lora.safetensors merged/ --json verified.json",
)


def verify(
    base: options.Base,
    adapter: options.Adapter,
    merged: Annotated[Path, typer.Argument(metavar="MERGED", help="The checkpoint that was made of both.")],
    *,
    base_restored: options.BaseRestored = False,
    full: options.Full = False,
    json: options.JsonFile = None,
    csv: options.CsvFile = None,
    work: options.Work,
) -> int:
    """Check that a merged model is round(W + γBA), entry by entry, and that all else is as in the base.

    The merge is replayed in float64, rounded once, and as PEFT makes it. Of a wrong layer the report says in how many
    entries, by how many units in the last place, and what it looks like. It also says what a merge in the dtype of
    MERGED loses of the update. The exit code is 1 if anything is wrong or could not be compared.
    """
    output.check_outputs(None, json, csv, others=(base, adapter, merged))
    operation = partial(models.verify, base, adapter, merged, base_restored=base_restored)
    report = over_layers(operation, work)
    output.write_report(
        report,
        partial(verified_tables.verified, full=full),
        (json, output.json_text),
        (csv, lambda report: output.csv_text(to_rows(report))),
    )
    return output.exit_code(complete=report.right)
