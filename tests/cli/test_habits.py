"""What people type: numbers with a suffix, a dry run without an output, and two paths where one is inspected."""

from pathlib import Path

import pytest
import typer

from lowrank_core.cli.options import parse_count, parse_megabytes, parse_ranks

from .test_written_verbs import run


@pytest.mark.parametrize(
    ("text", "number"),
    [("8000", 8000), ("8k", 8000), ("2M", 2_000_000), ("0.5G", 500_000_000), ("1.5B", 1_500_000_000), ("1_000", 1000)],
)
def test_large_numbers_have_suffixes(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "k", "2q", "1.5", "0.0001k", "nan", "infM", "2 M k"])
def test_what_is_not_a_whole_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a whole number, as 8000, 8k"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "size"), [("20", 20.0), ("2.5", 2.5), ("20M", 20.0), ("0.5G", 500.0), ("800kB", 0.8), ("1GB", 1000.0)]
)
def test_a_size_is_a_number_of_megabytes_or_says_its_unit(text: str, size: float) -> None:
    assert parse_megabytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "2TB", "M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a"):
        parse_megabytes(text)


def test_ranks_have_suffixes_too() -> None:
    assert parse_ranks("1k, 64") == (64, 1000)


def test_a_budget_with_a_suffix_is_the_same_budget(
    tuning: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for budget in ("120", "0.12k"):
        assert run("plan", *tuning, "--parameters", budget, "--exclude", "embed_tokens") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_dry_run_needs_no_output(
    tuning: tuple[Path, Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.iterdir())
    assert run("extract", *tuning, "--rank", 2, "--exclude", "embed_tokens", "--dry-run") == 0
    assert "A dry run: nothing was written." in capsys.readouterr().out
    for extra in (["--rank", 2], ["--rank", 2, "--format", "kohya"], ["--rank", "1,2"]):
        assert run("resize", adapter, *extra, "--dry-run") == 0
        printed = capsys.readouterr().out
        assert "A dry run: nothing was written." in printed
        assert "in memory" not in printed
    for arguments in (["extract", *tuning], ["resize", adapter]):
        assert run(*arguments, "--rank", 2) == 2
        assert "where to write? Give OUT, or --dry-run" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_two_paths_are_asked_whether_one_is_the_base(
    tuning: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", *tuning) == 2
    assert "Did you mean --base?" in capsys.readouterr().err
