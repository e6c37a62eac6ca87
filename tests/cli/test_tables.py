"""Tables: rows that are written as lines are those that Rich would write, where all columns fit."""

import io

import hypothesis.strategies as st
import pytest
from hypothesis import given
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowrank_core.cli import tables

LINES = ["", "x", "12345.6", "層の名前 q", "aé̀b", "a name that may have to be folded"]
CELLS = st.sampled_from([*LINES, Text("a block", style="bold")])
HEADINGS = st.sampled_from(["", "r", "eff.\nrank", "層"])


@st.composite
def filled_tables(draw):
    headings = draw(st.lists(HEADINGS, min_size=1, max_size=3))
    made = tables.table(*headings, names=draw(st.integers(0, len(headings))))
    for cells in draw(st.lists(st.lists(CELLS, max_size=len(headings)), max_size=5)):
        made.add_row(*cells)
    return made


def written(part, width, terminal):
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@given(table=filled_tables(), width=st.sampled_from([120, 200]))
def test_a_table_of_lines_is_written_as_rich_writes_it(terminal, table, width):
    plain = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    plain.columns, plain.rows = table.columns, table.rows
    assert written(table, width, terminal) == written(plain, width, terminal)
    indented = [Padding(part, (0, 0, 0, 2)) for part in (table, plain)]
    assert written(indented[0], width, terminal) == written(indented[1], width, terminal)


def test_cells_of_lines_are_not_measured_one_by_one(monkeypatch):
    table = tables.table("layer", "norm")
    for i in range(300):
        table.add_row(f"layers.{i}", f"{i}")
    rendered = []
    monkeypatch.setattr(Text, "wrap", lambda self, *_args, **_options: rendered.append(self.plain) or [self])
    assert "layers.299   299" in written(table, 80, terminal=False)
    assert set(rendered) == {"layer", "norm"}
