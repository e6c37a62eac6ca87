"""Mutation testing: change the core in every way that mutmut knows, and check that a test fails each time.

    python .ci/mutation.py [--survivors | --changed] [MODULE | FOLDER ...]

Each mutant of a module is tried against tests of that module, or of its folder, in a clone of HEAD; those of kernels
as plain Python. Of the folders in SAMPLED, one mutant of so many is tried, chosen by what it changes and not by its
place: the sample stays while the code around it changes. docs/numbers/mutation.json has what survived. Write beside
each survivor why it is equivalent, as its "reason": the next run keeps the reason. A mutant is killed where a test
fails, or where a test takes five times the processor time that it takes without the mutant and two seconds more:
these are counted as `hung`. With --survivors, only the survivors of the last run are tried, after a test was added,
and against more of the tests; with --changed, only mutants of lines that the module did not have then. The exit code
is 1 where a survivor has no reason, and where more than one mutant in twenty survives. All modules take hours on two
cores.

Mutants of two runs are the same where their lines are, or else where these differ by names alone (`counterparts`):
renaming a variable makes no record stale.
"""

from __future__ import annotations

import argparse
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from itertools import chain
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from zlib import crc32

import records
from mutants import mutants_of

LEAST_KILLED = 0.95
KERNELS = "_linalg/kernels/"

