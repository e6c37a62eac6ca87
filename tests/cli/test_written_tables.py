"""The report of a written adapter: readable at 80 columns and with many layers, and true to the numbers."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lowrank_core.cli.reports.written_tables import written
from lowrank_core.cli.tables import ENTRIES_SHOWN, FEW_ROWS
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.resizing import resize

from .conftest import write_adapter


def printed(report: Compression, width: int = 80, *, full: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in written(report, full=full):
        console.print(part)
    return console.file.getvalue()


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def report(adapter: Path, tmp_path: Path) -> Compression:
    """Four layers of rank 3, cut to 2, stored in half precision."""
    return resize(adapter, tmp_path / "out", rank=2, dtype="float16", dry_run=True)


@pytest.fixture
def deep(tmp_path: Path) -> Compression:
    """A hundred blocks of two layers."""
    source = write_adapter(tmp_path / "deep", layers=100)
    return resize(source, tmp_path / "out", rank=lambda s: 1 if s.shape[0] == 12 else 2, dry_run=True)


def test_a_layer_is_reported_in_full(report: Compression) -> None:
    layer = dataclasses.replace(report.layers[0], error=0.3, best_error=0.25, storage_error=0.125)
    text = printed(dataclasses.replace(report, layers=(layer, *report.layers[1:])))
    assert layer.name == "model.layers.0.mlp.down_proj"
    assert "names begin with model.layers." in text
    assert [
        *("mlp.down_proj", "8", "×", "20", "2", f"{100 * layer.variance_captured:.2f}", "%"),
        *("0.3000", "0.2500", "0.1250"),
    ] in rows(text)
    assert ["mlp.down_proj", "84", "56", "66.67", "%", "336", "B", "112", "B"] in rows(text.partition("\nSize\n")[2])


def test_what_layers_miss_is_shown_and_rounded_up(report: Compression) -> None:
    assert "Missed" not in printed(report)
    layers = (dataclasses.replace(report.layers[0], missed=1.2345e-8), *report.layers[1:])
    totals = dataclasses.replace(report.totals, missed=1.2345e-8)
    text = printed(dataclasses.replace(report, layers=layers, totals=totals))
    shown = [(row[0], row[-1]) for row in rows(text.partition("\nSize\n")[0]) if len(row) > 7]
    assert [last for first, last in shown if first == "mlp.down_proj"] == ["1.3e-8", "0"]
    assert ("all", "1.3e-8") in shown
    assert "0 where the layer was decomposed in full" in " ".join(text.split())


def test_totals_are_those_of_the_report(report: Compression) -> None:
    totals = dataclasses.replace(report.totals, error=0.3, best_error=0.25, storage_error=0.125)
    layers, _, sizes = printed(dataclasses.replace(report, totals=totals)).partition("\nSize\n")
    losses = [f"{100 * totals.variance_captured:.2f}", "%", "0.3000", "0.2500", "0.1250"]
    assert ["all", "together", *losses] in rows(layers)
    assert ["all", "together", "288", "192", "66.67", "%", "1.2", "kB", "384", "B"] in rows(sizes)
    assert f"{100 * totals.variance_captured:.2f} % of the variance in 66.67 % of the parameters" in layers


def test_the_title_names_inputs_and_output(report: Compression, tuning: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = tuning
    merged = dataclasses.replace(report, verb="merge", sources=("one", "two"))
    for made, title in (
        (report, f"{report.sources[0]} → {report.out}"),
        (extract(base, tuned, tmp_path / "out", rank=2, dry_run=True), f"{tuned} − {base} → {tmp_path / 'out'}"),
        (merged, f"one + two → {report.out}"),
        (dataclasses.replace(merged, weights=(1.0, 1.0)), f"one + two → {report.out}"),
        (dataclasses.replace(merged, weights=(1.0, -0.5)), f"1 × one − 0.5 × two → {report.out}"),
        (dataclasses.replace(merged, weights=(-1.0, 2.0)), f"− 1 × one + 2 × two → {report.out}"),
    ):
        assert printed(made, width=500).startswith(f"{title}\n")


def test_the_heading_has_ranks_scale_and_dtype(report: Compression, tuning: tuple[Path, Path], tmp_path: Path) -> None:
    assert "4 layers of rank 2, with α = 16 under α/r, in float16 (peft)" in printed(report)
    several = extract(*tuning, tmp_path / "out", rank=lambda s: s.shape[0] // 4, rule="rslora", alpha=2.5, dry_run=True)
    assert "4 layers of rank 2 to 3, with α = 2.5 under α/√r, in float32 (peft)" in printed(several)
    kohya = extract(*tuning, tmp_path / "out.safetensors", rank=4, rule="rslora", alpha=3, dry_run=True)
    assert "4 layers of rank 4, with α = 6 under α/r, in float32 (kohya)" in printed(kohya)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_many_layers_fit_the_width_and_each_kind_has_a_line(deep: Compression, width: int) -> None:
    text = printed(deep, width)
    assert max(len(line) for line in text.splitlines()) <= width
    layers, _, sizes = text.partition("\nSize\n")
    for module, entries in (("self_attn.q_proj", (6000, 2000)), ("mlp.down_proj", (8400, 5600))):
        assert width < 100 or sum(module in line for line in layers.splitlines()) == 1
        row = next(row for row in rows(sizes) if row[:2] == [module, "100"])
        assert row[2:4] == [f"{number:,}" for number in entries]
    assert "200 layers in 2 kinds" in " ".join(layers.split())


def test_bytes_before_are_those_of_the_sources(report: Compression) -> None:
    layers = tuple(dataclasses.replace(layer, source_bytes=7 * at) for at, layer in enumerate(report.layers))
    sizes = printed(dataclasses.replace(report, layers=layers)).partition("\nSize\n")[2]
    assert ["mlp.down_proj", "84", "56", "66.67", "%", "14", "B", "112", "B"] in rows(sizes)
    assert ["all", "together", "288", "192", "66.67", "%", "42", "B", "384", "B"] in rows(sizes)


def test_full_and_few_layers_print_the_sizes_of_every_layer(deep: Compression, tmp_path: Path) -> None:
    for part in printed(deep, full=True).split("\nSize\n"):
        assert sum(row[:1] == ["self_attn.q_proj"] for row in rows(part)) == 100
    for blocks, folded in ((FEW_ROWS // 2, False), (FEW_ROWS // 2 + 1, True)):
        source = write_adapter(tmp_path / f"of {blocks}", layers=blocks)
        made = resize(source, tmp_path / "out", rank=1, dry_run=True)
        assert (": the sum. Every layer" in " ".join(printed(made).split())) is folded


def test_long_names_are_shortened_and_no_number_is_cut(report: Compression) -> None:
    layers = tuple(
        dataclasses.replace(layer, name=f"{'very_' * 12}{layer.name}", shape=(14336, 53248)) for layer in report.layers
    )
    text = printed(dataclasses.replace(report, layers=layers[:1]))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert re.search(r"  very_[a-z_.]*…[a-z_.0-9]*_proj  ", text)
    assert "14336 × 53248" in text


def test_clamped_ranks_are_noted(adapter: Path, tmp_path: Path) -> None:
    text = printed(resize(adapter, tmp_path / "out", rank=30, dry_run=True))
    assert [row[4] for row in rows(text) if row[2:3] == ["×"] and row[0] != "layer"] == ["3*"] * 4
    assert "* all that the layer has, where rank 30 was requested." in text
    assert "*" not in printed(resize(adapter, tmp_path / "out", rank=3, dry_run=True))


def test_a_layer_of_rank_0_is_noted(adapter: Path, tmp_path: Path) -> None:
    kept = resize(adapter, tmp_path / "out", rank=lambda s: 0 if s.shape[0] == 12 else 3, dry_run=True)
    text = printed(kept)
    assert "2 layers of rank 3" in text
    assert ["self_attn.q_proj", "12", "×", "8", "0", "0.00", "%", "1.0000", "1.0000", "0.0000"] in rows(text)
    assert "A layer with r = 0 is not in the adapter." in text
    assert ["self_attn.q_proj", "60", "0", "0.00", "%", "240", "B", "0", "B"] in rows(text)


def test_padding_has_a_column_of_its_own(adapter: Path, tmp_path: Path) -> None:
    def rank(spectrum: object) -> int:
        return 1 if spectrum.shape[0] == 12 else 2

    text = printed(resize(adapter, tmp_path / "out", rank=rank, uniform=True, dry_run=True))
    assert "stored" in text
    row = next(row for row in rows(text) if row[:1] == ["self_attn.q_proj"])
    assert row[4:6] == ["1", "2"]
    assert "stored" not in printed(resize(adapter, tmp_path / "out", rank=2, dry_run=True)).partition("Error:")[0]


def test_whatever_is_not_in_the_adapter_is_listed(report: Compression) -> None:
    full = dataclasses.replace(
        report,
        unchanged=tuple(f"still.{number}" for number in range(ENTRIES_SHOWN + 3)),
        skipped={f"norm.{number}": f"changed by norm {number}" for number in range(ENTRIES_SHOWN + 2)},
        copied={"head": "a module saved in full"},
        failures={f"bad.{number}": "it holds NaN" for number in range(ENTRIES_SHOWN + 1)},
        warnings=("a reader would apply another scale",),
    )
    text = " ".join(printed(full).split())
    for printed_text in (
        "Without an update, and not in the adapter still.0 still.1",
        "… and 3 more: --full or --json.",
        "Not in the adapter norm.0: changed by norm 0 norm.1:",
        "… and 2 more: --full or --json.",
        "Copied unchanged head: a module saved in full",
        f"bad.{ENTRIES_SHOWN}: it holds NaN",
        "- a reader would apply another scale",
    ):
        assert printed_text in text
    assert f"still.{ENTRIES_SHOWN}" not in text
    everything = printed(full, full=True)
    assert all(f" {name}" in everything for name in (*full.unchanged, *full.skipped))
    assert text.index("Failed, and not in the adapter") < text.index("bad.0") < text.index("Warnings")


def test_the_last_line_says_whether_the_adapter_was_written(report: Compression) -> None:
    assert " ".join(printed(report).split()).endswith(f"A dry run: {report.out} was not written.")
    assert " ".join(printed(dataclasses.replace(report, written=True)).split()).endswith(f"{report.out} was written.")


def test_a_single_layer_has_its_whole_name(report: Compression) -> None:
    one = dataclasses.replace(report, layers=report.layers[:1])
    assert "model.layers.0.mlp.down_proj" in printed(one)
