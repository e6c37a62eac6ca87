"""Mutation testing: change the core in every way that mutmut knows, and check that a test fails each time.

    python .ci/mutation.py [--survivors | --changed] [MODULE ...]

Each mutant of a module is tried against that module's tests in a clone of HEAD; those of kernels as plain Python.
docs/numbers/mutation.json has what survived. Write beside each survivor why it is equivalent, as its "reason": the next
run keeps the reason. A mutant is killed where a test fails, or where a test takes five times the processor time that it
takes without the mutant and two seconds more: these are counted as `hung`. With --survivors, only the survivors of the
last run are tried, after a test was added; with --changed, only mutants of lines that the module did not have then. The
exit code is 1 where a survivor has no reason, and where more than one mutant in twenty survives. All modules take more
than an hour on two cores.

Mutants of two runs are the same where their lines are, or else where these differ by names alone (`counterparts`):
renaming a variable makes no record stale.
"""

from __future__ import annotations

import argparse
import json
import keyword
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import records
from mutants import mutants_of

LEAST_KILLED = 0.95
KERNELS = "_linalg/kernels/"

# The tests that a mutant of each module is tried against, the quickest first; of those of kernels, on small matrices.
INTERNALS = "tests/internals"
COMPILED = f"{INTERNALS}/kernels/test_files.py"
TESTS = {
    "scaling": "tests/test_scaling.py tests/test_messages.py tests/properties/test_scaling.py tests/test_sweeps.py",
    "updates": "tests/test_updates.py tests/test_results.py tests/test_structured.py tests/test_messages.py "
    "tests/test_public_api.py tests/properties/test_updates.py",
    "kronecker_updates": "tests/test_structured.py tests/test_results.py tests/test_messages.py "
    "tests/test_public_api.py tests/properties/test_kronecker.py",
    "structured": "tests/test_structured.py tests/test_messages.py tests/properties/test_structured.py",
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
    "comparison": "tests/test_comparison.py tests/test_results.py tests/properties/test_comparison.py",
    "space_overlap": "tests/test_comparison.py tests/test_results.py tests/properties/test_comparison.py",
    "synthetic": "tests/test_synthetic.py tests/test_messages.py tests/properties/test_synthetic.py",
    "_linalg/routes": f"{INTERNALS}/test_routes.py {INTERNALS}/test_krylov.py {INTERNALS}/test_decompositions.py",
    "_linalg/largest_value": f"{INTERNALS}/test_largest_value.py",
    f"{KERNELS}cholesky": f"{COMPILED} {INTERNALS}/kernels/test_cholesky.py",
    f"{KERNELS}vectors": f"{COMPILED} {INTERNALS}/kernels/test_vectors.py",
    f"{KERNELS}energies": f"{COMPILED} {INTERNALS}/kernels/test_energies.py tests/test_sweeps.py "
    "tests/properties/test_sweeps.py",
    f"{KERNELS}learning": f"{COMPILED} {INTERNALS}/kernels/test_learning.py tests/test_learning.py",
    f"{KERNELS}products": f"{COMPILED} {INTERNALS}/kernels/test_products.py",
    f"{KERNELS}krylov": f"{COMPILED} {INTERNALS}/kernels/test_narrow_products.py",
    f"{KERNELS}band": f"{COMPILED} {INTERNALS}/kernels/test_band.py "
    "-k 'function_of or three_diagonals_have or panel or a_pass'",
    f"{KERNELS}bidiagonal": f"{COMPILED} {INTERNALS}/kernels/test_bidiagonal.py -k 'function_of or came_from'",
    f"{KERNELS}triangle": f"{COMPILED} {INTERNALS}/kernels/test_triangle.py -k 'function_of or gram_matrix'",
    f"{KERNELS}gram": f"{COMPILED} {INTERNALS}/kernels/test_gram.py {INTERNALS}/kernels/test_dqds.py "
    "-k 'function_of or tridiagonal or gram_matrix and not 33 and not 70'",
    f"{KERNELS}small": f"{COMPILED} {INTERNALS}/kernels/test_small.py {INTERNALS}/kernels/test_dqds.py "
    "-k 'function_of or small_ and not shape8 and not shape9 or other_lanes and not 33'",
    f"{KERNELS}bisection": f"{COMPILED} {INTERNALS}/kernels/test_bisection.py -k 'function_of or python'",
    f"{KERNELS}dqds": f"{COMPILED} {INTERNALS}/kernels/test_dqds.py::test_a_step_is_its_formulas_in_every_lane "
    f"{INTERNALS}/kernels/test_dqds.py {INTERNALS}/kernels/test_small.py {INTERNALS}/kernels/test_gram.py "
    "-k 'function_of or test_dqds or small_values and not shape8 and not shape9 or no_gram'",
}


