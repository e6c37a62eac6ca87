"""The parts that every report in the terminal is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.line_table import LineTable, bare_table
from lowrank_core.models.layer_kinds import in_natural_order

# Up to here a table has a row for every layer or adapter.
FEW_ROWS = 24
ENTRIES_SHOWN = 12


def is_folded(rows: int, *, full: bool) -> bool:
    """Whether a table would be longer than is read at a glance, and has a row for each kind instead, unless in full."""
    return rows > FEW_ROWS and not full


def heading(title: str, *lines: str) -> Text:
    """Return a report's title, and lines on what it is about."""
    return Text.assemble((title, "bold"), *(f"\n{line}" for line in lines if line))


def section(title: str, *parts: RenderableType) -> RenderableType:
    """Return parts under a title, indented."""
    return Group(Text(f"\n{title}", style="bold"), *(Padding(part, (0, 0, 0, 2)) for part in parts))


def table(*headings: str, names: int = 1) -> Table:
    """Return an empty table: `names` columns of names, the first shortened where too long, then numbers, aligned right.

    A heading ends at the bottom of the head, however many lines it has.
    """
    made = bare_table(LineTable)
    height = max(heading.count("\n") for heading in headings)
    for place, heading in enumerate(headings):
        lowered = "\n" * (height - heading.count("\n")) + heading
        if place < names:
            made.add_column(lowered, overflow="fold")
        else:
            made.add_column(lowered, justify="right", no_wrap=True)
    return made


def prose_table(*headings: str) -> Table:
    """Return an empty table whose first column is narrow and whose others are for sentences."""
    made = bare_table(Table)
    for place, heading in enumerate(headings):
        made.add_column(heading, ratio=1 if place else None, no_wrap=place == 0)
    return made


def listed(entries: Mapping[str, str], *, full: bool, files: str = "--full or --json") -> Iterator[RenderableType]:
    """Yield lines of names and what is said of them: in natural order, and only the first few unless in full."""
    names = in_natural_order(entries)
    shown = names if full else names[:ENTRIES_SHOWN]
    for name in shown:
        yield Text(f"{name}: {entries[name]}" if entries[name] else name)
    if len(names) > len(shown):
        yield note(f"… and {len(names) - len(shown):,} more: {files}.")


def failed(failures: Mapping[str, str], *, full: bool) -> Iterator[RenderableType]:
    """Yield a line for each failure, or where they are many for each reason, unless in full."""
    if not is_folded(len(failures), full=full):
        yield from listed(failures, full=True)
        return
    reasons = by_reason(failures)
    yield from (Text(f"{names}: {reason}") for reason, names in reasons.items())
    if len(reasons) < len(failures):
        yield note("Every layer: --full or --json.")


def by_reason(entries: Mapping[str, str]) -> dict[str, str]:
    """Return each reason with the first of the names that it is given for, and the number of the others."""
    reasons: dict[str, list[str]] = {}
    for name in in_natural_order(entries):
        reasons.setdefault(entries[name], []).append(name)
    return {
        reason: names[0] + (f", and {count(len(names) - 1, 'more layer')}" if len(names) > 1 else "")
        for reason, names in reasons.items()
    }


def note(text: str) -> Text:
    """Return text that explains the numbers."""
    return Text(text, style="dim")
