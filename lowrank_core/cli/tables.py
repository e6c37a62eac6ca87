"""The parts that every report in the terminal is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.names import Named, blocks, by_kind, by_short_name, in_natural_order

Layer = TypeVar("Layer", bound=Named)

# Up to here tables of several lines a layer have a row for every layer; beyond, for every kind of layer.
FEW_LAYERS = 24
ENTRIES_SHOWN = 12


def heading(title: str, *lines: str) -> Text:
    """Return a report's title, and lines on what it is about."""
    return Text.assemble((title, "bold"), *(f"\n{line}" for line in lines if line))


def section(title: str, *parts: RenderableType) -> RenderableType:
    """Return parts under a title, indented."""
    return Group(Text(f"\n{title}", style="bold"), *(Padding(part, (0, 0, 0, 2)) for part in parts))


def table(*headings: str, names: int = 0) -> Table:
    """Return an empty table: `names` columns of names, folded where too long, then numbers, aligned right.

    A heading ends at the bottom of the head, however many lines it has.
    """
    made = _bare_table()
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
    made = _bare_table()
    for place, heading in enumerate(headings):
        made.add_column(heading, ratio=1 if place else None, no_wrap=place == 0)
    return made


def _bare_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))


def add_by_block(rows: Table, layers: Sequence[Layer], cells: Callable[[Layer], Iterable[str]]) -> None:
    """Add a row for each layer, those of one block indented under its name; `cells` returns what follows the name."""
    _, by_name = by_short_name(layers)
    for block, members in blocks(by_name):
        if block:
            rows.add_row(Text(block, style="bold"))
        for name, short in members:
            rows.add_row(f"  {short}" if block else short, *cells(by_name[name]))


def rows_of_layers(layers: Sequence[Layer], *, each: bool) -> Iterator[tuple[str, list[Layer]]]:
    """Yield the title and the layers of each row of a table: a layer each, or all of a kind and their number."""
    if each:
        _, by_name = by_short_name(layers)
        yield from ((name, [by_name[name]]) for name in in_natural_order(by_name))
    else:
        yield from ((f"{kind} ({len(members)})", members) for kind, members in by_kind(layers).items())


def listed(entries: Mapping[str, str], *, full: bool, files: str = "--full or --json") -> Iterator[RenderableType]:
    """Yield lines of names and what is said of them: in natural order, and only the first few unless in full."""
    names = in_natural_order(entries)
    shown = names if full else names[:ENTRIES_SHOWN]
    for name in shown:
        yield Text(f"{name}: {entries[name]}" if entries[name] else name)
    if len(names) > len(shown):
        yield note(f"… and {len(names) - len(shown):,} more: {files}.")


def note(text: str) -> Text:
    """Return text that explains the numbers."""
    return Text(text, style="dim")
