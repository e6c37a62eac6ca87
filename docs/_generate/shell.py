"""Run the shell blocks of a page, one after the other, in a folder that looks like a fresh clone.

A block is a fence marked ``{run}``. All blocks of a page run in one folder, as they do for a reader who
copies them in order. The site shows their output; the tests check that they pass.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```\{run\}\n(?P<options>(?::[^\n]*\n)*)\n?(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
# Wide enough for every table, narrow enough for the page.
COLUMNS = "84"


def blocks(text):
    """Yield (commands, expected exit code) for every block of a page."""
    for match in FENCE.finditer(text):
        exit_code = re.search(r"^:exit: *(\d+)$", match["options"], re.MULTILINE)
        yield match["commands"], int(exit_code[1]) if exit_code else 0


def prepare(folder):
    """Make `folder` look like a clone, as far as the pages use it."""
    link = Path(folder, "docs")
    if not link.exists():
        link.symlink_to(ROOT / "docs")


def run(commands, folder):
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
