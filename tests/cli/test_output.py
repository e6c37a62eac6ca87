"""Files appear whole or not at all, JSON is JSON everywhere, and what is piped is plain."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowrank_core.cli import output
from lowrank_core.cli.tables import heading, listed, note, section, table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_json_text_is_json_and_keeps_every_digit() -> None:
    value = {
        "a": np.array([0.1, 1 / 3]),
        "b": {"c": [{"d": np.float64(2.5)}, {}]},
        "e": (1, None),
        "f": "α/√r",
        "g": {},
    }
    text = output.json_text(value)
    assert json.loads(text) == {
        "a": [0.1, 1 / 3],
        "b": {"c": [{"d": 2.5}, {}]},
        "e": [1, None],
        "f": "α/√r",
        "g": {},
    }
    assert '"a": [0.1, 0.3333333333333333]' in text


def test_json_has_null_for_numbers_that_are_not_finite() -> None:
    text = output.json_text({"a": [np.inf, -np.inf, np.nan, 1.0], "b": float("nan")})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None, None, 1.0], "b": None}


def test_csv_text_reads_back() -> None:
    rows = [{"name": "a,b", "norm": 1 / 3, "failure": None}, {"name": 'c"d', "norm": None, "failure": "NaN\nin it"}]
    read = list(csv.DictReader(io.StringIO(output.csv_text(rows), newline="")))
    assert [row["name"] for row in read] == ["a,b", 'c"d']
    assert float(read[0]["norm"]) == 1 / 3
    assert read[1] == {"name": 'c"d', "norm": "", "failure": "NaN\nin it"}


def write(path: Path, content: object) -> None:
    output.write_report(content, lambda _: [], (path, lambda content: content))


class HalfDrawn:
    """A figure during whose writing Ctrl-C is pressed."""

    def savefig(self, path: Path, **_: object) -> None:
        path.write_text("ne")
        raise KeyboardInterrupt


def test_a_file_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.svg"
    path.write_text("old")
    old = path.stat().st_ino
    with pytest.raises(KeyboardInterrupt):
        write(path, HalfDrawn())
    assert path.read_text() == "old"
    write(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != old, "the old file was overwritten, not replaced"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [(".", FileExistsError, "is a folder"), ("no/such/report.json", FileNotFoundError, "the folder 'no/such' for")],
)
def test_paths_that_cannot_be_written_are_refused(path: str, error: type[OSError], message: str) -> None:
    with pytest.raises(error, match=message):
        output.check_outputs(None, Path(path))


def test_no_file_and_standard_output_are_accepted() -> None:
    output.check_outputs(None, None, output.STDOUT)


def a_table() -> Table:
    table = Table()
    table.add_column("name", style="red")
    table.add_row(Text("bold", style="bold"))
    return table


def test_piped_output_is_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    output.show([a_table(), Padding("padded", (0, 9))])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert all(line == line.rstrip() for line in printed.splitlines())


def test_markup_in_a_name_is_not_interpreted(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold red]x[/bold red] :smile: [link=file:///]y[/]"
    rows = table("name")
    rows.add_row(name)
    output.show([rows, section(name, note(name)), heading(name), *listed({name: name}, full=True)])
    assert " ".join(capsys.readouterr().out.split()).count(name) == 6


@pytest.mark.parametrize(("columns", "width"), [(None, 100), ("60", 60), ("0", 100), ("wide", 100)])
def test_piped_width_is_stable_but_for_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str | None, width: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    output.show([Text("word " * 100)])
    longest = max(len(line) for line in capsys.readouterr().out.splitlines())
    assert width - 5 <= longest <= width


def test_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.show([Text("loud", style="bold red")])
    assert "\x1b[" in terminal.getvalue()


def test_an_output_without_greek_letters_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    output.show([Text("α/r")])
    assert written.getvalue() == b"?/r\n"


def test_the_progress_bar_is_for_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with output.progress_bar("layers") as advance:
        advance("a", 1, 2)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.progress_bar("layers") as advance:
        advance("a", 1, 2)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stdout", Terminal())
    with output.progress_bar("layers") as advance:
        advance("a", 1, 2)
    assert "1/2" in terminal.getvalue()
    assert "left" in terminal.getvalue()
