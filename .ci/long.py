"""The long profile: 10,000 examples a property, and how long they took.

    python .ci/long.py [FILE ...]

Runs tests/properties and the bounds that hold with a probability only (tests/internals/test_certificate.py), or some of
these files by their names (``test_ranks``), and writes docs/numbers/long.json, without the files that no longer exist.
A night's work on one core; it may be interrupted, since each file is written when it is done.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import records

GENERATED = re.compile(r"during generate phase \(([\d.]+) seconds\).*?- (\d+) passing", re.DOTALL)


def main(names: list[str]) -> int:
    """Run the files named, or all; the exit code says whether one failed."""
    tests = records.ROOT / "tests"
    paths = [*sorted((tests / "properties").glob("test_*.py")), tests / "internals" / "test_certificate.py"]
    files = {path.stem: path for path in paths}
    results = {name: result for name, result in records.read("long").items() if name in files}
    failed = False
    for name in names or files:
        options = ["-q", "-n0", "--hypothesis-profile=long", "--hypothesis-show-statistics"]
        command = ["-m", "pytest", *options, str(files[name])]
        run = subprocess.run([sys.executable, *command], cwd=records.ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            failed = True
            print(run.stdout)
        elif found := GENERATED.findall(run.stdout):
            results[name] = summary(found)
            records.write("long", results)
        print(f"{name}: {results.get(name, 'no properties')}", flush=True)
    return failed


def summary(found: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the sums over a file's properties, each given as (seconds, examples)."""
    return {
        "properties": len(found),
        "examples": sum(int(examples) for _, examples in found),
        "minutes": round(sum(float(seconds) for seconds, _ in found) / 60, 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