# The tests that a mutant of each module is tried against, the quickest first; of those of kernels, on small matrices.
INTERNALS = "tests/internals"
COMPILED = f"{INTERNALS}/kernels/test_files.py"
COMPARISONS = (
    "tests/test_comparison.py tests/test_shown_comparison.py tests/test_results.py tests/test_whole_messages.py "
    "tests/properties/test_comparison.py"
)
TESTS = {
    "scaling": "tests/test_scaling.py tests/test_messages.py tests/properties/test_scaling.py tests/test_sweeps.py",
    "updates": "tests/test_updates.py tests/test_results.py tests/test_structured.py tests/test_messages.py "
    "tests/test_public_api.py tests/properties/test_updates.py",
    "kronecker_updates": "tests/test_structured.py tests/test_updates.py tests/test_results.py "
    "tests/test_whole_messages.py tests/test_messages.py tests/test_public_api.py tests/properties/test_kronecker.py",
    "structured": "tests/test_structured.py tests/test_whole_messages.py tests/test_messages.py "
    "tests/properties/test_structured.py",
    "ranks": "tests/test_ranks.py tests/test_messages.py tests/properties/test_ranks.py",
    "allocation": "tests/test_allocation.py tests/test_messages.py tests/properties/test_allocation.py",
    "noise": f"tests/test_noise.py {INTERNALS}/test_noise_edge.py",
    "rounding_noise": f"tests/test_rounding_noise.py {INTERNALS}/test_rounding_steps.py tests/test_messages.py",
    "spectra": "tests/test_spectra.py tests/test_messages.py tests/test_public_api.py tests/test_ranks.py "
    "tests/test_sweeps.py tests/properties/test_ranks.py",
    "sweeps": "tests/test_sweeps.py tests/test_messages.py tests/test_public_api.py tests/properties/test_sweeps.py",
    "learning": f"tests/test_learning.py {INTERNALS}/test_sweep_tasks.py tests/test_messages.py "
    "tests/test_public_api.py tests/properties/test_learning.py",
    "truncation": "tests/test_truncation.py tests/test_truncated_stacks.py tests/test_messages.py "
    "tests/properties/test_truncation.py",
    "comparison": COMPARISONS,
    "space_overlap": COMPARISONS,
    "synthetic": "tests/test_synthetic.py tests/test_whole_messages.py tests/test_messages.py "
    "tests/properties/test_synthetic.py",
    "_linalg/largest_value": f"{INTERNALS}/test_largest_value.py",
    "_linalg": f"{INTERNALS} tests/test_spectra.py tests/test_truncation.py tests/test_truncated_stacks.py "
    "tests/test_structured.py tests/test_comparison.py tests/models/test_tolerance.py tests/models/test_extraction.py "
    "tests/models/test_several_ranks.py tests/models/test_factoring.py tests/properties",
    "testing": "tests/test_testing.py tests/test_pairs_of_updates.py tests/test_strategies_reach.py "
    "tests/test_public_api.py -k 'not shrink'",
    "models": "tests/models tests/cli tests/interop tests/test_messages.py",
    f"{KERNELS}cholesky": f"{COMPILED} {INTERNALS}/kernels/test_cholesky.py",
    f"{KERNELS}vectors": f"{COMPILED} {INTERNALS}/kernels/test_vectors.py",
    f"{KERNELS}energies": f"{COMPILED} {INTERNALS}/kernels/test_energies.py tests/test_sweeps.py "
    "tests/properties/test_sweeps.py",
    f"{KERNELS}learning": f"{COMPILED} {INTERNALS}/kernels/test_learning.py tests/test_learning.py",
    f"{KERNELS}products": f"{COMPILED} {INTERNALS}/kernels/test_products.py",
    f"{KERNELS}krylov": f"{COMPILED} {INTERNALS}/kernels/test_narrow_products.py",
    f"{KERNELS}band": f"{COMPILED} {INTERNALS}/kernels/test_band.py {INTERNALS}/kernels/test_upper_band.py "
    "-k 'function_of or panel or a_pass or rows_are_multiplied'",
    f"{KERNELS}chasing": f"{COMPILED} {INTERNALS}/kernels/test_band.py {INTERNALS}/kernels/test_upper_band.py "
    "-k 'function_of or three_diagonals_have or two_diagonals'",
    f"{KERNELS}inverse_iteration": f"{COMPILED} {INTERNALS}/kernels/test_inverse_iteration.py",
    f"{KERNELS}narrow": f"{COMPILED} {INTERNALS}/kernels/test_narrow_products.py -k 'function_of or of_doubles'",
    f"{KERNELS}bidiagonal": f"{COMPILED} {INTERNALS}/kernels/test_bidiagonal.py -k 'function_of or came_from'",
    f"{KERNELS}triangle": f"{COMPILED} {INTERNALS}/kernels/test_triangle.py "
    "-k 'function_of or gram_matrix or cancelled'",
    f"{KERNELS}gram": f"{COMPILED} {INTERNALS}/kernels/test_gram.py {INTERNALS}/kernels/test_dqds.py "
    "-k 'function_of or tridiagonal or gram_matrix and not 33 and not 70'",
    f"{KERNELS}small": f"{COMPILED} {INTERNALS}/kernels/test_small.py {INTERNALS}/kernels/test_dqds.py "
    "-k 'function_of or small_ and not shape8 and not shape9 or other_lanes and not 33'",
    f"{KERNELS}bisection": f"{COMPILED} {INTERNALS}/kernels/test_bisection.py -k 'function_of or python'",
    f"{KERNELS}dqds": f"{COMPILED} {INTERNALS}/kernels/test_dqds.py::test_a_step_is_its_formulas_in_every_lane "
    f"{INTERNALS}/kernels/test_dqds.py {INTERNALS}/kernels/test_small.py {INTERNALS}/kernels/test_gram.py "
    "-k 'function_of or test_dqds or small_values and not shape8 and not shape9 or no_gram'",
}

# Of the modules of these folders, one mutant of so many is tried.
SAMPLED = {"_linalg": 8, "models": 8, "testing": 2}

# How many processes there are at once, whatever the number of targets.
PROCESSES = os.cpu_count() or 1
SLOTS = BoundedSemaphore(PROCESSES)

Lines = tuple[str, str]

# The seconds of tests that a mutant is tried against; a survivor of these is worth more.
SECONDS, SECONDS_OF_SURVIVORS = 10, 30

NOTHING_TRIED: dict[str, Any] = {"survivors": [], "hung": 0}


def main(targets: list[str], part: str | None) -> int:
    """Try the mutants of the modules and folders named, or of all."""
    modules = {target: modules_of(target) for target in TESTS}
    results = {name: result for name, result in records.read("mutation").items() if name in chain(*modules.values())}
    with ThreadPoolExecutor(PROCESSES) as pool:
        running = [pool.submit(run_target, target, modules[target], results, part) for target in targets or TESTS]
        for done in as_completed(running):
            results |= done.result()
            # Written after each target: an hour's work is not lost to an interrupt.
            ordered = {name: results[name] for name in chain(*modules.values()) if name in results}
            records.write("mutation", ordered)
            for module, result in done.result().items():
                print(f"{module}: {result['killed']} of {result['mutants']} killed", flush=True)
    faults = list(faults_of(results))
    print("".join(f"{fault}\n" for fault in faults), end="")
    return bool(faults)


