"""Try the library on every Python at hand, with the oldest and the newest releases of what it depends on.

    python .ci/versions.py [PYTHON ...]

PYTHON is an interpreter, as python3.12 or a path; without any, python3.11, python3.12 and python3.13, where they are
found. Each gets two new environments: one with the lower bounds that pyproject.toml states, one with the newest
releases of the package index. The tests of the core, the models and the testing module run there, and what was tried
is written to docs/numbers/versions.json. Left out are the tests beside peers, since PyTorch has no small wheel for
every Python, and those of the command line, which would try the code of others. About ten minutes an environment on
one core. The exit code is 1 where a test fails, and where no interpreter has passed with a lower bound of
pyproject.toml.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import records

PYTHONS = ("python3.11", "python3.12", "python3.13")
# None of these is built from source: what users install is wheels.
BINARY = "numpy,scipy,numba,llvmlite,ml_dtypes,regex,safetensors"
SHOWN = ("numpy", "numba", "threadpoolctl", "ml_dtypes", "safetensors", "hypothesis")
# These need the command line's own dependencies, or those of the documentation.
IGNORED = ("tests/cli", "tests/test_docs.py", "tests/test_study.py")


def main(pythons: list[str]) -> int:
    """Try the interpreters named, or all."""
    failed = False
    for python in pythons or [path for name in PYTHONS if (path := shutil.which(name))]:
        for releases, bounds in (("oldest", lower_bounds()), ("newest", [])):
            with tempfile.TemporaryDirectory() as folder:
                result = run_tests(python, bounds, Path(folder))
            failed |= result["outcome"] != "passed"
            record(releases, result)
            print(releases, result, flush=True)
    untried = list(untried_bounds())
    print("".join(f"no interpreter has passed with {bound}\n" for bound in untried), end="")
    return failed or bool(untried)


def project() -> dict[str, object]:
    """Read the project's table of pyproject.toml."""
    return tomllib.loads((records.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lower_bounds() -> list[str]:
    """Return the lower bounds of the core and of the extras that users install, as exact releases."""
    extras = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *extras["models"], *extras["dask"], *extras["testing"]]
    return [requirement.replace(">=", "==") for requirement in requirements if ">=" in requirement]


def untried_bounds() -> Iterator[str]:
    """Yield the core's requirements whose lower bound has not passed on any interpreter."""
    results = records.read("versions").values()
    oldest = [result for result in results if (result["releases"], result["outcome"]) == ("oldest", "passed")]
    for requirement in project()["dependencies"]:
        name, bound = requirement.split(">=")
        if not any(f"{result[name]}.".startswith(f"{bound}.") for result in oldest):
            yield requirement


def run_tests(python: str, bounds: list[str], folder: Path) -> dict[str, str | int]:
    """Install a checkout of HEAD into a new environment, and run its tests there."""
    clone, environment = folder / "clone", folder / "environment"
    subprocess.run(["git", "clone", "--quiet", str(records.ROOT), str(clone)], check=True)
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
    ignored = [argument for path in IGNORED for argument in ("--ignore", path)]
    run = subprocess.run(
        [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not interop", *ignored],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
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
    """Return the version of an interpreter, or of a package installed for it."""
    code = (
        f"import importlib.metadata as m; print(m.version({package!r}))"
        if package
        else "import platform; print(platform.python_version())"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def record(releases: str, result: dict[str, str | int]) -> None:
    """Write the result of one environment beside those of the others."""
    minor = ".".join(str(result["python"]).split(".")[:2])
    results = records.read("versions") | {f"{minor}, {releases}": {"releases": releases, **result}}
    records.write("versions", dict(sorted(results.items())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
