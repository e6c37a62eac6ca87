"""The report of a census for the terminal: rows in, rich renderables out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.names import in_natural_order
from lowrank_core.cli.tables import count, error_text, note, section, table
from lowrank_core.models.inspection.census_rows import AdapterRow
from lowrank_core.models.inspection.report import VARIANCE_FRACTIONS

__all__ = ["census"]

# Beyond, only the figures of all of them together are printed, and the first failures.
FEW_ADAPTERS = 40
FAILURES_SHOWN = 12
VARIANCE_HEADINGS = tuple(f"{fraction:.0%}" for fraction in VARIANCE_FRACTIONS)


def census(folder: Path, rows: Sequence[AdapterRow], *, full: bool) -> Iterator[RenderableType]:
    """Lay out a census, section by section.

    Parameters
    ----------
    folder : Path
        What it was taken of.
    rows : sequence of AdapterRow
    full : bool
        Every adapter and every failure, however many there are.

    Yields
    ------
    rich renderable
    """
    named = {_short(row, folder): row for row in rows}
    ordered = {name: named[name] for name in in_natural_order(named)}
    read = {name: row for name, row in ordered.items() if row.layers}
    failed = {name: row for name, row in ordered.items() if row.failure is not None}
    yield _heading(folder, list(ordered.values()), len(failed))
    if read and (full or len(read) <= FEW_ADAPTERS):
        yield section("Adapters", *_adapters(read))
    elif read:
        yield note(f"\nEvery adapter's own figures: --full, --csv, --json or --jsonl ({count(len(read), 'row')}).")
    if read:
        yield section("All of them", *_distribution(list(read.values())))
    if failed:
        yield section("Failed", *_failures(failed, full=full))


def _short(row: AdapterRow, folder: Path) -> str:
    path = Path(row.path)
    return str(path.relative_to(folder.absolute())) if path.is_relative_to(folder.absolute()) else row.path


def _heading(folder: Path, rows: Sequence[AdapterRow], failed: int) -> Text:
    layers, parameters = sum(row.layers for row in rows), sum(row.parameters for row in rows)
    held = f"{count(len(rows), 'adapter')}, {count(layers, 'layer')}, {parameters:,} entries in the factors"
    return Text.assemble(
        (str(folder), "bold"), f"\n{held}", f"; {failed:,} failed, in whole or in part" if failed else ""
    )


def _adapters(rows: dict[str, AdapterRow]) -> Iterator[RenderableType]:
    found = table("adapter", "layers", "r", "γ", "norm", "eff.\nrank", *VARIANCE_HEADINGS, "warn-\nings", names=1)
    for name, row in rows.items():
        found.add_row(
            name,
            f"{row.layers}" + (f" ({row.failed_layers} failed)" if row.failed_layers else ""),
            _span([str(rank) for rank in row.adapter_ranks]),
            _span([f"{row.smallest_scaling:.3g}", f"{row.largest_scaling:.3g}"]),
            f"{row.norm:.3g}",
            f"{row.effective_rank:.1f}",
            *(str(rank) for rank in (row.rank_for_variance or {}).values()),
            str(row.warnings) if row.warnings else "",
        )
    yield found
    yield note(
        "Effective rank: median over the layers; then the least rank, one for all layers, with that much variance."
    )
    if any(row.warnings for row in rows.values()):
        yield note("What the warnings are: lowrank inspect ADAPTER.")


def _span(values: Sequence[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]}–{values[-1]}"


def _distribution(rows: Sequence[AdapterRow]) -> Iterator[RenderableType]:
    found = table("", "smallest", "median", "largest", names=1)

    def add(title: str, values: Sequence[float], form: str) -> None:
        found.add_row(title, *(f"{value:{form}}" for value in (min(values), median(values), max(values))))

    add("norm", [row.norm for row in rows if row.norm is not None], ".3g")
    add("effective rank", [row.effective_rank for row in rows if row.effective_rank is not None], ".1f")
    add("stable rank", [row.stable_rank for row in rows if row.stable_rank is not None], ".1f")
    for fraction in VARIANCE_FRACTIONS:
        add(f"rank for {fraction:.0%}", [(row.rank_for_variance or {})[fraction] for row in rows], "g")
    for at, rank in enumerate(rows[0].ranks):
        errors = [row.best_error[at] for row in rows]
        found.add_row(f"best error, r = {rank}", *map(error_text, (min(errors), median(errors), max(errors))))
    yield found


def _failures(rows: dict[str, AdapterRow], *, full: bool) -> Iterator[RenderableType]:
    shown = list(rows) if full else list(rows)[:FAILURES_SHOWN]
    for name in shown:
        row = rows[name]
        more = f" (and {count(row.failed_layers - 1, 'layer')} more)" if row.failed_layers > 1 else ""
        yield Text(f"{name}: {row.failure}{more}")
    if len(rows) > len(shown):
        yield note(f"… and {len(rows) - len(shown):,} more: --full, --csv, --json or --jsonl have them.")