def modules_of(target: str) -> list[str]:
    """Return a module itself, or the modules of a folder that are no target of their own, kernels never among them."""
    listed = git("ls-tree", "-r", "--name-only", "HEAD", f"lowrank_core/{target}/").split()
    paths = [Path(path).relative_to("lowrank_core") for path in listed if path.endswith(".py")]
    found = [path.with_suffix("").as_posix() for path in paths]
    return [module for module in found if module not in TESTS and not module.startswith(KERNELS)] or [target]


def faults_of(results: dict[str, Any]) -> Iterator[str]:
    """Yield the survivors without a reason, and how many mutants are killed where these are too few."""
    for module, result in results.items():
        for survivor in result["survivors"]:
            if not survivor["reason"]:
                yield f"{module}: {survivor['was']}  ->  {survivor['became']}"
    mutants, killed = (sum(result[key] for result in results.values()) for key in ("mutants", "killed"))
    if killed < LEAST_KILLED * mutants:
        yield f"{killed} of {mutants} mutants are killed: fewer than {LEAST_KILLED:.0%}"


def run_target(target: str, modules: list[str], results: dict[str, Any], part: str | None) -> dict[str, Any]:
    """Try the mutants of a target's modules, or a part of them, and return their records; `results` are the last."""
    due, kept = {}, {}
    for module in modules:
        mutants = mutants_at(f"HEAD:lowrank_core/{module}.py", SAMPLED.get(target, 1))
        due[module], kept[module] = split(mutants, results.get(module), part)
    seconds = SECONDS_OF_SURVIVORS if part == "survivors" else SECONDS
    outcomes = try_mutants(target, seconds, {module: places for module, places in due.items() if places})
    return {
        module: record_of(module, target, results.get(module), part, outcomes.get(module, NOTHING_TRIED), kept[module])
        for module in modules
    }


def record_of(
    module: str,
    target: str,
    before: dict[str, Any] | None,
    part: str | None,
    outcome: dict[str, Any],
    kept: list[Lines],
) -> dict[str, Any]:
    """Return the record of a module, from what became of the mutants tried and from those that survive without that."""
    path, one_in = f"HEAD:lowrank_core/{module}.py", SAMPLED.get(target, 1)
    part = part if before else None
    before = before or {"survivors": []}
    # Lines that have changed since are not tried with the survivors, and so not counted either.
    count = before["mutants"] if part == "survivors" else len(mutants_at(path, one_in))
    survivors = [*map(tuple, outcome["survivors"]), *kept]
    hung = outcome["hung"]
    if part:
        # The earliest records did not count them.
        hung = None if before["hung"] is None else before["hung"] + hung
    return {
        "one_in": one_in,
        "mutants": count,
        "killed": count - len(survivors),
        "hung": hung,
        "survivors": [
            {"was": was, "became": became, "reason": before["survivors"][place]["reason"] if place is not None else ""}
            for (was, became), place in zip(survivors, counterparts(survivors, lines_of(before)), strict=True)
        ],
        # The content of the file, which git knows whatever becomes of the commit.
        "source": before["source"] if part == "survivors" else git("rev-parse", path).strip(),
    }


def split(mutants: dict[int, Lines], before: dict[str, Any] | None, part: str | None) -> tuple[list[int], list[Lines]]:
    """Return the numbers of the mutants to try, and the mutants that are known to survive without that."""
    if part is None or before is None:
        return list(mutants), []
    lines = list(mutants.values())
    if part == "survivors":
        likes = counterparts(lines, lines_of(before))
        return [number for number, like in zip(mutants, likes, strict=True) if like is not None], []
    likes = counterparts(lines, list(mutants_at(before["source"], before["one_in"]).values()))
    unchanged = [mutant for mutant, like in zip(lines, likes, strict=True) if like is not None]
    survived = counterparts(unchanged, lines_of(before))
    kept = [mutant for mutant, like in zip(unchanged, survived, strict=True) if like is not None]
    return [number for number, like in zip(mutants, likes, strict=True) if like is None], kept


