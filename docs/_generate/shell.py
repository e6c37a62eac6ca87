"""Run the blocks of a page, one after the other, in a folder that looks like a fresh clone.

A block is a fence marked ``{run}``, of shell commands, or ``{run} python``, a script. All blocks of a page run in
one folder, as they do for a reader who copies them in order. The site shows their output, as on a terminal, and the
figure that they write; the tests check that they pass. .ci/run does both with one checkout, and names a folder in
``LOWRANK_PAGE_RESULTS`` so that each page runs once.
"""

import hashlib
import json
import os
import pty
import re
import selectors
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^```\{run\}(?: (?P<language>python))?\n(?P<options>(?::[^\n]*\n)*)\n?(?P<commands>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
# Wide enough for every table, narrow enough for the page.
COLUMNS = 84
# The escape sequences of a terminal that set colours and weights.
STYLE = re.compile(r"\x1b\[([\d;]*)m")


class Block(NamedTuple):
    """The commands of a block, the program that runs them, the exit code to expect, and the figure that is shown."""

    commands: str
    language: str
    expected: int
    figure: str | None


class Result(NamedTuple):
    """What a block printed, with a terminal's colours, its exit code and that to expect, and its figure, as SVG."""

    commands: str
    language: str
    printed: str
    code: int
    expected: int
    figure: str | None


def results(text):
    """Return the result of every block of a page."""
    folder = os.environ.get("LOWRANK_PAGE_RESULTS")
    kept = Path(folder, f"{hashlib.sha256(text.encode()).hexdigest()}.json") if folder else None
    if kept and kept.exists():
        return [Result(*fields) for fields in json.loads(kept.read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as clone:
        Path(clone, "docs").symlink_to(ROOT / "docs")
        found = [_result(block, Path(clone)) for block in blocks(text)]
    if kept:
        kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def blocks(text):
    """Yield every block of a page."""
    for match in FENCE.finditer(text):
        options = dict(re.findall(r"^:([\w-]+): *(.*)$", match["options"], re.MULTILINE))
        language = match["language"] or "bash"
        yield Block(match["commands"], language, int(options.get("exit", 0)), options.get("figure"))


def _result(block, folder):
    """Run a block, and return its result."""
    printed, code = _run(block, folder)
    drawn = Path(folder, block.figure) if block.figure else None
    figure = drawn.read_text(encoding="utf-8") if drawn and drawn.exists() else None
    return Result(block.commands, block.language, printed, code, block.expected, figure)


def _run(block, folder):
    """Run a block with the tools of this Python first on the path; return its output and the exit code."""
    environment = os.environ | {
        "COLUMNS": str(COLUMNS),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONIOENCODING": "utf-8",
        "TERM": "xterm-256color",
    }
    terminal, stdout = pty.openpty()
    termios.tcsetwinsize(stdout, (50, COLUMNS))
    # Standard error is no terminal, so that nothing draws a bar of progress.
    process = subprocess.Popen(
        [*PROGRAMS[block.language], block.commands],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    os.close(stdout)
    with process.stderr:
        printed = b"".join(_chunks([terminal, process.stderr.fileno()]))
    os.close(terminal)
    lines = printed.decode("utf-8").replace("\r\n", "\n").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines), process.wait()


def _chunks(descriptors):
    """Yield what arrives at file descriptors until all are at their end."""
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                chunk = _read(key.fd)
                if not chunk:
                    selector.unregister(key.fd)
                yield chunk


def _read(descriptor):
    """Return what can be read, nothing at the end."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        # What Linux says of a terminal that no process writes to any longer.
        return b""
