"""A pair of checkpoints with the layers of Llama-3.2-1B: what of a command's time is decomposition.

``python -m benchmarks.whole_model`` measures `extract` as it comes, with one BLAS thread, and beside a loop over
torch.svd_lowrank; `inspect` beside its decompositions alone; and what both mean for larger models. Each side is a
process of its own, which warms up on its first layer and prints what it measured: processor time counts every thread,
those of BLAS among them, and hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare import machine
from benchmarks.model_cases import pairs_of, weight_and_update
from benchmarks.records import update
from lowrank_core import spectrum
from lowrank_core._dtypes import as_dtype
from lowrank_core._validation import as_workers
from lowrank_core.models import extract, inspect
from lowrank_core.models.files.streams import stream_tensors

Shapes = dict[str, tuple[int, int]]

RANK = 32
DTYPE = "bfloat16"
POWER = 0.7  # σᵢ ~ i^-POWER, beside the rounding of bfloat16
# Of torch.svd_lowrank: vectors and power iterations.
VECTORS, ITERATIONS = 40, 4
SHARDS = 2
LAYERS = ".layers."  # in the names of all but the embedding, which extract does not decompose unless told to


def llama(hidden: int, intermediate: int, key_values: int) -> Shapes:
    """Return the shapes of the linear layers of one block of a Llama model."""
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_values, hidden),
        "self_attn.v_proj": (key_values, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


# Blocks, and the layers of each.
MODELS = {
    "Llama-3.2-1B": (16, llama(2048, 8192, 512)),
    "Llama-3.1-8B": (32, llama(4096, 14336, 1024)),
    "Llama-3.1-70B": (80, llama(8192, 28672, 1024)),
}
MEASURED = "Llama-3.2-1B"
# Part of the whole of it alone.
EMBEDDING = {"model.embed_tokens": (128_256, 2048)}


def make_pair(folder: Path, blocks: int, shapes: Shapes, embedding: Shapes) -> tuple[Path, Path]:
    """Write a base and a tuned checkpoint in shards, whose updates fall in size and are rounded as weights are."""
    layers = {f"model.layers.{i}.{name}.weight": shape for i in range(blocks) for name, shape in shapes.items()}
    weights = layers | {f"{name}.weight": shape for name, shape in embedding.items()}
    paths = folder / "base", folder / "tuned"
    for path in paths:
        path.mkdir()
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        name, keys = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors", list(weights)[shard::SHARDS]
        weight_map |= dict.fromkeys(keys, name)
        before, after = (stream_tensors(path / name, keys, {"format": "pt"}) for path in paths)
        with before as base, after as tuned:
            for key in keys:
                weight, delta = weight_and_update(weights[key], POWER, len(weight_map) + keys.index(key))
                base.add(key, weight.astype(as_dtype(DTYPE)))
                tuned.add(key, (weight + delta).astype(as_dtype(DTYPE)))
    for path in paths:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return paths


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of a call, with its wall time and the processor time of the whole process."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}


def extraction(base: Path, tuned: Path) -> dict[str, Any]:
    """Extract an adapter, on a thread a core over the layers, and return the times and the error of each layer."""

    def call(include: Sequence[str] = ()) -> Any:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(as_workers(None)) as executor:
            return extract(base, tuned, Path(folder, "out"), rank=RANK, include=include, executor=executor)

    call(["layers.0.*"])
    report, figures = timed(call)
    return figures | {"errors": {layer.name: layer.error for layer in report.layers}}


def inspection(base: Path, tuned: Path) -> dict[str, Any]:
    """Inspect the pair, and return the times, and those of the decompositions alone."""

    def call() -> Any:
        with ThreadPoolExecutor(as_workers(None)) as executor:
            return inspect(tuned, base, executor=executor)

    pairs = pairs_of((base, tuned))
    spectrum(pairs[0].update())
    alone = {"seconds": 0.0, "processor": 0.0}
    for pair in pairs:
        delta = pair.update()
        spent = timed(lambda delta=delta: spectrum(delta))[1]
        alone = {name: alone[name] + spent[name] for name in alone}
    return timed(call)[1] | {"decompositions": alone}


def torch_loop(base: Path, tuned: Path) -> dict[str, Any]:
    """Decompose every difference by torch.svd_lowrank, and return the times and the error of each layer."""
    import torch
    from safetensors import safe_open

    def factors(before: Any, after: Any, key: str) -> tuple[Any, Any]:
        delta = after.get_tensor(key).float() - before.get_tensor(key).float()
        U, values, V = torch.svd_lowrank(delta, q=VECTORS, niter=ITERATIONS)
        return U[:, :RANK] * values[:RANK], V[:, :RANK].T

    updates = {f"{pair.name}.weight": pair.update for pair in pairs_of((base, tuned))}
    total, errors = {"seconds": 0.0, "processor": 0.0}, {}
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as before, safe_open(tuned / shard.name, "pt") as after, torch.no_grad():
            keys = [key for key in before.keys() if LAYERS in key]  # noqa: SIM118 - the file is not a mapping
            factors(before, after, keys[0])
            for key in keys:
                (B, A), spent = timed(lambda key=key: factors(before, after, key))
                total = {name: total[name] + spent[name] for name in total}
                errors[key.removesuffix(".weight")] = _error(updates[key](), B.numpy(), A.numpy())
    return total | {"errors": errors}


SIDES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "extract": extraction,
    "inspect": inspection,
    "torch": torch_loop,
}


def measure(side: str, paths: tuple[Path, Path], *, one_thread: bool = False) -> dict[str, Any]:
    """Run a side in a process of its own, with the machine's BLAS threads or with one, and return what it printed."""
    variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    environment |= dict.fromkeys(variables, "1") if one_thread else {}
    command = [sys.executable, "-m", "benchmarks.whole_model", side, *map(str, paths)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def best(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a run with the least wall time and the least processor time of all."""
    return runs[0] | {name: min(run[name] for run in runs) for name in ("seconds", "processor")}


def compare(blocks: int, rounds: int) -> dict[str, Any]:
    """Measure all sides on a model of as many blocks, in turn."""
    count, shapes = MODELS[MEASURED]
    embedding = EMBEDDING if blocks == count else {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = make_pair(Path(temporary), blocks, shapes, embedding)
        ways = [(side, one_thread) for side in ("extract", "torch") for one_thread in (False, True)]
        runs: dict[tuple[str, bool], list[dict[str, Any]]] = {way: [] for way in ways}
        inspections = []
        for _ in range(rounds):
            for way in ways:
                runs[way].append(measure(way[0], paths, one_thread=way[1]))
            inspections.append(measure("inspect", paths))
    ours, ours_one, peer, peer_one = (best(runs[way]) for way in ways)
    errors, peer_errors = ours["errors"], peer["errors"]
    inspected = min(inspections, key=lambda run: run["processor"] / run["decompositions"]["processor"])
    entries, flops = blocks * _entries(shapes), blocks * _flops(shapes) + _flops(embedding)
    return {
        "model": MEASURED,
        "blocks": blocks,
        "of_blocks": count,
        "layers": blocks * len(shapes),
        "parameters": entries + _entries(embedding),
        "extract": _times(ours),
        "extract_one_thread": _times(ours_one),
        "torch": _times(peer),
        "torch_one_thread": _times(peer_one),
        "inspect": _times(inspected),
        "decompositions": inspected["decompositions"],
        "smaller_error": sum(errors[name] < peer_errors[name] for name in errors),
        "projections": {
            name: {
                "parameters": size * _entries(layers),
                "extract_processor": ours["processor"] / entries * size * _entries(layers),
                "inspect_processor": inspected["processor"] / flops * size * _flops(layers),
            }
            for name, (size, layers) in MODELS.items()
        },
    }


def lines_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ratios that count, each with the most that it may be."""
    processor = {
        name: times["processor"] for name, times in found.items() if isinstance(times, dict) and name != "projections"
    }
    return [
        {
            "what": "extract, over extract with OPENBLAS_NUM_THREADS=1, wall time",
            "ratio": found["extract"]["seconds"] / found["extract_one_thread"]["seconds"],
            "at_most": 1.15,
        },
        {
            "what": "extract, over extract with OPENBLAS_NUM_THREADS=1, processor time",
            "ratio": processor["extract"] / processor["extract_one_thread"],
            "at_most": 1.15,
        },
        {
            "what": "extract, over torch.svd_lowrank in its default environment, processor time",
            "ratio": processor["extract"] / processor["torch"],
            "at_most": 0.6,
        },
        {
            "what": "extract, over torch.svd_lowrank on one thread, processor time",
            "ratio": processor["extract"] / processor["torch_one_thread"],
            "at_most": None,
        },
        {
            "what": "layers with a larger error than torch.svd_lowrank's",
            "ratio": found["layers"] - found["smaller_error"],
            "at_most": 0,
        },
        {
            "what": "inspect, over its decompositions alone, processor time",
            "ratio": processor["inspect"] / processor["decompositions"],
            "at_most": 1.5,
        },
    ]


def _times(run: dict[str, Any]) -> dict[str, float]:
    return {name: run[name] for name in ("seconds", "processor")}


def _error(delta: NDArray[Any], B: NDArray[Any], A: NDArray[Any]) -> float:
    """Return ‖Δ − BA‖ / ‖Δ‖ in float64."""
    update = delta.astype(np.float64)
    return float(np.linalg.norm(update - B.astype(np.float64) @ A.astype(np.float64)) / np.linalg.norm(update))


def _entries(shapes: Shapes) -> int:
    return sum(m * n for m, n in shapes.values())


def _flops(shapes: Shapes) -> int:
    """Return what a Gram matrix and the values of it take, but for a factor: m·n·p + (4/3)·p³ with p = min(m, n)."""
    return sum(m * n * min(m, n) + 4 * min(m, n) ** 3 // 3 for m, n in shapes.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; exit code 1 if a ratio is more than it may be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_model", description=__doc__)
    parser.add_argument("side", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=MODELS[MEASURED][0], help="blocks, seven layers each (all, 16)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each side is measured, the best counts (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures into FILE, as its part “whole”")
    options = parser.parse_args(arguments)
    if options.side:
        side, base, tuned = options.side
        print(json.dumps(SIDES[side](Path(base), Path(tuned))))
        return 0
    description, found = machine(), compare(options.blocks, options.rounds)
    lines = lines_of(found)
    for line in lines:
        limit = "" if line["at_most"] is None else f" (at most {line['at_most']:g})"
        print(f"{line['what']:<75} {line['ratio']:.3g}{limit}")
    print(json.dumps(found, indent=1))
    if options.json:
        update(options.json, "whole", {"machine": description, "found": found, "lines": lines})
    return int(any(line["at_most"] is not None and line["ratio"] > line["at_most"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
