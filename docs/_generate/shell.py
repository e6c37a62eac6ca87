"""Run the shell blocks of a page, one after the other, in a folder that looks like a fresh clone.

A block is a fence marked ``{run}``. All blocks of a page run in one folder, as they do for a reader who
copies them in order. The site shows their output; the tests check that they pass. .ci/run does both with one
checkout, and names a folder in ``LOWRANK_PAGE_RESULTS`` so that each page runs once.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```\{run\}\n(?P<options>(?::[^\n]*\n)*)\n?(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
# Wide enough for every table, narrow enough for the page.
COLUMNS = "84"


class Result(NamedTuple):
    """What a block printed, its exit code, and the exit code that the page expects."""

    commands: str
    printed: str
    code: int
    expected: int


def results(text):
    """Return the result of every block of a page."""
    folder = os.environ.get("LOWRANK_PAGE_RESULTS")
    kept = Path(folder, f"{hashlib.sha256(text.encode()).hexdigest()}.json") if folder else None
    if kept and kept.exists():
        return [Result(*fields) for fields in json.loads(kept.read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as clone:
        Path(clone, "docs").symlink_to(ROOT / "docs")
        found = [Result(commands, *_run(commands, clone), expected) for commands, expected in _blocks(text)]
    if kept:
        kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def _blocks(text):
    """Yield (commands, expected exit code) for every block of a page."""
    for match in FENCE.finditer(text):
        exit_code = re.search(r"^:exit: *(\d+)$", match["options"], re.MULTILINE)
        yield match["commands"], int(exit_code[1]) if exit_code else 0


def _run(commands, folder):
    """Run commands with the tools of this Python first on the path; return their output and the exit code."""
    environment = os.environ | {
        "COLUMNS": COLUMNS,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return done.stdout, done.returncode
