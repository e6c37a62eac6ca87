"""The parts that every report in the terminal is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowrank_core.cli.names import blocks

__all__ = ["RULE_LABELS", "add_by_block", "count", "error_text", "note", "prose_table", "section", "table"]

RULE_LABELS = {"standard": "α/r", "rslora": "α/√r", "unscaled": "γ = 1"}


def section(title: str, *parts: RenderableType) -> RenderableType:
    """Put parts under a title, indented."""
    return Group(Text(f"\n{title}", style="bold"), *(Padding(part, (0, 0, 0, 2)) for part in parts))


def table(*headings: str, names: int = 0) -> Table:
    """Make a table of figures, aligned right, whose first columns hold names: aligned left, folded where too long.

    Parameters
    ----------
    *headings : str
        Each stands at the bottom of its column's head, however many lines it has.
    names : int
        How many columns hold names.

    Returns
    -------
    rich.table.Table
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


def add_by_block(rows: Table, names: Iterable[str], figures: Callable[[str], Iterable[str]]) -> None:
    """Add a row for each layer, those of one block indented under its name.

    Parameters
    ----------
    rows : rich.table.Table
    names : iterable of str
        The layers'.
    figures : callable
        Gives what follows a layer's name in its row.
    """
    for block, members in blocks(list(names)):
        if block:
            rows.add_row(Text(block, style="bold"))
        for name, short in members:
            rows.add_row(f"  {short}" if block else short, *figures(name))


def prose_table(*headings: str) -> Table:
    """Make a table whose first column is narrow and whose others hold sentences."""
    made = _bare_table()
    for place, heading in enumerate(headings):
        made.add_column(heading, ratio=1 if place else None, no_wrap=place == 0)
    return made


def note(text: str) -> Text:
    """Write what is not part of the figures."""
    return Text(text, style="dim")


def error_text(value: float) -> str:
    """Write a relative error: very small and very large ones with an exponent."""
    return f"{value:.4f}" if value == 0 or 1e-4 <= value < 1e4 else f"{value:.1e}"


def count(number: int, what: str) -> str:
    """Write a number of things, in the plural but for one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _bare_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
