"""Mutation testing: break the core in every way that mutmut knows, and see that a test fails each time.

    python .ci/mutation.py [MODULE ...]

Each mutant of a module is run against that module's own tests, with the kernels as plain Python, in a clone of HEAD.
What survived is written to docs/numbers/mutation.json; why each survivor is equivalent stands in .ci/equivalent.toml.
The whole takes about an hour on one core.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "numbers" / "mutation.json"
EQUIVALENT = ROOT / ".ci" / "equivalent.toml"

# The tests that a mutant meets, the quickest first.
TESTS = {
    "scaling": "test_scaling test_messages properties/test_scaling test_sweeps",
    "factors": "test_factors test_messages test_door properties/test_factors",
    "ranks": "test_ranks test_messages properties/test_ranks",
    "spectra": "test_spectra test_messages test_door test_ranks test_sweeps properties/test_ranks",
    "sweeps": "test_sweeps test_messages test_door properties/test_sweeps",
    "learning": "test_learning test_messages test_door properties/test_learning",
    "allocation": "test_allocation properties/test_allocation",
    "noise": "test_noise",
    "storage": "test_storage",
    "kernels/energies": "test_kernels test_sweeps properties/test_sweeps",
    "kernels/learning": "test_kernels test_learning properties/test_learning",
}


def main(modules: list[str]) -> int:
    """Run the modules named, or all; the exit code says whether every survivor of these is explained."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for module in modules or TESTS:
        with tempfile.TemporaryDirectory() as folder:
            results[module] = tried(module, Path(folder, "clone"))
        # Written after each module: an hour's work is not lost to an interrupt.
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{module}: {results[module]['killed']} of {results[module]['mutants']} killed", flush=True)
    known = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    unexplained = [
        f"{module}: {survivor['was']}  ->  {survivor['became']}"
        for module in modules or TESTS
        for survivor in results[module]["survivors"]
        if survivor["became"] not in known.get(module, {})
    ]
    print("\n".join(unexplained), end="\n" if unexplained else "")
    return bool(unexplained)


def tried(module: str, clone: Path) -> dict[str, Any]:
    """Run every mutant of a module."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    tests = " ".join(f"tests/{name}.py" for name in TESTS[module].split())
    # No bytecode: a mutant written within a second of the last one would be taken for it.
    env = os.environ | {
        "CI": "true",
        "NUMBA_DISABLE_JIT": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(clone),
    }
    mutmut = [sys.executable, "-m", "mutmut"]
    command = [
        *mutmut, "run", "--simple-output", "--no-progress", "--paths-to-mutate", f"lowrank_core/{module}.py",
        "--tests-dir", "tests", "--runner", f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}",
    ]  # fmt: skip
    log = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    with sqlite3.connect(clone / ".mutmut-cache") as cache:
        rows = cache.execute("select id, status from Mutant order by id").fetchall()
    if not rows or any(status == "untested" for _, status in rows):
        raise RuntimeError(f"mutmut stopped on {module}:\n{log.stdout[-3000:]}{log.stderr[-3000:]}")
    survived = [identifier for identifier, status in rows if status == "bad_survived"]
    shown = [
        subprocess.run([*mutmut, "show", str(i)], cwd=clone, capture_output=True, text=True, check=True).stdout
        for i in survived
    ]
    return {
        "mutants": len(rows),
        "killed": len(rows) - len(survived),
        "survivors": [changed(diff) for diff in shown],
    }


def changed(diff: str) -> dict[str, str]:
    """Take the line that was and the line that it became from a diff."""
    lines = diff.splitlines()
    was, became = (
        next(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))
        for sign in "-+"
    )
    return {"was": was, "became": became}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
