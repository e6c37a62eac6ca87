"""The verb ``lowrank apply``: a base model with an adapter's updates added to its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options, output
from lowrank_core.cli.reports import applied_tables
from lowrank_core.models.operations.applying import to_rows

EXAMPLES = options.examples(
    "lowrank apply base/ my-adapter/ merged/",
    "lowrank apply base/ lora.safetensors merged/ --dtype float32",
    "lowrank apply base.safetensors lora.safetensors merged.safetensors --dry-run",
)


def apply(
    base: options.Base,
    adapter: options.Adapter,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The folder to write, with the shards and other files of BASE; or a file that ends in .safetensors.",
        ),
    ],
    *,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="What the changed tensors are stored in: float32, bfloat16, float16 or float64.",
            show_default="each tensor's own",
        ),
    ] = None,
    base_restored: options.BaseRestored = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    full: options.Full = False,
    json: options.JsonFile = None,
    csv: options.CsvFile = None,
) -> int:
    """Write a base model with the updates of an adapter added to its weights, and say what rounding lost of them.

    Sums are made in float64 and rounded once. What the adapter does not change is copied as it is, and tensors that it
    has in full take the place of the base's. The exit code is 1 if some layers failed and the others were written, or
    something of the adapter could not be applied.
    """
    output.check_outputs(None, json, csv, others=(base, adapter, out))
    with output.progress_bar("tensors") as progress:
        report = models.apply(
            base,
            adapter,
            out,
            dtype=dtype,
            base_restored=base_restored,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    output.write_report(
        report,
        partial(applied_tables.applied, full=full),
        (json, output.json_text),
        (csv, lambda report: output.csv_text(to_rows(report))),
    )
    return output.exit_code(complete=report.complete)
