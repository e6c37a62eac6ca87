"""No file of a report takes the place of what a command reads, of what else it writes, or of another report."""

import shutil
from pathlib import Path

import pytest

from lowrank_core.cli.app import main


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def files(adapter: Path, checkpoints: tuple[Path, Path], tmp_path: Path) -> dict[str, Path]:
    """A folder and a single file of one adapter, two checkpoints, and a link to the adapter's tensors."""
    tensors = adapter / "adapter_model.safetensors"
    link = tmp_path / "report.json"
    link.symlink_to(tensors)
    style = tmp_path / "style" / "style.safetensors"
    style.parent.mkdir()
    shutil.copyfile(tensors, style)
    base, tuned = checkpoints
    named = {"FOLDER": adapter, "TENSORS": tensors, "CONFIG": adapter / "adapter_config.json", "ALL": tmp_path}
    return named | {"STYLE": style, "BESIDE": style.with_stem("other"), "LINK": link, "BASE": base, "TUNED": tuned}


@pytest.mark.parametrize(
    ("arguments", "option", "path"),
    [
        (["inspect", "STYLE"], "--json", "STYLE"),
        (["inspect", "STYLE"], "--csv", "BESIDE"),
        (["inspect", "FOLDER"], "--json", "TENSORS"),
        (["inspect", "FOLDER"], "--json", "LINK"),
        (["inspect", "FOLDER"], "--csv", "CONFIG"),
        (["inspect", "TUNED", "--base", "BASE"], "--json", "BASE"),
        (["inspect", "ALL", "--recursive"], "--csv", "TENSORS"),
        (["inspect", "ALL", "--recursive"], "--jsonl", "TENSORS"),
        (["compare", "FOLDER", "STYLE"], "--json", "STYLE"),
        (["plan", "FOLDER", "--parameters", "100"], "--out", "TENSORS"),
        (["plan", "BASE", "TUNED", "--parameters", "100"], "--json", "BASE"),
        (["extract", "BASE", "TUNED", "--dry-run", "--rank", "1"], "--json", "TUNED"),
        (["resize", "FOLDER", "--dry-run", "--rank", "1"], "--csv", "TENSORS"),
        (["convert", "FOLDER", "new.safetensors"], "--json", "new.safetensors"),
        (["merge", "FOLDER", "STYLE", "new"], "--json", "STYLE"),
        (["apply", "BASE", "FOLDER", "new.safetensors"], "--json", "new.safetensors"),
        (["verify", "BASE", "FOLDER", "TUNED"], "--csv", "TUNED"),
    ],
)
def test_a_report_never_replaces_a_file_of_a_model(arguments, option, path, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert run(*(files.get(text, text) for text in (*arguments, option, path))) == 2
    assert "never takes the place of one: choose another name" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_two_reports_of_one_path_are_refused(adapter, tmp_path, capsys):
    assert run("inspect", adapter, "--json", tmp_path / "r", "--csv", adapter / ".." / "r") == 2
    assert "two files would be written to" in capsys.readouterr().err
    assert run("inspect", adapter, "--json", "/dev/null", "--csv", "/dev/null", "--quiet") == 0


def test_a_report_goes_into_an_adapter_s_folder_again_and_again(adapter):
    for _ in range(2):
        assert run("inspect", adapter, "--json", adapter / "report.json", "--quiet") == 0
