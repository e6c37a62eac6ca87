"""The long profile: 10,000 examples a property, and how long that took.

    python .ci/long.py [FILE ...]

Runs tests/properties, or some files of it by their names (``test_ranks``), and writes docs/numbers/long.json.
A night's work on one core; interrupt it as you like, since each file is written when it is done.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "numbers" / "long.json"
GENERATED = re.compile(r"during generate phase \(([\d.]+) seconds\).*?- (\d+) passing", re.DOTALL)


def main(files: list[str]) -> int:
    """Run the files named, or all."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    failed = False
    for path in sorted((ROOT / "tests" / "properties").glob("test_*.py")):
        if files and path.stem not in files:
            continue
        command = ["-m", "pytest", "-q", "--hypothesis-profile=long", "--hypothesis-show-statistics", str(path)]
        run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        found = GENERATED.findall(run.stdout)
        if run.returncode:
            failed = True
            print(run.stdout)
        elif found:
            results[path.stem] = {
                "properties": len(found),
                "examples": sum(int(examples) for _, examples in found),
                "minutes": round(sum(float(seconds) for seconds, _ in found) / 60, 1),
            }
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{path.stem}: {results.get(path.stem, 'no properties')}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
