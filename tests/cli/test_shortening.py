"""Names in narrow columns: shortened at words, never alike, and no number cut."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lowrank_core.cli.shortening import fitted, shortened
from lowrank_core.cli.tables import table

words = st.sampled_from(["model", "layers", "0", "1", "10", "self_attn", "attn", "q_proj", "v_proj", "mlp", "experts"])
names = st.lists(
    st.lists(words, min_size=1, max_size=7).map(".".join) | st.lists(words, min_size=1, max_size=7).map("_".join),
    min_size=1,
    max_size=12,
    unique=True,
)
phrases = st.sampled_from(["all together", "the largest that costs no more", "  worst"])


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [
        ("model.layers.*.self_attn.q_proj", 23, "model.layers.*.….q_proj"),
        ("model.layers.*.self_attn.q_proj", 21, "model.layers.….q_proj"),
        ("model.layers.*.self_attn.q_proj", 31, "model.layers.*.self_attn.q_proj"),
        ("lora_unet_down_blocks_0_attn1_to_q", 24, "lora_unet_…_0_attn1_to_q"),
        ("loras/styles/2024/ink.safetensors", 24, "loras/…/ink.safetensors"),
    ],
)
def test_words_of_the_middle_are_left_out(name: str, width: int, short: str) -> None:
    assert shortened([name], width)[name] == short


@given(names, st.integers(4, 60))
def test_a_short_form_stands_for_one_name(given_names: list[str], width: int) -> None:
    for name, short in shortened(given_names, width).items():
        assert cell_len(short) <= width
        pattern = re.escape(short).replace("…", ".+")
        assert [other for other in given_names if re.fullmatch(pattern, other)] == [name]
        if short != name:
            start, end = short.split("…")
            assert re.search(r"[._/]$", start)
            assert re.match(r"[._/]", end)


@given(names, st.integers(4, 60))
def test_what_cannot_be_shortened_goes_on_in_further_lines(given_names: list[str], width: int) -> None:
    short = shortened(given_names, width)
    for name, lines in zip(given_names, fitted(given_names, width), strict=True):
        assert all(cell_len(line) <= width for line in lines)
        assert "".join(lines) == short.get(name, name)
        breaks = [line for line in lines[:-1] if cell_len(line) < width]
        assert all(re.search(r"[._/]$", line) for line in breaks)


def test_phrases_break_between_words() -> None:
    assert fitted(["the largest that costs no more"], 12) == [["the largest", "that costs", "no more"]]


@given(
    st.lists(names.flatmap(st.sampled_from) | phrases, min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.integers(40, 100),
)
def test_a_narrow_table_cuts_no_number_and_keeps_names_apart(titles: list[str], digits: list[int], width: int) -> None:
    rows = table("layer", *(f"figure\n{place}" for place in range(len(digits))))
    numbers = [[f"{row}{place}".ljust(size, "7") for place, size in enumerate(digits)] for row in range(len(titles))]
    for title, cells in zip(titles, numbers, strict=True):
        rows.add_row(title, *cells)
    console = Console(file=io.StringIO(), width=width)
    console.print(rows)
    printed = console.file.getvalue()
    assert all(cell_len(line.rstrip()) <= width for line in printed.splitlines())
    shown = printed.split()
    assert all(number in shown for cells in numbers for number in cells)


def test_a_further_table_has_no_empty_rows_and_a_head_of_its_own_height() -> None:
    rows = table("layer", *("a\nhigh\nhead", "number"), *(f"figure {place}" for place in range(6)))
    rows.add_row("block")
    rows.add_row("  first", *"12345678")
    rows.add_row("  worst", "9")
    console = Console(file=io.StringIO(), width=50)
    console.print(rows)
    first, second = ([line.split() for line in part.splitlines()] for part in console.file.getvalue().split("\n\n"))
    assert [line[0] for line in first[-3:]] == ["block", "first", "worst"]
    assert second[0][0] == "layer"
    assert [line[0] for line in second[2:]] == ["block", "first"]
