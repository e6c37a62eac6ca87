"""Tables of layers: each layer where they are few, each kind where they are many, and what a kind's figures are."""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from lowrank_core.cli.layer_tables import figure, layer_table, property_of, spanned, total
from lowrank_core.cli.tables import FEW_ROWS, failed


@dataclass(frozen=True)
class Layer:
    """A layer with some figures."""

    name: str
    shape: str
    rank: int
    error: float | None
    size: int


COLUMNS = [
    property_of("m × n", lambda layer: layer.shape),
    spanned("r", lambda layer: layer.rank, "d", lambda layer: "*" if layer.rank > 9 else ""),
    figure("error", lambda layer: layer.error, "{:.2f}".format),
    figure("kept", lambda layer: None if layer.error is None else 1 - layer.error, "{:.2f}".format, min),
    total("bytes", lambda layer: layer.size, "{:,}".format),
]


def layers(blocks: int) -> list[Layer]:
    """Blocks of two layers, of which one has the same figures in every block."""
    queries = [Layer(f"model.layers.{i}.attn.q", "4 × 4", i + 1, i / blocks, 100 + i) for i in range(blocks)]
    return queries + [Layer(f"model.layers.{i}.mlp.up", "4 × 8", 8, 0.5, 1000) for i in range(blocks)]


def printed(parts, width: int = 100) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_few_layers_have_a_row_each_under_their_block() -> None:
    lines = printed(layer_table(layers(2), COLUMNS, full=False, totals=["", "", "", "", "7"]))
    assert lines[2:] == [
        ["0"],
        ["attn.q", "4", "×", "4", "1", "0.00", "1.00", "100"],
        ["mlp.up", "4", "×", "8", "8", "0.50", "0.50", "1,000"],
        ["1"],
        ["attn.q", "4", "×", "4", "2", "0.50", "0.50", "101"],
        ["mlp.up", "4", "×", "8", "8", "0.50", "0.50", "1,000"],
        ["all", "together", "7"],
    ]


def test_many_layers_are_folded_to_their_kinds_with_median_and_worst() -> None:
    lines = printed(layer_table(layers(20), COLUMNS, full=False, totals=["", "", "", "", "7"]))
    assert lines[0] == ["kind", "layers", "m", "×", "n", "r", "error", "kept", "bytes"]
    # Errors are 0/20, 1/20, … 19/20: their median is 9.5/20, and the least that is kept 1/20.
    assert lines[2:6] == [
        ["attn.q", "20", "4", "×", "4", "1–20*", "0.47", "0.53", "2,190"],
        ["worst", "0.95", "0.05"],
        ["mlp.up", "20", "4", "×", "8", "8", "0.50", "0.50", "20,000"],
        ["all", "together", "40", "7"],
    ]
    assert " ".join(word for line in lines[6:] for word in line) == (
        "40 layers in 2 kinds of model.layers.*: the median, and under it the worst; of bytes the sum. Every layer: "
        "--full, --csv or --json."
    )


def test_full_has_every_layer_and_no_note() -> None:
    lines = printed(layer_table(layers(20), COLUMNS, full=True))
    assert sum(line[0] in {"attn.q", "mlp.up"} for line in lines) == 40
    assert not any("kinds" in line for line in lines)


@pytest.mark.parametrize("each", [True, False])
def test_layers_are_folded_beyond_the_same_number_in_every_table(each: bool) -> None:
    count = FEW_ROWS if each else FEW_ROWS + 1
    lines = printed(layer_table(layers(count)[:count], COLUMNS, full=False))
    assert (lines[0][:1] == ["layer"]) is each


def test_a_kind_without_a_figure_has_a_dash_and_one_of_its_own_keeps_its_name() -> None:
    made = [Layer(f"h.{i}.fc", "2 × 2", 1, None, 1) for i in range(30)] + [Layer("lm_head", "2 × 2", 1, 0.25, 1)]
    lines = printed(layer_table(made, COLUMNS, full=False))
    assert lines[2:4] == [
        ["h.*.fc", "30", "2", "×", "2", "1", "–", "–", "30"],
        ["lm_head", "1", "2", "×", "2", "1", "0.25", "0.75", "1"],
    ]


def test_sums_alone_are_called_so() -> None:
    *_, text = layer_table(layers(20), [COLUMNS[-1]], full=False)
    assert "2 kinds of model.layers.*: the sum. Every layer: --full" in text.plain


def test_several_lines_of_a_layer_are_under_one_name() -> None:
    lines = [[property_of("", lambda _, label=label: label), COLUMNS[2]] for label in ("best", "α/r")]
    few, many = (printed(layer_table(layers(blocks), *lines, full=False)) for blocks in (1, 20))
    assert few[2:4] == [["attn.q", "best", "0.00"], ["α/r", "0.00"]]
    assert many[2:6] == [["attn.q", "20", "best", "0.47"], ["worst", "0.95"], ["α/r", "0.47"], ["worst", "0.95"]]


def test_many_failures_have_a_line_for_each_reason() -> None:
    failures = {f"h.{i}.fc": "no base" for i in range(FEW_ROWS)} | {"lm_head": "NaN"}
    assert printed(failed(failures, full=False)) == [
        ["h.0.fc,", "and", "23", "more", "layers:", "no", "base"],
        ["lm_head:", "NaN"],
        ["Every", "layer:", "--full", "or", "--json."],
    ]
    few = dict(list(failures.items())[1:])
    for entries, full in ((failures, True), (few, False)):
        assert printed(failed(entries, full=full)) == [[f"{name}:", *why.split()] for name, why in entries.items()]
