"""Build the distributions, check them, and use each of them without the checkout.

    python .ci/distributions.py [--no-tests]

dist/ gets a source distribution and the wheel that is built from it. The wheel is installed into an empty environment,
and runs `lowrank demo` and `python -m lowrank_core`. From the source distribution, unpacked elsewhere, the tests of the
core run; without them where --no-tests is given.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

import records

DIST = records.ROOT / "dist"
# Whether everything is there and can be imported; the whole suite is run from the checkout.
TESTS = ("tests/test_public_api.py", "tests/test_messages.py", "tests/test_ranks.py", "tests/test_updates.py")


def main(*, tested: bool) -> None:
    """Build, check and use the distributions."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--quiet", records.ROOT)
    (source,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", source, wheel)
    run(sys.executable, "-m", "check_wheel_contents", wheel)
    with tempfile.TemporaryDirectory() as folder:
        use_wheel(wheel, Path(folder, "wheel"))
        if tested:
            test_source(source, Path(folder, "source"))
    print(f"{source.name} and {wheel.name} are right")


def use_wheel(wheel: Path, folder: Path) -> None:
    """Install a wheel into an empty environment, and run both commands there."""
    python = environment(folder)
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cli]")
    run(python.with_name("lowrank"), "demo", cwd=folder)
    run(python, "-m", "lowrank_core", "--version", cwd=folder)


def test_source(source: Path, folder: Path) -> None:
    """Install a source distribution with its test group, and run the tests that are in it."""
    python = environment(folder)
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    run(python, "-m", "pip", "install", "--quiet", "-e", ".[all]", "--group", "test-core", cwd=unpacked)
    run(python, "-m", "pytest", "-q", *TESTS, cwd=unpacked)


def environment(folder: Path) -> Path:
    """Return the interpreter of a new, empty environment."""
    venv.create(folder / "environment", with_pip=True)
    return folder / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"


def run(*command: object, cwd: Path = records.ROOT) -> None:
    """Run a command, and end where it fails; the checkout is not on its path."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in command], cwd=cwd, env=settings, check=True)


if __name__ == "__main__":
    main(tested="--no-tests" not in sys.argv[1:])