def main(modules: list[str], part: str | None) -> int:
    """Run the modules named, or all."""
    results = {module: result for module, result in records.read("mutation").items() if module in TESTS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(run_module, module, results.get(module), part): module for module in modules or TESTS}
        for done in as_completed(running):
            module = running[done]
            results[module] = done.result()
            # Written after each module: an hour's work is not lost to an interrupt.
            records.write("mutation", {name: results[name] for name in TESTS if name in results})
            print(f"{module}: {results[module]['killed']} of {results[module]['mutants']} killed", flush=True)
    faults = list(faults_of(results))
    print("".join(f"{fault}\n" for fault in faults), end="")
    return bool(faults)


def faults_of(results: dict[str, Any]) -> Iterator[str]:
    """Yield the survivors without a reason, and how many mutants are killed where these are too few."""
    for module, result in results.items():
        for survivor in result["survivors"]:
            if not survivor["reason"]:
                yield f"{module}: {survivor['was']}  ->  {survivor['became']}"
    mutants, killed = (sum(result[key] for result in results.values()) for key in ("mutants", "killed"))
    if killed < LEAST_KILLED * mutants:
        yield f"{killed} of {mutants} mutants are killed: fewer than {LEAST_KILLED:.0%}"


def run_module(module: str, before: dict[str, Any] | None, part: str | None) -> dict[str, Any]:
    """Try the mutants of a module, or a part of them, and return its record; `before` is that of the last run."""
    part = part if before else None
    before = before or {"survivors": []}
    path = f"HEAD:lowrank_core/{module}.py"
    mutants = mutants_at(path)
    due, kept = split(mutants, before, part)
    outcome = try_mutants(module, due)
    # Lines that have changed since are not tried with the survivors, and so not counted either.
    count = before["mutants"] if part == "survivors" else len(mutants)
    survivors = [*map(tuple, outcome["survivors"]), *kept]
    hung = outcome["hung"]
    if part:
        # The earliest records did not count them.
        hung = None if before["hung"] is None else before["hung"] + hung
    return {
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


Lines = tuple[str, str]


def split(mutants: list[Lines], before: dict[str, Any], part: str | None) -> tuple[list[int], list[Lines]]:
    """Return the places of the mutants to try, and the mutants that are known to survive without that."""
    if part is None:
        return list(range(len(mutants))), []
    if part == "survivors":
        likes = counterparts(mutants, lines_of(before))
        return [place for place, like in enumerate(likes) if like is not None], []
    likes = counterparts(mutants, mutants_at(before["source"]))
    unchanged = [mutant for mutant, like in zip(mutants, likes, strict=True) if like is not None]
    survived = counterparts(unchanged, lines_of(before))
    kept = [mutant for mutant, like in zip(unchanged, survived, strict=True) if like is not None]
    return [place for place, like in enumerate(likes) if like is None], kept


def lines_of(record: dict[str, Any]) -> list[Lines]:
    """Return the line that was and the line that it became, for every survivor of a record."""
    return [(survivor["was"], survivor["became"]) for survivor in record["survivors"]]


def mutants_at(revision: str) -> list[Lines]:
    """Return the line that was and the line that it became, for every mutant of a file as git has it."""
    return [lines for lines, _ in mutants_of(git("show", revision))]


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


def try_mutants(module: str, places: list[int]) -> dict[str, Any]:
    """Run mutants.py on some mutants of a module, in a clone of HEAD."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(records.ROOT), folder], check=True)
        environment = os.environ | {
            "CI": "true",
            "NUMBA_DISABLE_JIT": str(int(module.startswith(KERNELS))),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": folder,
        }
        command = [sys.executable, str(Path(__file__).with_name("mutants.py")), module, TESTS[module]]
        run = subprocess.run(
            command,
            cwd=folder,
            env=environment,
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
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--survivors", action="store_const", dest="part", const="survivors")
    parser.add_argument("--changed", action="store_const", dest="part", const="changed")
    arguments = parser.parse_args()
    sys.exit(main(arguments.modules, arguments.part))
