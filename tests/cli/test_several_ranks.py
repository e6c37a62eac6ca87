"""Several ranks of extract and resize on the command line: one table, and a file for each."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from .test_written_verbs import best, difference, product, run


def test_several_ranks_are_reported_side_by_side(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, rows = tmp_path / "report.json", tmp_path / "rows.csv"
    options = ["--rank", "4,2", "--exclude", "embed_tokens", "--json", report, "--csv", rows]
    assert run("extract", *tuning, tmp_path / "out", *options) == 0
    printed = capsys.readouterr().out
    assert "2 adapters in " in printed
    adapters = json.loads(report.read_text())
    assert [adapter["out"] for adapter in adapters] == [str(tmp_path / "out-r2"), str(tmp_path / "out-r4")]
    for adapter, rank in zip(adapters, (2, 4), strict=True):
        assert {layer["rank"] for layer in adapter["layers"]} == {rank}
        assert np.allclose(product(tmp_path / f"out-r{rank}") * 16 / rank, best(difference(*tuning), rank), atol=1e-5)
        row = next(line for line in printed.splitlines() if f"out-r{rank}" in line and "%" in line)
        assert f"{adapter['totals']['variance_captured']:.1%}"[:4] in row
    with rows.open() as file:
        assert [row["requested_rank"] for row in csv.DictReader(file)] == ["2"] * 4 + ["4"] * 4
    assert "Layers of" not in printed
    assert run("extract", *tuning, tmp_path / "out", *options[:4], "--force", "--full") == 0
    assert capsys.readouterr().out.count("Layers of") == 2


def test_a_figure_is_of_one_adapter(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "figure.png"
    assert run("extract", *tuning, tmp_path / "out", "--rank", "2,4", "--figure", figure) == 2
    assert "--figure draws one adapter" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
