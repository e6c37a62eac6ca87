"""Change a module in ways that mutmut knows, one at a time, and print as JSON what its tests make of each.

    python .ci/mutants.py MODULE TESTS <PLACES

TESTS is what pytest is given; PLACES a JSON list of the mutants to try, by their numbers. Run by mutation.py in a
clone, whose file of the module it overwrites. Tests of a mutant run in a fork of this process, which has imported what
tests need beside the package: a new process would take longer over that than the tests over most mutants. Each test has
a limit of processor time, which does not depend on what else runs: many times what it takes without a mutant.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Generator, Iterator
from itertools import zip_longest
from pathlib import Path

# Before the forks, for all of them.
import hypothesis.extra.numpy
import ml_dtypes  # noqa: F401
import mpmath  # noqa: F401
import mutmut
import numba  # noqa: F401
import pytest
import scipy.integrate
import scipy.optimize  # noqa: F401

SURVIVED, KILLED, HUNG = "survived", "killed", "hung"

# The processor time of each test without a mutant, in seconds; among the clone's own files.
SECONDS = Path("seconds.json")

# A mutant may ask for an array of any size; tests need less than this many bytes.
MEMORY = 8 << 30

# Examples that fail are not shrunk, which takes longer than finding them.
hypothesis.settings.register_profile(
    "mutants",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


def main(module: str, tests: list[str], places: set[int]) -> None:
    """Print which mutants survive, and how many hang."""
    path = Path("lowrank_core", f"{module}.py")
    source = path.read_text(encoding="utf-8")
    # Twice, since kernels may have to be compiled the first time.
    for _ in range(2):
        if run_tests(tests, None) != SURVIVED:
            sys.exit(f"{module}: its tests fail before anything is changed")
    usual = json.loads(SECONDS.read_text(encoding="utf-8"))
    outcomes, survivors = [], []
    for place, (lines, mutant) in enumerate(mutants_of(source)):
        if place not in places:
            continue
        path.write_text(mutant, encoding="utf-8")
        outcomes.append(run_tests(tests, usual))
        if len(outcomes) % 50 == 0:
            print(f"{module}: {len(outcomes)} of {len(places)} tried", file=sys.stderr, flush=True)
        if outcomes[-1] == SURVIVED:
            survivors.append(lines)
            print(f"{module}: {lines[0]}  ->  {lines[1]}", file=sys.stderr, flush=True)
    print(json.dumps({"survivors": survivors, "hung": outcomes.count(HUNG)}))


def run_tests(tests: list[str], usual: dict[str, float] | None) -> str:
    """Run tests in a fork, and return the outcome; without the `usual` seconds of each test, write these."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # For a test that waits, which takes no processor time.
        signal.alarm(3600)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        # No bytecode: a mutant written within a second of the last one would be taken for it.
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(Path.cwd()))
        clock = Clock(usual)
        clock.limit(2 + 5 * sum((usual or {}).values()))
        options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--assert=plain", "--hypothesis-profile=mutants"]
        code = pytest.main([*options, *tests], [clock])
        if usual is None:
            SECONDS.write_text(json.dumps(clock.seconds), encoding="utf-8")
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGVTALRM, signal.SIGALRM}:
        return HUNG
    return SURVIVED if status == 0 else KILLED


class Clock:
    """The seconds of processor time of each test; ends the process where a test takes many times the usual."""

    def __init__(self, usual: dict[str, float] | None) -> None:
        self.usual = usual
        self.seconds: dict[str, float] = {}

    def limit(self, seconds: float) -> None:
        """End the process after so many seconds from now, where the usual ones are known."""
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0 if self.usual is None else seconds)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test."""
        self.limit(2 + 5 * (self.usual or {}).get(item.nodeid, 0.0))
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began
        return result


def mutants_of(source: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the line that was and the line that it became, and the changed module, for every mutant."""
    for identifier in mutmut.list_mutations(mutmut.Context(source=source)):
        mutant, _ = mutmut.mutate(mutmut.Context(source=source, mutation_id=identifier))
        pairs = zip_longest(source.splitlines(), mutant.splitlines(), fillvalue="")
        yield next((was.strip(), became.strip()) for was, became in pairs if was != became), mutant


if __name__ == "__main__":
    module, tests = sys.argv[1:]
    main(module, shlex.split(tests), set(json.load(sys.stdin)))
