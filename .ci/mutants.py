"""Change modules in ways that mutmut knows, one at a time, and print as JSON what their tests make of each.

    python .ci/mutants.py TESTS SECONDS <PLACES

TESTS is what pytest is given, and a mutant is tried against so many SECONDS of them; PLACES a JSON object with the
mutants to try of each module, by their numbers. Run by mutation.py in a clone, whose files it overwrites. The tests
run once under coverage; a mutant is tried against those that run its statement, the quickest first. Each run is a
fork of this process, which has imported what tests need beside the package: a new process would take longer over that
than the tests over most mutants. Each test has a limit of processor time, which does not depend on what else runs:
many times what it takes without a mutant.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import mutmut
import pytest
from coverage import Coverage
from hypothesis import HealthCheck, Phase, settings

# What tests import beside the package, before the forks and so for all of them.
IMPORTED = (
    "hypothesis.extra.numpy diffusers matplotlib.figure ml_dtypes mpmath numba peft regex rich.table safetensors.numpy "
    "safetensors.torch scipy.integrate scipy.optimize transformers typer.testing"
)

SURVIVED, KILLED, HUNG = "survived", "killed", "hung"

# What the tests take and run without a mutant; among the clone's own files.
BASELINE = Path("baseline.json")

# The seconds of the tests that a mutant is tried against first, and against the rest only if it survives these.
FIRST_SECONDS = 1.0

# Tests that look at files and classes as they are, and run no line of them.
OF_ALL = (
    "tests/internals/kernels/test_files.py",
    "tests/models/test_rows_and_progress.py::test_every_report_and_value_is_frozen",
)

# A mutant may ask for an array of any size; tests need less than this many bytes.
MEMORY = 8 << 30

# Examples that fail are not shrunk, which takes longer than finding them.
settings.register_profile(
    "mutants",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Baseline:
    """The processor time of each test without a mutant, and the tests that run each line of each module."""

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[str]]]

    def tests_of(self, module: str, lines: Collection[int]) -> list[str]:
        """Return the tests that run one of the lines, the quickest first; those of all lines where only imports do.

        And those of all mutants.
        """
        tests = self.lines.get(str(path_of(module)), {})
        found = {test for line in lines for test in tests.get(str(line), ())}
        if found == {""}:
            found = {test for all_tests in tests.values() for test in all_tests}
        found |= {test for test in self.seconds if test.startswith(OF_ALL)}
        return sorted(found & self.seconds.keys(), key=self.seconds.__getitem__)


def main(tests: list[str], seconds: float, places: dict[str, list[int]]) -> None:
    """Print for each module which mutants survive, and how many hang; without one, run the tests under coverage."""
    with redirect_stdout(sys.stderr):
        for module in IMPORTED.split():
            import_module(module)
    if not places and run_tests(tests, Recorder()) != SURVIVED:
        sys.exit(f"{shlex.join(tests)} fail before anything is changed")
    baseline = Baseline(**json.loads(BASELINE.read_text(encoding="utf-8")))
    print(json.dumps({module: try_module(module, set(due), baseline, seconds) for module, due in places.items()}))


def try_module(module: str, places: set[int], baseline: Baseline, seconds: float) -> dict[str, Any]:
    """Return the lines of the mutants that survive, and how many hang, of a module, whose file is as before then."""
    path = path_of(module)
    source = path.read_text(encoding="utf-8")
    outcomes, survivors = [], []
    for place, (lines, mutant) in enumerate(mutants_of(source)):
        if place not in places:
            continue
        selected = baseline.tests_of(module, statement_lines(source, mutant))
        path.write_text(mutant, encoding="utf-8")
        outcomes.append(try_tests(selected, baseline.seconds, seconds))
        if len(outcomes) % 50 == 0:
            print(f"{module}: {len(outcomes)} of {len(places)} tried", file=sys.stderr, flush=True)
        if outcomes[-1] == SURVIVED:
            survivors.append(lines)
            print(f"{module}: {lines[0]}  ->  {lines[1]}", file=sys.stderr, flush=True)
    path.write_text(source, encoding="utf-8")
    return {"survivors": survivors, "hung": outcomes.count(HUNG)}


def try_tests(selected: list[str], usual: dict[str, float], most_seconds: float) -> str:
    """Return what some tests, the quickest first, make of the files as they are."""
    ends = list(accumulate(usual[test] for test in selected))
    first = sum(end <= FIRST_SECONDS for end in ends)
    most = max(first + 1, sum(end <= most_seconds for end in ends))
    for part in (selected[:first], selected[first:most]):
        files = sorted({test.partition("::")[0] for test in part})
        if part and (outcome := run_tests(files, Clock(set(part), usual))) != SURVIVED:
            return outcome
    return SURVIVED


def run_tests(tests: list[str], plugin: Clock | Recorder) -> str:
    """Run tests in a fork with a plugin, and return the outcome."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # For a test that waits, which takes no processor time.
        signal.alarm(600)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        # No bytecode: a mutant written within a second of the last one would be taken for it.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.path.insert(0, str(Path.cwd()))
        plugin.begin()
        options = ["-x", "-q", "-n0", "--assert=plain", "--hypothesis-profile=mutants"]
        # The second would collect garbage twice at the end.
        options += ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
        code = pytest.main([*options, *tests], [plugin])
        plugin.end()
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGVTALRM, signal.SIGALRM}:
        return HUNG
    return SURVIVED if status == 0 else KILLED


