"""Run every benchmark of the asv suite once at each of its parameters: ``python -m benchmarks.once``, a smoke test.

asv starts a process for each, and the imports and cached kernels of 170 processes take longer than the benchmarks.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from asv_runner.discovery import disc_benchmarks, get_benchmark_from_name

SUITE = str(Path(__file__).parent)
# What ``asv run --quick`` sets.
ONE_CALL = {"number": 1, "repeat": 1, "warmup_time": 0}


def run(identifier: str) -> bool:
    """Run one benchmark, and return whether it applies here: its setup may say that a peer is missing."""
    benchmark = get_benchmark_from_name(SUITE, identifier, ONE_CALL)
    benchmark.set_cache(None)
    try:
        applies = not benchmark.do_setup()
        if applies:
            benchmark.do_run()
    except Exception as error:
        error.add_note(f"in the benchmark {identifier}")
        raise
    finally:
        benchmark.do_teardown()
    return applies


def main() -> None:
    """Print how many parameters each benchmark ran at, and how long that took."""
    for name, params in sorted((benchmark.name, benchmark.params) for benchmark in disc_benchmarks(SUITE)):
        start = time.perf_counter()
        identifiers = [f"{name}-{i}" for i in range(math.prod(map(len, params)))] if params else [name]
        ran = sum(map(run, identifiers))
        print(f"{name}: {ran} of {len(identifiers)} in {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
