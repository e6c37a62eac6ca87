"""Where output goes: a console that is plain when piped, and files that appear whole or not at all."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "STDOUT",
    "check_outputs",
    "check_writable",
    "csv_text",
    "json_text",
    "progress_bar",
    "save_figure",
    "show",
    "write_report",
    "write_text",
    "written",
]

STDOUT = Path("-")
PIPED_WIDTH = 100
FIGURE_ENDINGS = (".png", ".pdf", ".svg")


def show(parts: Iterable[RenderableType]) -> None:
    """Print to standard output: in colour and as wide as the terminal, or plain and of one width where piped."""
    stdout = _stdout()
    terminal = stdout.isatty()
    console = Console(
        file=stdout,
        force_terminal=terminal,
        width=None if terminal else _piped_width(),
        highlight=False,
        emoji=False,
        markup=False,
    )
    for part in parts:
        if terminal:
            console.print(part)
            continue
        with console.capture() as captured:
            console.print(part)
        # Rich pads every line to the full width; in a file or a pipe that is only noise.
        stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _stdout() -> TextIO:
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        # An output that has no Greek letters shows question marks, rather than nothing at all.
        stdout.reconfigure(errors="replace")
    return stdout


def _piped_width() -> int:
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else PIPED_WIDTH


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function of (name, done, total) that moves a bar on standard error; no bar where output is no terminal."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda _name, _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda _name, done, total: progress.update(task, completed=done, total=total)


def check_writable(path: Path | None) -> None:
    """Raise before any work is done if this file could not be written at its end."""
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into: make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"the folder {str(path.parent)!r} may not be written to: choose another for {path.name!r}."
        )


def check_outputs(figure: Path | None, *texts: Path | None) -> None:
    """Raise before any work is done if a figure or one of these texts could not be written, or two go to one place."""
    for path in (figure, *texts):
        check_writable(path)
    if sum(path == STDOUT for path in texts) > 1:
        raise ValueError("only one of --json and --csv can go to standard output: name a file for the other.")
    if figure is not None:
        if figure.suffix.lower() not in FIGURE_ENDINGS:
            raise ValueError(f"--figure {str(figure)!r}: its ending says the format; take {', '.join(FIGURE_ENDINGS)}.")
        # Loaded now, so that a missing matplotlib is said before the work and not after it.
        importlib.import_module("lowrank_core.cli.figures")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` if all went well and disappears if it did not."""
    final = path.resolve()
    if final.exists() and not final.is_file():
        # A device or a named pipe cannot be replaced, only written to.
        yield final
        return
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def write_report(
    tables: Callable[[], Iterable[RenderableType]],
    texts: Sequence[tuple[Path | None, Callable[[], str]]],
    figure: Path | None = None,
    draw: Callable[[], Figure] | None = None,
) -> None:
    """Write a report's files, and print its tables, or the text that is to go to standard output instead of them.

    Parameters
    ----------
    tables : callable
        Gives the tables.
    texts : sequence of (Path or None, callable)
        Where a text goes, and what gives it; None: it is not asked for.
    figure : Path, optional
        Where the figure goes.
    draw : callable, optional
        Gives the figure.
    """
    # Files first: who reads the tables through a pipe, as head does, may close it before the last of them.
    for path, text in texts:
        if path not in {None, STDOUT}:
            write_text(path, text())
    if figure is not None and draw is not None:
        save_figure(figure, draw())
    printed = [text for path, text in texts if path == STDOUT]
    for text in printed:
        write_text(STDOUT, text())
    if not printed:
        show(tables())


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or to standard output for ``-``."""
    if path == STDOUT:
        _stdout().write(text)
        return
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format that the path's ending names."""
    from lowrank_core.cli.figures import save

    with written(path) as temporary:
        save(figure, temporary, path.suffix)


def json_text(value: Mapping[str, Any]) -> str:
    """Write as JSON, an object's entries on lines of their own and a list of numbers on one; NaN and ±∞ are null."""
    return _json(_plain(value), "") + "\n"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows with the same keys as comma-separated values."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(_plain(row) for row in rows)
    return stream.getvalue()


def _json(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        entries = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_json(item, inner)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
