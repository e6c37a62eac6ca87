"""Try the core on every Python at hand, with the oldest and the newest releases of what it depends on.

    python .ci/versions.py [PYTHON ...]

PYTHON is an interpreter, as python3.12 or a path; without any, python3.11, python3.12 and python3.13, where they are
found. Each gets two new environments: one with the lower bounds that pyproject.toml states, one with the newest
releases of the package index. The tests of the core, the models and the testing module run in them, and what was tried
is written to docs/numbers/versions.json. Those of real peers are left out, since PyTorch has no small wheel for every
Python, and those of the command line, which would try others' code. About ten minutes an environment on one core.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "numbers" / "versions.json"
PYTHONS = ("python3.11", "python3.12", "python3.13")
# None of these is built from source: what users install is wheels.
BINARY = "numpy,scipy,numba,llvmlite,ml_dtypes,safetensors"
SHOWN = ("numpy", "numba", "threadpoolctl", "ml_dtypes", "safetensors", "hypothesis")
# These need PyTorch or the command line's own dependencies, or hold what is written here to account.
LEFT_OUT = ("tests/interop", "tests/test_docs.py", "tests/cli", "tests/test_proof.py", "tests/test_study.py")


def main(pythons: list[str]) -> int:
    """Try the interpreters named, or all; the exit code says whether one failed."""
    failed = False
    for python in pythons or [path for name in PYTHONS if (path := shutil.which(name))]:
        for releases, bounds in (("oldest", lower_bounds()), ("newest", [])):
            with tempfile.TemporaryDirectory() as folder:
                found = tried(python, bounds, Path(folder))
            failed |= found["outcome"] != "passed"
            record(releases, found)
            print(releases, found, flush=True)
    return failed


def lower_bounds() -> list[str]:
    """Read what pyproject.toml asks for at least, as exact releases: for the core and the extras that users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["models"], *extras["dask"], *extras["testing"]]
    return [requirement.replace(">=", "==") for requirement in asked if ">=" in requirement]


def tried(python: str, bounds: list[str], folder: Path) -> dict[str, str | int]:
    """Install a checkout of HEAD into a new environment and run its tests there."""
    clone, environment = folder / "clone", folder / "environment"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    own = str(environment / "bin" / "python")
    wanted = [f"{clone}[cli,dask,testing]", *bounds, "pytest", "mpmath", "scipy"]
    install = subprocess.run(
        [own, "-m", "pip", "install", "-q", "--only-binary", BINARY, *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if install.returncode:
        return {"python": version(own), "outcome": "these have no wheels for it"}
    # The installed package is what is tried, not the checkout.
    shutil.rmtree(clone / "lowrank_core")
    ignored = [argument for path in LEFT_OUT for argument in ("--ignore", path)]
    run = subprocess.run(
        [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored],
        cwd=clone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    counted = re.search(r"(\d+) passed", run.stdout)
    if run.returncode:
        print(run.stdout[-6000:], run.stderr[-2000:])
    return {
        "python": version(own),
        **{name: version(own, name) for name in SHOWN},
        "tests": int(counted[1]) if counted else 0,
        "outcome": "failed" if run.returncode else "passed",
    }


def version(python: str, package: str = "") -> str:
    """Ask an interpreter for its own version, or for that of a package."""
    code = (
        f"import importlib.metadata as m; print(m.version({package!r}))"
        if package
        else ("import platform; print(platform.python_version())")
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def record(releases: str, found: dict[str, str | int]) -> None:
    """Write one environment's outcome beside those of the others."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    minor = ".".join(str(found["python"]).split(".")[:2])
    results[f"{minor}, {releases}"] = {"releases": releases, **found}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
