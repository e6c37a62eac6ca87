"""``lowrank compare --series``: tables and files of a run's history."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.cli.app import main

from .conftest import write_adapter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for step in (100, 20, 300):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    return tmp_path / "run"


def test_each_kind_of_layer_has_a_row_for_each_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--series", str(run)]) == 0
    printed = capsys.readouterr().out
    steps = [
        line.split()[0] for line in printed.splitlines() if line.split()[:1] and line.split()[0] in {"20", "100", "300"}
    ]
    assert steps == ["20", "100", "300"] * 2
    assert "median of 2 layers" in printed


def test_files_have_every_row(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("all.json", "rows.csv", "history.svg")]
    options = [word for pair in zip(("--json", "--csv", "--figure"), map(str, files), strict=True) for word in pair]
    assert main(["compare", "--series", str(run), *options]) == 0
    rows = json.loads(files[0].read_text())["rows"]
    with files[1].open() as table:
        assert [float(row["norm"]) for row in csv.DictReader(table)] == [row["norm"] for row in rows]
    assert rows[0]["column_angle"] is None
    assert files[2].stat().st_size > 1000


def test_matches_are_not_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--series", str(run), "--match", "a=b"]) == 2
    assert "not for one run" in capsys.readouterr().err


def test_what_is_in_no_row_and_warnings_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        config = {"modules_to_save": ["head"], "init_lora_weights": "pissa"}
        file = write_adapter(tmp_path / f"run-{step}", **config) / "adapter_model.safetensors"
        save_file(load_file(file) | {"base_model.model.head.weight": np.ones((2, 3), np.float32)}, file)
    assert main(["compare", "--series", *(str(tmp_path / f"run-{step}") for step in (1, 2))]) == 1
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("Not low-rank, and not in the rows above", "head.weight", "Warnings"))
    assert "Not complete: some of what differs is in no layer." in printed