def lines_of(record: dict[str, Any]) -> list[Lines]:
    """Return the line that was and the line that it became, for every survivor of a record."""
    return [(survivor["was"], survivor["became"]) for survivor in record["survivors"]]


@cache
def mutants_at(revision: str, one_in: int) -> dict[int, Lines]:
    """Return by its number the line that was and the line that it became, for the mutants of a file as git has it.

    Of so many `one_in` is taken, by its lines.
    """
    numbered = enumerate(lines for lines, _ in mutants_of(git("show", revision)))
    return {number: lines for number, lines in numbered if crc32("\n".join(lines).encode()) % one_in == 0}


def counterparts(mutants: Sequence[Lines], known: Sequence[Lines]) -> list[int | None]:
    """Return for each mutant the place of its counterpart among known ones, each of which is taken once, or None."""
    found: list[int | None] = [None] * len(mutants)
    keys: tuple[Callable[[Lines], Any], ...] = (tuple, shape)
    for key in keys:
        places = defaultdict(list)
        for place, lines in enumerate(known):
            if place not in found:
                places[key(lines)].append(place)
        for number, lines in enumerate(mutants):
            if found[number] is None and places[key(lines)]:
                found[number] = places[key(lines)].pop(0)
    return found


def shape(lines: Lines) -> str:
    """Return the lines of a mutant with every name replaced by its number, in the order of first appearance."""
    numbers: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return match[0] if keyword.iskeyword(match[0]) else f"n{numbers.setdefault(match[0], len(numbers))}"

    return re.sub(r"\b[^\W\d]\w*", numbered, "\n".join(lines))


def try_mutants(target: str, seconds: int, places: dict[str, list[int]]) -> dict[str, Any]:
    """Try some mutants of a target's modules in clones of HEAD, after its tests have run in the first of them."""
    if not places:
        return {}
    modules = list(places)
    shards = [modules[first::PROCESSES] for first in range(min(PROCESSES, len(modules)))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PROCESSES) as pool:
        clone = Path(folder, "0")
        subprocess.run(["git", "clone", "--quiet", str(records.ROOT), str(clone)], check=True)
        compile_kernels(clone, target)
        run_script(clone, target, seconds, {})
        # With their times, by which Python and Numba know whether what they compiled is of the files that are there.
        clones = [clone, *(Path(shutil.copytree(clone, Path(folder, str(n)))) for n in range(1, len(shards)))]
        due = [{module: places[module] for module in shard} for shard in shards]
        outcomes = pool.map(lambda clone, shard: run_script(clone, target, seconds, shard), clones, due)
        return {module: outcome for shard in outcomes for module, outcome in shard.items()}


def compile_kernels(clone: Path, target: str) -> None:
    """Compile the kernels of a clone: the first test to need one would seem slow."""
    with SLOTS:
        command = [sys.executable, "-m", "lowrank_core", "compile"]
        subprocess.run(command, cwd=clone, env=environment_of(clone, target), stdout=subprocess.DEVNULL, check=True)


def environment_of(clone: Path, target: str) -> dict[str, str]:
    """Return the environment of a clone's processes."""
    return os.environ | {
        "CI": "true",
        "NUMBA_DISABLE_JIT": str(int(target.startswith(KERNELS))),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(clone),
    }


def run_script(clone: Path, target: str, seconds: int, places: dict[str, list[int]]) -> dict[str, Any]:
    """Run mutants.py in a clone."""
    command = [sys.executable, str(Path(__file__).with_name("mutants.py")), TESTS[target], str(seconds)]
    with SLOTS:
        run = subprocess.run(
            command,
            cwd=clone,
            env=environment_of(clone, target),
            input=json.dumps(places),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if run.returncode:
        sys.exit(run.returncode)
    outcome: dict[str, Any] = json.loads(run.stdout)
    return outcome


def git(*arguments: str) -> str:
    """Return what a git command prints."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", choices=[*TESTS, []])
    parser.add_argument("--survivors", action="store_const", dest="part", const="survivors")
    parser.add_argument("--changed", action="store_const", dest="part", const="changed")
    arguments = parser.parse_args()
    sys.exit(main(arguments.targets, arguments.part))
