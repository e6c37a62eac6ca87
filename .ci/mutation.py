"""Mutation testing: break the core in every way that mutmut knows, and see that a test fails each time.

    python .ci/mutation.py [--survivors | --changed] [MODULE ...]

Each mutant of a module meets that module's own tests in a clone of HEAD, the kernels' own mutants as plain Python.
What survived is written to docs/numbers/mutation.json; why each survivor is equivalent stands in .ci/equivalent.toml.
A mutant counts as killed where a test fails, or where a test takes five times the processor time that it takes
without it and two seconds more: that many are `hung`. With --survivors, only those that survived last time are tried,
after a test was added; with --changed, only those of lines that a module did not have last time. The whole takes about
an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mutants import mutants_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "numbers" / "mutation.json"
EQUIVALENT = ROOT / ".ci" / "equivalent.toml"

# What a mutant meets, the quickest first; of the tests of kernels, those on small matrices.
COMPILED = "tests/test_layering.py::test_every_function_of_a_kernel_is_compiled"
INTERNALS = "tests/internals"
TESTS = {
    "scaling": "tests/test_scaling.py tests/test_messages.py tests/properties/test_scaling.py tests/test_sweeps.py",
    "factors": "tests/test_updates.py tests/test_messages.py tests/test_public_api.py tests/properties/test_updates.py",
    "ranks": "tests/test_ranks.py tests/test_messages.py tests/properties/test_ranks.py",
    "allocation": "tests/test_allocation.py tests/test_messages.py tests/properties/test_allocation.py",
    "noise": "tests/test_noise.py",
    "storage": "tests/test_rounding_noise.py tests/test_messages.py",
    "spectra": "tests/test_spectra.py tests/test_messages.py tests/test_public_api.py tests/test_ranks.py "
    "tests/test_sweeps.py tests/properties/test_ranks.py",
    "sweeps": "tests/test_sweeps.py tests/test_messages.py tests/test_public_api.py tests/properties/test_sweeps.py",
    "learning": "tests/test_learning.py tests/test_messages.py tests/test_public_api.py "
    "tests/properties/test_learning.py",
    "kernels/energies": f"{COMPILED} {INTERNALS}/test_kernels.py tests/test_sweeps.py tests/properties/test_sweeps.py "
    "-k 'function_of or sweeps or energies or errors_by'",
    "kernels/learning": f"{COMPILED} {INTERNALS}/test_kernels.py tests/test_learning.py "
    "-k 'function_of or learn or products or gram_matrices or pulls or residuals or inner or adam or powers or cut'",
    "kernels/products": f"{COMPILED} {INTERNALS}/test_kernels.py "
    "-k 'function_of or float32_factors or diagonal or balanced'",
    "kernels/krylov": f"{COMPILED} {INTERNALS}/test_narrow_products.py",
    "kernels/band": f"{COMPILED} {INTERNALS}/test_band.py -k 'function_of or three_diagonals_have or panel or a_pass'",
    "kernels/gram": f"{COMPILED} {INTERNALS}/test_kernels.py {INTERNALS}/test_dqds.py "
    "-k 'function_of or tridiagonal or gram_matrix and not 33 and not 70'",
    "kernels/small": f"{COMPILED} {INTERNALS}/test_kernels.py {INTERNALS}/test_dqds.py "
    "-k 'function_of or small_ and not shape8 and not shape9 or other_lanes and not 33'",
    "kernels/bisection": f"{COMPILED} {INTERNALS}/test_bisection.py -k 'function_of or python'",
    "kernels/dqds": f"{COMPILED} {INTERNALS}/test_dqds.py::test_a_step_is_its_formulas_in_every_lane "
    f"{INTERNALS}/test_dqds.py {INTERNALS}/test_kernels.py "
    "-k 'function_of or test_dqds or patience or small_values and not shape8 and not shape9 or no_gram'",
}


def main(modules: list[str], part: str | None) -> int:
    """Run the modules named, or all; the exit code says whether every survivor of these is explained."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    chosen = modules or list(TESTS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(tried, module, results.get(module), part): module for module in chosen}
        for done in as_completed(running):
            module = running[done]
            results[module] = done.result()
            # Written after each module: an hour's work is not lost to an interrupt.
            in_order = {name: results[name] for name in TESTS if name in results}
            RESULTS.write_text(json.dumps(in_order, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{module}: {results[module]['killed']} of {results[module]['mutants']} killed", flush=True)
    known = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    unexplained = [
        f"{module}: {survivor['was']}  ->  {survivor['became']}"
        for module in chosen
        for survivor in results[module]["survivors"]
        if survivor["became"] not in known.get(module, {})
    ]
    print("\n".join(unexplained), end="\n" if unexplained else "")
    return bool(unexplained)


def tried(module: str, before: dict[str, Any], part: str | None) -> dict[str, Any]:
    """Run every mutant of a module, or a part of them: the others are as they were `before`."""
    source = shown("rev-parse", f"HEAD:lowrank_core/{module}.py").strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        env = os.environ | {
            "CI": "true",
            "NUMBA_DISABLE_JIT": str(int(module.startswith("kernels/"))),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": str(clone),
        }
        command = [sys.executable, str(ROOT / ".ci" / "mutants.py"), module, TESTS[module]]
        survivors = [list(survivor.values()) for survivor in before["survivors"]] if part else []
        if part == "changed":
            old, new = ([lines for lines, _ in mutants_of(shown("show", of))] for of in (before["source"], source))
            survivors = [lines for lines in survivors if lines in new]
        if part:
            only = Path(folder, "only.json")
            chosen = survivors if part == "survivors" else [lines for lines in new if lines not in old]
            only.write_text(json.dumps(chosen), encoding="utf-8")
            command.append(str(only))
        ran = subprocess.run(command, cwd=clone, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    if part == "changed":
        found["survivors"] += [{"was": was, "became": became} for was, became in survivors]
    if part:
        mutants = before["mutants"] if part == "survivors" else len(new)
        found |= {"mutants": mutants, "killed": mutants - len(found["survivors"])}
        found["hung"] = None if before["hung"] is None else before["hung"] + found["hung"]
    # By what git knows the file's content, whatever becomes of the commit.
    return found | {"source": source}


def shown(*arguments: str) -> str:
    """Give what git says."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--survivors", action="store_const", dest="part", const="survivors")
    parser.add_argument("--changed", action="store_const", dest="part", const="changed")
    given = parser.parse_args()
    sys.exit(main(given.modules, given.part))
