"""A table whose rows are lines, and whose columns continue in further tables where they do not fit into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.shortening import fitted

# Between two columns: a cell's padding, and the box's line, which is a space.
_GAP = "  "
# The names' part of the width, where not all columns fit beside whole names.
_NAMES_PART = 3


def bare_table(kind: type[Table]) -> Table:
    """Return an empty table of a kind, with a line under its head alone."""
    return kind(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))


class LineTable(Table):
    """A table of texts in one style each, the first of a row a name.

    Rich measures, wraps and aligns each cell by itself, in about a millisecond a row. Where the terminal is narrow it
    cuts names and numbers alike; here names are shortened in the middle, and columns that do not fit are in further
    tables, under the same names.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        texts = [[str(cell) for cell in column.cells] for column in self.columns]
        widths = [
            max(cell_len(line) for text in (str(column.header), *cells) for line in text.split("\n"))
            for column, cells in zip(self.columns, texts, strict=True)
        ]
        widths[-1] = max(widths[-1], 1)  # as Rich, which gives the others a space of padding
        groups = _groups(widths, options.max_width)
        if groups is None:
            yield from super().__rich_console__(console, options)
            return
        beside = max(sum(widths[place] + len(_GAP) for place in group) for group in groups)
        widths[0] = min(widths[0], options.max_width - beside)
        names = [[self._aligned(0, line, widths) for line in lines] for lines in fitted(texts[0], widths[0])]
        styles = [[_style(console, cell) for cell in column.cells] for column in self.columns]
        for group in groups:
            if group is not groups[0]:
                yield Segment.line()
            yield self._head([0, *group], widths)
            for row, lines in enumerate(names):
                is_blank = not any(texts[place][row] for place in group)
                if is_blank and any(column[row] for column in texts[1:]):
                    continue
                cells = [
                    Segment(self._aligned(place, texts[place][row], widths), styles[place][row]) for place in group
                ]
                yield from _row([Segment(line, styles[0][row]) for line in lines], cells)

    def _head(self, places: Sequence[int], widths: Sequence[int]) -> Table:
        head = bare_table(Table)
        headings = [str(self.columns[place].header) for place in places]
        # Headings end at the bottom of the whole table's head, which may be higher than those of some of its columns.
        spare = min(len(heading) - len(heading.lstrip("\n")) for heading in headings)
        head.columns = [
            replace(self.columns[place].copy(), header=heading[spare:], width=widths[place], no_wrap=True)
            for place, heading in zip(places, headings, strict=True)
        ]
        return head

    def _aligned(self, place: int, text: str, widths: Sequence[int]) -> str:
        space = " " * (widths[place] - cell_len(text))
        return f"{space}{text}" if self.columns[place].justify == "right" else f"{text}{space}"


def _groups(widths: Sequence[int], limit: int) -> list[list[int]] | None:
    """Return the columns after the first in groups that fit beside it; None where a column alone does not."""
    others = range(1, len(widths))
    available = limit - min(widths[0], limit // _NAMES_PART)
    if any(widths[place] + len(_GAP) > available for place in others):
        return None
    groups: list[list[int]] = [[]]
    for place in others:
        if sum(widths[one] + len(_GAP) for one in (*groups[-1], place)) > available:
            groups.append([])
        groups[-1].append(place)
    return groups


def _style(console: Console, cell: RenderableType) -> Style | None:
    return console.get_style(cell.style) if isinstance(cell, Text) else None


def _row(lines: Sequence[Segment], cells: Sequence[Segment]) -> Iterator[Segment]:
    """Yield a row: a name, of several lines where it is long, and the other cells beside its first."""
    for line in lines:
        yield line
        for cell in cells:
            yield Segment(_GAP)
            yield cell if line is lines[0] else Segment(" " * cell.cell_length)
        yield Segment.line()
