"""A census for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.reports.inspection_tables import VARIANCE_HEADINGS
from lowrank_core.cli.tables import heading, is_folded, listed, note, section, table
from lowrank_core.cli.texts import error_text, span
from lowrank_core.models import AdapterRow
from lowrank_core.models.inspection.report import VARIANCE_FRACTIONS
from lowrank_core.models.layer_kinds import in_natural_order

_FILES = "--full, --csv, --json or --jsonl"


def census(folder: Path, rows: Sequence[AdapterRow], *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a census of a folder; in full, every adapter and failure, however many there are."""
    named = {_short(row, folder): row for row in rows}
    read = {name: named[name] for name in in_natural_order(named) if named[name].layers}
    failed = {name: row for name, row in named.items() if row.failure is not None}
    yield _heading(folder, rows, len(failed))
    if read and not is_folded(len(read), full=full):
        yield section("Adapters", *_adapters(read))
    elif read:
        yield note(f"\nEvery adapter's own numbers: {_FILES} ({count(len(read), 'row')}).")
    if read:
        yield section("All of them", *_distribution(list(read.values())))
    if failed:
        reasons = {name: _reason(row) for name, row in failed.items()}
        yield section("Failed", *listed(reasons, full=full, files=_FILES))


def _short(row: AdapterRow, folder: Path) -> str:
    path = Path(row.path)
    return str(path.relative_to(folder.absolute())) if path.is_relative_to(folder.absolute()) else row.path


def _heading(folder: Path, rows: Sequence[AdapterRow], failed: int) -> Text:
    layers, parameters = sum(row.layers for row in rows), sum(row.parameters for row in rows)
    size = f"{count(len(rows), 'adapter')}, {count(layers, 'layer')}, {parameters:,} entries in the factors"
    return heading(str(folder), size + (f"; {failed:,} failed, in whole or in part" if failed else ""))


def _adapters(rows: Mapping[str, AdapterRow]) -> Iterator[RenderableType]:
    adapters = table("adapter", "layers", "r", "γ", "norm", "eff.\nrank", *VARIANCE_HEADINGS, "warn-\nings")
    for name, row in rows.items():
        adapters.add_row(
            name,
            f"{row.layers}" + (f" ({row.failed_layers} failed)" if row.failed_layers else ""),
            span(row.adapter_ranks, to="–"),
            span([scale for scale in (row.smallest_scaling, row.largest_scaling) if scale is not None], ".3g", "–"),
            f"{row.norm:.3g}",
            f"{row.effective_rank:.1f}",
            *(str(rank) for rank in (row.rank_for_variance or {}).values()),
            str(row.warnings) if row.warnings else "",
        )
    yield adapters
    yield note(
        "Effective rank: median over the layers. Then: the least rank, one for all layers, for that much of the "
        "variance."
    )
    if any(row.warnings for row in rows.values()):
        yield note("What the warnings are: lowrank inspect ADAPTER.")


def _distribution(rows: Sequence[AdapterRow]) -> Iterator[RenderableType]:
    distribution = table("", "smallest", "median", "largest")

    def add(title: str, values: Sequence[float], form: str) -> None:
        distribution.add_row(title, *(f"{value:{form}}" for value in (min(values), median(values), max(values))))

    add("norm", [row.norm for row in rows if row.norm is not None], ".3g")
    add("effective rank", [row.effective_rank for row in rows if row.effective_rank is not None], ".1f")
    add("stable rank", [row.stable_rank for row in rows if row.stable_rank is not None], ".1f")
    for fraction in VARIANCE_FRACTIONS:
        add(f"rank for {fraction:.0%}", [(row.rank_for_variance or {})[fraction] for row in rows], "g")
    for at, rank in enumerate(rows[0].ranks):
        errors = [row.best_error[at] for row in rows]
        distribution.add_row(f"best error, r = {rank}", *map(error_text, (min(errors), median(errors), max(errors))))
    yield distribution


def _reason(row: AdapterRow) -> str:
    more = f" (and {count(row.failed_layers - 1, 'layer')} more)" if row.failed_layers > 1 else ""
    return f"{row.failure}{more}"
