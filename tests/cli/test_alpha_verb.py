"""What ``lowrank alpha`` says becomes of the scale."""

import json
from pathlib import Path

import pytest

from lowrank_core.cli.app import main


def cases(tmp_path: Path, *arguments: object) -> dict[str, dict]:
    file = tmp_path / "alpha.json"
    assert main(["alpha", *map(str, arguments), "--json", str(file)]) == 0
    return {case["what"]: case for case in json.loads(file.read_text())["cases"]}


def test_from_a_small_rank_to_a_large_one_under_the_other_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = cases(tmp_path, "--rank", 8, "--alpha", 16, "--to-rank", 64, "--to-rule", "rslora")
    assert by_name["now"]["scaling"] == 2
    assert by_name["now"]["learning_gain"] == 32
    kept = by_name["α that keeps γ"]
    assert (kept["alpha"], kept["scaling"], kept["learning_gain"]) == (16, 2, 256)
    assert (kept["applied_with_the_rule"], kept["applied_as_standard"]) == (2, 0.25)
    gain = by_name["α that keeps γ²r"]
    assert gain["learning_gain"] == pytest.approx(32, rel=1e-14)
    assert gain["alpha"] == pytest.approx(16 / 8**0.5, rel=1e-14)
    printed = capsys.readouterr().out
    assert "Readers disagree about α/√r" in printed


def test_an_unchanged_alpha_changes_the_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_name = cases(tmp_path, "--rank", 64, "--alpha", 16, "--to-rank", 8)
    assert by_name["α as it is"]["scaling"] == 8 * by_name["now"]["scaling"]
    assert by_name["α that keeps γ"]["alpha"] == 2
    assert "Readers disagree" not in capsys.readouterr().out


def test_no_change_is_one_row(tmp_path: Path) -> None:
    assert list(cases(tmp_path, "--rank", 4, "--alpha", 8, "--rule", "rslora")) == ["now"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "8", "--alpha", "-1"], "alpha must be finite and positive"),
        (["--rank", "0", "--alpha", "16"], "'--rank'"),
        (["--rank", "8", "--alpha", "16", "--rule", "best"], "unknown scaling rule 'best'"),
        (["--rank", "8", "--alpha", "16", "--to-rule", "unscaled"], "no alpha gives the scaling 2.0"),
        (["--rank", "8"], "'--alpha'"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alpha", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
