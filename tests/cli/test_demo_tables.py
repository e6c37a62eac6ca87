"""What the demo prints: the article's digits, at a width that fits a small terminal."""

import io
import re

import pytest
from rich.console import Console

from lowrank_core.cli.demo.experiments import Experiments
from lowrank_core.cli.demo.tables import demo
from lowrank_core.cli.demo.verdicts import Verdict, verdicts

ERRORS = """
2 6.608106 9.729615 2.165376 3.016290
4 2.988677 6.970877 1.481534 2.858262
8 1.000000 4.642097 1.000000 2.619609
16 0.063517 2.994616 0.701083 2.251191
32 0.500869 1.827684 0.627560 1.701114
48 0.666727 1.309361 0.685698 1.296699
"""
CAPTURED = """
2 88.8897 7.6851
4 99.1524 14.9368
8 99.3367 28.3393
16 99.5966 50.8483
32 99.8841 80.8224
"""
SCALINGS = """
1 16 16
4 4 8
8 2 5.6569
16 1 4
32 0.5 2.8284
64 0.25 2
"""


def printed(results: Experiments, width: int = 80, judged: list[Verdict] | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in demo(results, verdicts(results) if judged is None else judged):
        console.print(part)
    return console.file.getvalue()


def rows(text: str, title: str) -> dict[str, list[str]]:
    """Figures of a section's table, by rank."""
    section = text.partition(f"\n{title}")[2]
    lines = re.split(r"\n\d  ", section)[0].replace(" %", "").splitlines()
    split = [line.split() for line in lines]
    return {words[0]: words[1:] for words in split if len(words) > 2 and words[0].isdecimal()}


def typed(table: str) -> list[list[str]]:
    return [line.split() for line in table.split("\n") if line]


def test_the_digits_of_the_article_are_printed(results: Experiments) -> None:
    text = printed(results)
    assert "style  4.99  3.50  2.01  0.52  0.14  " in text
    assert "facts  3.00  2.96  2.91  2.87  2.84  " in text
    errors, captured, scalings = (rows(text, title) for title in "312")
    for rank, *figures in typed(ERRORS):
        assert errors[rank][1:3] + errors[rank][4:6] == figures
    captured, scalings = rows(text, "1"), rows(text, "2")
    for rank, *figures in typed(CAPTURED):
        assert captured[rank][:2] == figures
    for rank, *figures in typed(SCALINGS):
        assert scalings[rank][:2] == figures


def test_both_experiments_have_the_best_possible_beside_them(results: Experiments) -> None:
    text = printed(results)
    learned, both = rows(text, "4"), rows(text, "5")
    best = {"2": "0.961", "8": "0.846", "16": "0.700", "32": "0.437", "48": "0.216", "64": "0.000"}
    assert {rank: learned[rank][0] for rank in best} == best
    assert {rank: both[rank][3] for rank in best} == best
    assert [both[rank][1] for rank in ("16", "32", "48")] == ["0.701", "0.628", "0.686"]
    assert learned["64"][1:3] == both["64"][4:6]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(results: Experiments, width: int) -> None:
    text = printed(results, width)
    assert max(len(line) for line in text.splitlines()) <= width
    leading = 2
    assert text.count("…") == leading


def test_verdicts_are_printed_as_they_are_given(results: Experiments) -> None:
    judged = [Verdict("A claim.", "undecided", "For a reason."), Verdict("Another.", "holds in part", "So.")]
    text = printed(results, judged=judged)
    assert re.search(r"UNDECIDED +A claim\.\s+For a reason\.", text)
    assert re.search(r"HOLDS IN PART +Another\.\s+So\.", text)
    assert "FAILS" not in text


def test_a_small_demo_has_all_its_singular_values(small: Experiments) -> None:
    assert "…" not in printed(small).partition("2  What")[0]
