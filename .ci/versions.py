"""Try the library on every Python at hand, with the oldest and the newest releases of what it depends on.

    python .ci/versions.py [--releases oldest|newest] [PYTHON ...]

PYTHON is an interpreter, as python3.12 or a path; without any, python3.11 to python3.15, where they are found. Each
gets two new environments: one with the oldest releases that pyproject.toml accepts and that have wheels for the
interpreter, one with the newest. The tests of the core, the models and the testing module run there, and what was
tried is written to docs/numbers/versions.json. Left out are the tests beside peers, since PyTorch has no small wheel
for every Python, and those of the command line, which would try the code of others. About ten minutes an environment
on one core. The exit code is 1 where a test fails, and where no interpreter has passed with a lower bound of
pyproject.toml. uv, of the `dev` group, chooses the releases.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import records

PYTHONS = tuple(f"python3.{minor}" for minor in range(11, 16))
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
SHOWN = ("numpy", "numba", "threadpoolctl", "ml_dtypes", "safetensors", "hypothesis")
# These need the command line's own dependencies, or those of the documentation.
IGNORED = ("tests/cli", "tests/test_docs.py", "tests/test_study.py")


def main() -> int:
    """Try the interpreters named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", choices=RESOLUTIONS, action="append")
    parser.add_argument("pythons", metavar="PYTHON", nargs="*")
    options = parser.parse_args()
    failed = False
    for python in options.pythons or [path for name in PYTHONS if (path := shutil.which(name))]:
        for releases in options.releases or RESOLUTIONS:
            with tempfile.TemporaryDirectory() as folder:
                result = run_tests(python, RESOLUTIONS[releases], Path(folder))
            failed |= result["outcome"] != "passed"
            record(releases, result)
            print(releases, result, flush=True)
    untried = list(untried_bounds())
    print("".join(f"no interpreter has passed with {bound}\n" for bound in untried), end="")
    return failed or bool(untried)


def project() -> dict[str, object]:
    """Read the project's table of pyproject.toml."""
    return tomllib.loads((records.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def untried_bounds() -> Iterator[str]:
    """Yield the core's requirements whose lower bound has not passed on any interpreter."""
    results = records.read("versions").values()
    oldest = [result for result in results if (result["releases"], result["outcome"]) == ("oldest", "passed")]
    for requirement in project()["dependencies"]:
        name, bound = requirement.split(">=")
        if not any(f"{result[name]}.".startswith(f"{bound}.") for result in oldest):
            yield requirement


def run_tests(python: str, resolution: str, folder: Path) -> dict[str, str | int]:
    """Install a checkout of HEAD into a new environment, and run its tests there."""
    clone, environment = folder / "clone", folder / "environment"
    subprocess.run(["git", "clone", "--quiet", str(records.ROOT), str(clone)], check=True)
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    own = str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")
    if not install(own, clone, resolution):
        return {"python": version(own), "outcome": "these have no wheels for it"}
    # The installed package is what is tried, not the checkout.
    shutil.rmtree(clone / "lowrank_core")
    ignored = [argument for path in IGNORED for argument in ("--ignore", path)]
    run = subprocess.run(
        [
            own,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--hypothesis-profile=few",
            "-m",
            "not interop",
            *ignored,
        ],
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


def install(python: str, clone: Path, resolution: str) -> bool:
    """Return whether the dependencies have wheels for an interpreter; with them, the tests' own and the package."""
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    project = str(clone / "pyproject.toml")
    wanted = ["-r", project, "--extra", "all", "--group", f"{project}:test-core"]
    # None is built from source: what users install is wheels.
    if subprocess.run([*uv, "--only-binary", ":all:", "--resolution", resolution, *wanted], check=False).returncode:
        return False
    subprocess.run([*uv, "--no-deps", str(clone)], check=True)
    return True


def version(python: str, package: str = "") -> str:
    """Return the version of an interpreter, with a "t" where it is free-threaded, or of a package installed for it."""
    code = (
        f"import importlib.metadata as m; print(m.version({package!r}))"
        if package
        else "import platform, sysconfig; "
        "print(platform.python_version() + 't' * bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def record(releases: str, result: dict[str, str | int]) -> None:
    """Write the result of one environment beside those of the others."""
    python = str(result["python"])
    minor = ".".join(python.split(".")[:2]) + "t" * python.endswith("t")
    results = records.read("versions") | {f"{minor}, {releases}": {"releases": releases, **result}}
    records.write("versions", dict(sorted(results.items())))


if __name__ == "__main__":
    sys.exit(main())
