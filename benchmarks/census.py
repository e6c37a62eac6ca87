"""A census of a thousand adapters on a Dask cluster of two local workers: ``python -m benchmarks.census``.

The adapters are PEFT's, with factors of real sizes; the rows are compared with those computed without a cluster.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.model_cases import make_adapter
from benchmarks.records import update
from lowrank_core.models import census
from lowrank_core.models.inspection.census import adapter_row

WORKERS = 2
CLUSTER = {
    "n_workers": WORKERS,
    "threads_per_worker": 1,
    "dashboard_address": None,
    "silence_logs": logging.ERROR,
}
SHAPES = ((1024, 1024), (1024, 1024))
BLOCKS, RANK = 4, 16
# Adapters whose rows are compared with those that this process computes.
COMPARED = 20
PROJECTED = 100_000


def measure(count: int) -> dict[str, Any]:
    """Compute a census on a cluster, and return its throughput.

    Raises
    ------
    RuntimeError
        If a row is missing, or differs from the one computed without a cluster.
    """
    from distributed import Client, LocalCluster

    with tempfile.TemporaryDirectory() as temporary:
        for place in range(count):
            make_adapter(Path(temporary, f"{place:06}"), BLOCKS, shapes=SHAPES, rank=RANK, seed=place)
        size = sum(file.stat().st_size for file in Path(temporary).rglob("*.safetensors"))
        with (
            LocalCluster(**CLUSTER) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            executor = client.get_executor(pure=False)
            # Each worker imports the package once, which is not measured.
            client.run(adapter_row, Path(temporary, "000000"))
            start = time.perf_counter()
            rows = census(temporary, executor=executor, jsonl=Path(temporary, "census.jsonl"))
            seconds = time.perf_counter() - start
        alone = [adapter_row(row.path) for row in rows[:COMPARED]]
    if len(rows) != count or list(rows[:COMPARED]) != alone:
        raise RuntimeError(f"{len(rows)} rows of {count} adapters, or other rows than those computed without a cluster")
    return {
        "adapters": count,
        "layers_each": BLOCKS * len(SHAPES),
        "shape": SHAPES[0],
        "rank": RANK,
        "megabytes": round(size / 1e6),
        "workers": WORKERS,
        "seconds": seconds,
        "per_second": count / seconds,
        "projected": PROJECTED,
        "projected_minutes": PROJECTED / count * seconds / 60,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the throughput."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.census", description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000, help="how many to make (1000)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure into FILE, which keeps its other parts"
    )
    options = parser.parse_args(arguments)
    description, figures = machine(), measure(options.adapters)
    print(
        f"{figures['adapters']} adapters of {figures['layers_each']} layers, {figures['megabytes']} MB, "
        f"{WORKERS} workers: {figures['seconds']:.1f} s, {figures['per_second']:.0f} a second; {PROJECTED:,} of them "
        f"would take {figures['projected_minutes']:.0f} minutes"
    )
    if options.json:
        update(options.json, "census", {"machine": description, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
