"""Break a module in every way that mutmut knows, one at a time, and write as JSON what its tests make of each.

    python .ci/mutants.py MODULE TESTS [ONLY]

TESTS is what pytest is given; ONLY a file of the mutants that are tried, as [was, became]. Run by mutation.py in a
clone, whose file of the module it overwrites. A mutant meets the tests in a fork of this process, which has imported
what tests need beside the package: a new process would take longer over that than the tests over most mutants. Each
test has a limit of processor time, which does not depend on what else runs: many times what it takes itself.
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

# Of each test of a module that is as it should be, beside the clone's own files.
SECONDS = Path("seconds.json")

# A mutant may ask for any array. More than any test needs.
MEMORY = 8 << 30

# An example that fails is not made smaller, which takes longer than to find it.
hypothesis.settings.register_profile(
    "mutants",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


def main(module: str, tests: list[str], only: list[list[str]] | None) -> int:
    """Write how many mutants there are, how many were killed, and those that were not."""
    path = Path("lowrank_core", f"{module}.py")
    source = path.read_text(encoding="utf-8")
    # Twice, since kernels may have to be compiled the first time.
    for _ in range(2):
        if met(tests, None) != SURVIVED:
            raise RuntimeError(f"the tests of {module} fail before anything is changed.")
    usual = json.loads(SECONDS.read_text(encoding="utf-8"))
    outcomes, survivors = [], []
    found = list(mutants_of(source))
    for lines, mutant in found:
        if only is not None and lines not in only:
            continue
        path.write_text(mutant, encoding="utf-8")
        outcome = met(tests, usual)
        outcomes.append(outcome)
        if len(outcomes) % 50 == 0:
            print(f"{module}: {len(outcomes)} of {len(found)} tried", file=sys.stderr, flush=True)
        if outcome == SURVIVED:
            survivors.append({"was": lines[0], "became": lines[1]})
            print(f"{module}: {lines[0]}  ->  {lines[1]}", file=sys.stderr, flush=True)
    counts = {
        "mutants": len(outcomes),
        "killed": len(outcomes) - len(survivors),
        "hung": outcomes.count(HUNG),
    }
    print(json.dumps(counts | {"survivors": survivors}))
    return 0


def met(tests: list[str], usual: dict[str, float] | None) -> str:
    """Run tests in a fork, and tell what became of the mutant; without the `usual` seconds of each test, write them."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # No more than a guard: one that waits takes no processor time.
        signal.alarm(3600)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        # No bytecode: a mutant written within a second of the last one would be taken for it.
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(Path.cwd()))
        clock = Clock(usual)
        clock.set(2 + 5 * sum((usual or {}).values()))
        given = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--hypothesis-profile=mutants"]
        code = pytest.main([*given, *tests], [clock])
        if usual is None:
            SECONDS.write_text(json.dumps(clock.seconds), encoding="utf-8")
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGVTALRM, signal.SIGALRM}:
        return HUNG
    return SURVIVED if status == 0 else KILLED


class Clock:
    """The seconds of processor time of each test; ends the process where they are many times the usual."""

    def __init__(self, usual: dict[str, float] | None) -> None:
        self.usual = usual
        self.seconds: dict[str, float] = {}

    def set(self, seconds: float) -> None:
        """End the process after so many seconds, if at all."""
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0 if self.usual is None else seconds)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test."""
        self.set(2 + 5 * (self.usual or {}).get(item.nodeid, 0.0))
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began
        return result


def mutants_of(source: str) -> Iterator[tuple[list[str], str]]:
    """Give the line that was, the line that it became, and the module that this makes, for every mutant."""
    for identifier in mutmut.list_mutations(mutmut.Context(source=source)):
        mutant, _ = mutmut.mutate(mutmut.Context(source=source, mutation_id=identifier))
        pairs = zip_longest(source.splitlines(), mutant.splitlines(), fillvalue="")
        yield next([was.strip(), became.strip()] for was, became in pairs if was != became), mutant


if __name__ == "__main__":
    module, tests, *only = sys.argv[1:]
    chosen = json.loads(Path(only[0]).read_text(encoding="utf-8")) if only else None
    sys.exit(main(module, shlex.split(tests), chosen))
