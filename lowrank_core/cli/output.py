"""Where output goes: a console that is plain when piped, and files that appear whole or not at all."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from lowrank_core.cli.printable import in_csv, in_json
from lowrank_core.cli.silence import is_silent
from lowrank_core.models import to_json
from lowrank_core.models.files.atomic import check_replaceable, explaining_full_disk, replacing
from lowrank_core.models.files.folders import MODEL_FILES
from lowrank_core.models.printable import with_printable_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

STDOUT = Path("-")
_INCOMPLETE = 1
_CONDITION_MET = 3
_PIPED_WIDTH = 100
_FIGURE_ENDINGS = (".png", ".pdf", ".svg")

Result = TypeVar("Result")


def show(parts: Iterable[RenderableType]) -> None:
    """Print to standard output: in colour and as wide as the terminal, or plain and of one width where piped."""
    if is_silent():
        return
    from rich.console import Console

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
        # Rich pads every line to the full width, which a file or a pipe has no use for.
        stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _stdout() -> TextIO:
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        # An output that has no Greek letters shows question marks, rather than nothing at all.
        stdout.reconfigure(errors="replace")
    return stdout


def _piped_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else _PIPED_WIDTH


@contextmanager
def progress_bar(things: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (name, done, total) that moves a bar on standard error, with the time that is left.

    It does nothing where output is piped, and in silence.
    """
    if is_silent() or not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda _name, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeRemainingColumn(), TextColumn("left")),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(things, total=None)
        yield lambda _name, done, total: progress.update(task, completed=done, total=total)


def check_outputs(figure: Path | None, *texts: Path | None, others: Iterable[Path | None] = ()) -> None:
    """Check, before any work is done, that a figure and texts can be written, and not two to one place.

    `others` are what else the command reads or writes: checkpoints and adapters, whose files no report replaces.
    """
    files = [path for path in (figure, *texts) if path is not None and path != STDOUT]
    for path in files:
        check_replaceable(path, None, force=True)
    _check_distinct([path for path in files if not _is_device(path)], [path for path in others if path is not None])
    if sum(path == STDOUT for path in texts) > 1:
        raise ValueError("only one file can go to standard output: name a file for the others.")
    if figure is not None:
        if figure.suffix.lower() not in _FIGURE_ENDINGS:
            raise ValueError(
                f"--figure {str(figure)!r}: its ending says the format; take {', '.join(_FIGURE_ENDINGS)}."
            )
        # Imported now, so that a missing matplotlib is reported before the work and not after it.
        importlib.import_module("lowrank_core._figures")


def _check_distinct(files: Sequence[Path], others: Sequence[Path]) -> None:
    """Check that each file of a report has a path of its own, which is not that of a file of a model."""
    for number, path in enumerate(files):
        final = Path(os.path.realpath(path))
        if any(final == Path(os.path.realpath(file)) for file in files[:number]):
            raise ValueError(f"two files would be written to {str(path)!r}: name another for one of them.")
        for other in others:
            if _is_file_of(final, Path(os.path.realpath(other))):
                raise FileExistsError(
                    f"{str(path)!r} is {str(other)!r}, or has the name of a file of a model in its folder, and a "
                    "report never takes the place of one: choose another name"
                )


def _is_file_of(path: Path, model: Path) -> bool:
    """Whether a path is that of a model, or has the name of a file of one and is in its folder."""
    folder = model if model.is_dir() else model.parent
    return path == model or (folder in path.parents and path.name.endswith(MODEL_FILES))


def _is_device(path: Path) -> bool:
    """Whether a path is a device or a named pipe, which cannot be replaced, only written to."""
    return path.exists() and not path.is_file()


def write_report(
    result: Result,
    tables: Callable[[Result], Iterable[RenderableType]],
    *files: tuple[Path | None, Callable[[Result], str | Figure]],
) -> None:
    """Write the files of a result, and print its tables, or the text that goes to standard output instead.

    `files` are pairs of a path, None where the file is not wanted, and a function that returns its text or figure.
    """
    # Files first: who reads the tables through a pipe, as head does, may close it before the last of them.
    for path, content in files:
        if path is not None and path != STDOUT:
            _write(path, content(result))
    printed = [content(result) for path, content in files if path == STDOUT]
    for text in printed:
        _stdout().write(str(text))
    if not printed:
        show(tables(with_printable_texts(result)))


def _write(path: Path, content: str | Figure) -> None:
    with _written(path) as destination:
        if isinstance(content, str):
            destination.write_text(content, encoding="utf-8", newline="")
        else:
            from lowrank_core._figures import save

            save(content, destination, path.suffix)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    if _is_device(path):
        with explaining_full_disk(path, path):
            yield path
        return
    with replacing(path, folder=False) as temporary:
        yield temporary


def json_text(result: object) -> str:
    """Return JSON with an object's entries on lines of their own and a list of numbers on one; NaN and ±∞ are null."""
    return in_json(_json(to_json(result), "")) + "\n"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as comma-separated values, with a column for every key."""
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: in_csv(value) for column, value in to_json(row).items()} for row in rows)
    return stream.getvalue()


def _json(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        entries = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_json(item, inner)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def exit_code(*, complete: bool, is_met: bool = False) -> int:
    """Return the exit code of a run: of a condition of failure that is met, else of whether the report is complete."""
    if is_met:
        return _CONDITION_MET
    return 0 if complete else _INCOMPLETE