class Recorder:
    """Writes the seconds of processor time of each test, and the tests that run each line of the package."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.coverage = Coverage(data_file=None, config_file=False, include=["lowrank_core/*"])

    def begin(self) -> None:
        """Begin to measure, imports among the rest."""
        self.coverage.start()

    def end(self) -> None:
        """Write what was measured."""
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            str(Path(path).relative_to(Path.cwd())): data.contexts_by_lineno(path) for path in data.measured_files()
        }
        BASELINE.write_text(json.dumps({"seconds": self.seconds, "lines": lines}), encoding="utf-8")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test; coverage begins anew, since a test may have set a trace function of its own."""
        self.coverage.stop()
        self.coverage.start()
        self.coverage.switch_context(item.nodeid)
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began
        self.coverage.switch_context("")
        return result


class Clock:
    """Runs the tests selected alone, and ends the process where one takes many times the usual seconds."""

    def __init__(self, selected: set[str], usual: dict[str, float]) -> None:
        self.selected = selected
        self.usual = usual

    def begin(self) -> None:
        """Limit the time until the first test."""
        self.limit(60.0)

    def end(self) -> None:
        """Leave nothing behind."""

    def limit(self, seconds: float) -> None:
        """End the process after so many seconds of processor time from now."""
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the tests selected, and where a change of parameters has renamed one, all cases of it."""
        renamed = {function_of(test) for test in self.selected - {item.nodeid for item in items}}
        items[:] = [item for item in items if item.nodeid in self.selected or function_of(item.nodeid) in renamed]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Limit the time of a test."""
        self.limit(2 + 5 * self.usual.get(item.nodeid, 0.0))
        return (yield)


def function_of(test: str) -> str:
    """Return the identifier of a test without its parameters."""
    return test.partition("[")[0]


def path_of(module: str) -> Path:
    """Return the path of a module in the clone."""
    return Path("lowrank_core", f"{module}.py")


def statement_lines(source: str, mutant: str) -> range:
    """Return the lines of the statement that a mutant changes; of a compound statement, those of its header.

    Of a function they are all of its lines, since what runs its header is an import.
    """
    pairs = zip_longest(source.splitlines(), mutant.splitlines())
    line = next(number for number, (was, became) in enumerate(pairs, 1) if was != became)
    extents = [extent_of(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    if not any(line in extent for extent in extents):
        # Where a decorator is dropped, what follows moves to the empty line above it.
        line = min(extent.start for extent in extents if extent.start > line)
    return min((extent for extent in extents if line in extent), key=len)


def extent_of(statement: ast.stmt) -> range:
    """Return the lines of a function with its decorators, and of another statement without those inside it."""
    last = statement.end_lineno or statement.lineno
    if isinstance(statement, ast.FunctionDef):
        return range(min([statement.lineno, *(each.lineno for each in statement.decorator_list)]), last + 1)
    inner = [node.lineno for node in ast.walk(statement) if isinstance(node, ast.stmt) and node is not statement]
    return range(statement.lineno, max(min(inner, default=last + 1), statement.lineno + 1))


def mutants_of(source: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the line that was and the line that it became, and the changed module, for every mutant."""
    for identifier in mutmut.list_mutations(mutmut.Context(source=source)):
        mutant, _ = mutmut.mutate(mutmut.Context(source=source, mutation_id=identifier))
        pairs = zip_longest(source.splitlines(), mutant.splitlines(), fillvalue="")
        yield next((was.strip(), became.strip()) for was, became in pairs if was != became), mutant


if __name__ == "__main__":
    main(shlex.split(sys.argv[1]), float(sys.argv[2]), json.load(sys.stdin))
