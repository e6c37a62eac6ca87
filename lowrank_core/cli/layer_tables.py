"""Tables of layers: a row for each, or where these are many, one for each kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Generic, NamedTuple

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.names import blocks, by_short_name
from lowrank_core.cli.tables import is_folded, note, table
from lowrank_core.cli.texts import span
from lowrank_core.models.executors import Named
from lowrank_core.models.layer_kinds import Layer, by_kind, kinds_begin_with

NONE = "–"
_TOGETHER = "all together"


class Column(NamedTuple, Generic[Layer]):
    """A column: its heading, the text of one layer or several, and that of the worst of several, where it has one."""

    heading: str
    text: Callable[[Sequence[Layer]], str]
    worst: Callable[[Sequence[Layer]], str] | None = None
    is_sum: bool = False


def figure(
    heading: str,
    value: Callable[[Layer], float | None],
    form: Callable[[float], str],
    worst: Callable[[Iterable[float]], float] = max,
) -> Column[Layer]:
    """Return the column of a figure: of several layers their median, and the worst, which is the largest by default."""

    def text(layers: Sequence[Layer], together: Callable[[Iterable[float]], float] = median) -> str:
        values = [figure for layer in layers if (figure := value(layer)) is not None]
        return form(together(values)) if values else NONE

    return Column(heading, text, lambda layers: text(layers, worst))


def total(heading: str, value: Callable[[Layer], float | None], form: Callable[[float], str]) -> Column[Layer]:
    """Return the column of a quantity of which several layers have the sum."""

    def text(layers: Sequence[Layer]) -> str:
        values = [figure for layer in layers if (figure := value(layer)) is not None]
        return form(sum(values)) if values else NONE

    return Column(heading, text, is_sum=True)


def spanned(
    heading: str, value: Callable[[Layer], float | None], form: str, mark: Callable[[Layer], str] = lambda _layer: ""
) -> Column[Layer]:
    """Return the column of a setting, of several layers from the smallest to the largest, and of marks on it."""

    def text(layers: Sequence[Layer]) -> str:
        values = [setting for layer in layers if (setting := value(layer)) is not None]
        return span(values, form, "–") + "".join(dict.fromkeys(map(mark, layers))) if values else ""

    return Column(heading, text)


def property_of(heading: str, text: Callable[[Layer], str]) -> Column[Layer]:
    """Return the column of what layers have in common, or several texts."""
    return Column(heading, lambda layers: ", ".join(dict.fromkeys(map(text, layers))))


def layer_table(
    layers: Sequence[Layer],
    *lines: Sequence[Column[Layer]],
    full: bool,
    totals: Sequence[str] = (),
    files: str = "--full, --csv or --json",
) -> Iterator[RenderableType]:
    """Yield a table of layers, and where kinds take their place, a note on what their figures are and where all are.

    Each of `lines` is a line of a layer, under the headings of the first. `totals` are the cells of a last row.
    """
    folded = is_folded(len(layers), full=full)
    rows = table(*(["kind", "layers"] if folded else ["layer"]), *(column.heading for column in lines[0]))
    if folded:
        _add_kinds(rows, layers, lines)
    else:
        _add_by_block(rows, layers, lines)
    if totals:
        rows.add_row(_TOGETHER, *([f"{len(layers):,}"] if folded else []), *totals)
    yield rows
    if folded:
        yield note(_what_is_folded(layers, lines[0], files))


def _add_by_block(rows: Table, layers: Sequence[Layer], lines: Sequence[Sequence[Column[Layer]]]) -> None:
    """Add the lines of each layer, those of one block indented under its name."""
    _, by_name = by_short_name(layers)
    for block, members in blocks(by_name):
        if block:
            rows.add_row(Text(block, style="bold"))
        for name, short in members:
            for columns in lines:
                title = ("  " if block else "") + short if columns is lines[0] else ""
                rows.add_row(title, *(column.text([by_name[name]]) for column in columns))


def _add_kinds(rows: Table, layers: Sequence[Layer], lines: Sequence[Sequence[Column[Layer]]]) -> None:
    """Add the lines of each kind of layer, and under each those figures of the worst that differ."""
    for kind, members in by_kind(layers).items():
        for columns in lines:
            first = [kind, f"{len(members):,}"] if columns is lines[0] else ["", ""]
            texts = [column.text(members) for column in columns]
            worst = [column.worst(members) if column.worst else "" for column in columns]
            beside = ["" if one == other else other for one, other in zip(texts, worst, strict=True)]
            rows.add_row(*first, *texts)
            if any(beside):
                rows.add_row("  worst", "", *beside)


def _what_is_folded(layers: Sequence[Named], columns: Sequence[Column[Layer]], files: str) -> str:
    sums = " and ".join(" ".join(column.heading.split()) for column in columns if column.is_sum)
    figures = f"the median, and under it the worst{f'; of {sums} the sum' if sums else ''}"
    if sums and not any(column.worst for column in columns):
        figures = "the sum"
    beginning = kinds_begin_with(layers).rstrip("._")
    whose = f" of {beginning}" if beginning else ""
    kinds = count(len(by_kind(layers)), "kind")
    return f"{count(len(layers), 'layer')} in {kinds}{whose}: {figures}. Every layer: {files}."
