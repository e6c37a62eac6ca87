"""The parts that every report in the terminal is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.names import blocks, by_short_name
from lowrank_core.models.layer_kinds import Layer, by_kind, in_natural_order

# Up to here tables of several lines a layer have a row for every layer; beyond, for every kind of layer.
FEW_LAYERS = 24
ENTRIES_SHOWN = 12
# Between two columns: a cell's padding, and the box's line, which is a space.
_GAP = "  "


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
    made = _bare_table(_LineTable)
    height = max(heading.count("\n") for heading in headings)
    for place, heading in enumerate(headings):
        lowered = "\n" * (height - heading.count("\n")) + heading
        if place < names:
            made.add_column(lowered, overflow="fold")
        else:
            made.add_column(lowered, justify="right", no_wrap=True)
    return made


class _LineTable(Table):
    """A table whose rows are lines where every cell fits into one, all of them text in one style.

    Rich measures, wraps and aligns each cell by itself, in about a millisecond a row.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [list(column.cells) for column in self.columns]
        widths = [
            max(cell_len(line) for text in (column.header, *cells) for line in str(text).split("\n"))
            for column, cells in zip(self.columns, columns, strict=True)
        ]
        widths[-1] = max(widths[-1], 1)  # as Rich, which gives the others a space of padding
        has_lines = not any("\n" in str(cell) for cells in columns for cell in cells)
        if not has_lines or sum(widths) + len(_GAP) * (len(widths) - 1) > options.max_width:
            yield from super().__rich_console__(console, options)
            return
        head = _bare_table(Table)
        head.columns = [replace(column.copy(), width=width) for column, width in zip(self.columns, widths, strict=True)]
        yield head
        for row in zip(*columns, strict=True):
            for column, width, cell in zip(self.columns, widths, row, strict=True):
                space = " " * (width - cell_len(str(cell)))
                text = f"{space}{cell}" if column.justify == "right" else f"{cell}{space}"
                yield Segment(text, console.get_style(cell.style) if isinstance(cell, Text) else None)
                if column is not self.columns[-1]:
                    yield Segment(_GAP)
            yield Segment.line()


def prose_table(*headings: str) -> Table:
    """Return an empty table whose first column is narrow and whose others are for sentences."""
    made = _bare_table(Table)
    for place, heading in enumerate(headings):
        made.add_column(heading, ratio=1 if place else None, no_wrap=place == 0)
    return made


def _bare_table(kind: type[Table]) -> Table:
    return kind(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))


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
