"""``lowrank compare``: tables, files and exit codes."""

import csv
import json
from pathlib import Path

import pytest

from lowrank_core.cli.app import main

from .conftest import write_adapter


@pytest.fixture
def adapters(tmp_path: Path) -> list[str]:
    return [str(write_adapter(tmp_path / name, seed=seed)) for name, seed in (("one", 0), ("two", 1), ("three", 2))]


def test_two_adapters_have_a_row_for_each_layer(adapters: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *adapters[:2]]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if "(0." in line] == [
        "mlp.down_proj",
        "self_attn.q_proj",
    ] * 2
    assert "Overlap is geometry and no promise" in " ".join(printed.split())
    assert "safe" not in printed
    assert "Complete" in printed


def test_more_adapters_have_a_matrix_of_cosines(adapters: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *adapters]) == 0
    printed = capsys.readouterr().out
    assert "Cosines over all layers" in printed
    assert all(f"\n{one} and {other}\n" in printed for one, other in ("12", "13", "23"))


def test_files_have_every_figure(adapters: list[str], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("all.json", "layers.csv", "two.svg", "three.pdf")]
    arguments = ["compare", *adapters[:2], "--rank", "2", "--json", str(files[0]), "--csv", str(files[1])]
    assert main([*arguments, "--figure", str(files[2])]) == 0
    assert main(["compare", *adapters, "--figure", str(files[3])]) == 0
    report = json.loads(files[0].read_text())
    (pair,) = report["pairs"]
    with files[1].open() as rows:
        table = list(csv.DictReader(rows))
    assert [row["name"] for row in table] == [layer["name"] for layer in pair["layers"]]
    for row, layer in zip(table, pair["layers"], strict=True):
        assert float(row["cosine"]) == layer["cosine"]
        assert float(row["columns_overlap"]) == layer["columns"]["overlap"][1][1]
        assert int(row["matrix_rows"]) == layer["shape"][0]
    assert all(file.stat().st_size > 1000 for file in files)


def test_what_only_one_has_is_named_and_the_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two", layers=3)
    assert main(["compare", str(one), str(two)]) == 1
    printed = capsys.readouterr().out
    assert f"Only in {two}" in printed.replace("\n  ", " ")
    assert "model.layers.2.mlp.down_proj" in printed
    assert "Not complete" in printed


def test_one_adapter_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write_adapter(tmp_path / "one"))]) == 2
    assert "at least two" in capsys.readouterr().err
