"""``lowrank inspect DIR --recursive``: one row for each adapter under a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lowrank_core import models
from lowrank_core.cli import output
from lowrank_core.cli.options import Reports, Work
from lowrank_core.cli.reports import census_tables
from lowrank_core.cli.workers import over_adapters
from lowrank_core.models.inspection.census_rows import to_table
from lowrank_core.models.printable import printable, with_texts


def check_options(*, recursive: bool, jsonl: Path | None, **of_one: object) -> None:
    """Check that options go together; `of_one` are those of an inspection of one adapter, by name."""
    if jsonl == output.STDOUT:
        raise ValueError("--jsonl names a file that a later run continues; --json - prints every row at the end.")
    if recursive:
        given = next((name for name, value in of_one.items() if value), None)
        if given is not None:
            raise ValueError(
                f"--{given.replace('_', '-')} is of one adapter, and --recursive of many: leave one of the two out."
            )
    elif jsonl is not None:
        raise ValueError("--jsonl has a row for each of many adapters: it goes with --recursive.")


def run(folder: Path, ranks: tuple[int, ...], jsonl: Path | None, work: Work, reports: Reports) -> int:
    """Report every adapter under a folder, and return the exit code: 1 where some adapters failed, even in part."""
    rows = over_adapters(partial(models.census, folder, ranks=ranks, jsonl=jsonl), work)
    if not rows:
        raise ValueError(
            f"no adapter under {str(folder)!r}: neither a folder with adapter_config.json nor a safetensors or GGUF "
            "file with LoRA factors"
        )
    output.write_report(
        rows,
        partial(census_tables.census, with_texts(folder, printable), full=reports.full),
        (reports.json, lambda rows: output.json_text({"adapters": rows})),
        (reports.csv, lambda rows: output.csv_text(to_table(rows))),
    )
    return output.exit_code(complete=all(row.complete for row in rows))
