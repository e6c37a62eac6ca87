"""``--quiet``: the exit code, the files that are asked for and errors, and nothing else."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from lowrank_core.cli import output
from lowrank_core.cli.program import VERBS
from lowrank_core.cli.silence import silenced

from .test_output import Terminal
from .test_written_verbs import run


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_a_quiet_run_writes_its_files_alone(
    tuning: tuple[Path, Path], tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    assert run("extract", *tuning, out, "--rank", 2, "--json", report, option) == 1
    assert capsys.readouterr() == ("", "")
    assert json.loads(report.read_text())["out"] == str(out)
    assert (out / "adapter_model.safetensors").is_file()


def test_errors_and_what_goes_to_standard_output_remain(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", tmp_path / "missing", "--quiet") == 2
    assert capsys.readouterr().err.startswith("lowrank: ")
    assert run("inspect", adapter, "--json", "-", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(adapter)


def test_warnings_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ["demo", "--size", 8, "--ranks", 2, "--alpha", 2000]
    assert run(*diverging, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run(*diverging) == 0
    assert "warning" in capsys.readouterr().err


def test_silence_ends_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = {name: Terminal() for name in ("stdout", "stderr")}
    for name, terminal in terminals.items():
        monkeypatch.setattr(sys, name, terminal)
    with silenced(), warnings.catch_warnings(record=True) as caught, output.progress_bar("layers") as advance:
        warnings.warn("anything", stacklevel=1)
        advance("a", 1, 2)
        output.show(["a table"])
    assert caught == []
    assert [terminal.getvalue() for terminal in terminals.values()] == ["", ""]
    output.show(["a table"])
    assert "a table" in terminals["stdout"].getvalue()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_be_quiet(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert "--quiet" in capsys.readouterr().out
