"""Whole models as files: how much faster than torch and PEFT, and in how much memory: ``python -m benchmarks.models``.

Every ratio is of one run: both sides on the same files and the same cores, both warmed up, the best of several, the
peer at the faster of one thread and its default, both answers checked against a float64 SVD by NumPy. The peers take
seconds for one layer, so both sides are timed on the first blocks of the model alone; then ours on the whole of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.compare import duration, machine, named
from benchmarks.model_cases import ATTENTION, MLP, extraction, make_adapter, make_checkpoints, resizing
from benchmarks.model_memory import peak
from benchmarks.records import update
from benchmarks.timing import Outcome, contest

RANK = 32
SHAPES = (ATTENTION, MLP)
CHECKED = ("model.layers.00.self_attn.q_proj", "model.layers.00.mlp.up_proj")
# (dtype, how fast the singular values fall) of the checkpoints.
MODELS = (("float32", 1.0), ("float32", 0.7), ("bfloat16", 1.0))
LEAST = {"extract": 5.0, "resize": 50.0}
# Models whose peak memory is measured: their layers, and the peak that is allowed, over the largest layer in float32.
MEMORY = (
    ("2 × 1024², 2 × 1024 × 4096", 2, SHAPES, 6.0),
    ("20 × 1024², 20 × 1024 × 4096", 20, SHAPES, 6.0),
    ("2 × 2048²", 2, ((2048, 2048),), None),
    ("2 × 4096²", 2, ((4096, 4096),), None),
)
PARTS = ("extract", "resize", "memory")


def extract_lines(blocks: int, peer_blocks: int) -> list[dict[str, Any]]:
    """Measure extraction from every kind of model."""
    lines = []
    for dtype, power in MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            few = make_checkpoints(_new(folder / "few"), peer_blocks, shapes=SHAPES, dtype=dtype, power=power)
            outcome = contest(extraction(folder, few, RANK, checked=CHECKED))
            many = make_checkpoints(_new(folder / "many"), blocks, shapes=SHAPES, dtype=dtype, power=power)
            whole = _seconds(extraction(folder, many, RANK).ours.call)
        lines.append(_line("extract", f"{dtype}, σᵢ ~ i^-{power:g}", outcome, blocks, peer_blocks, whole))
    return lines


def resize_lines(blocks: int, peer_blocks: int) -> list[dict[str, Any]]:
    """Measure the resizing of an adapter."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        few = make_adapter(folder / "few", peer_blocks, shapes=SHAPES)
        outcome = contest(resizing(folder, few, RANK, checked=CHECKED))
        many = make_adapter(folder / "many", blocks, shapes=SHAPES)
        whole = _seconds(resizing(folder, many, RANK).ours.call)
    return [_line("resize", "float32", outcome, blocks, peer_blocks, whole)]


def memory_lines() -> list[dict[str, Any]]:
    """Measure the peak memory of extracting from each model, over its largest layer in float32."""
    lines = []
    for layers, blocks, shapes, allowed in MEMORY:
        measured = peak(blocks, shapes, RANK)
        lines.append({"layers": layers, "peak": measured, "allowed": allowed})
        limit = "" if allowed is None else f" (at most {allowed:g})"
        print(f"memory   {layers:<30} peak {measured:.2f} times the largest layer in float32{limit}", flush=True)
    return lines


def _line(part: str, model: str, outcome: Outcome, blocks: int, peer_blocks: int, whole: float) -> dict[str, Any]:
    """Print and record an outcome, against each peer."""
    print(
        f"{part:<8} {model:<24} {2 * peer_blocks} layers: {duration(outcome.ours.seconds)}, "
        f"error {outcome.ours.error:.1e} {outcome.unit}; {2 * blocks} layers: {duration(whole)}"
    )
    for peer in outcome.peers:
        print(f"         {named(peer):<34} {duration(peer.seconds):>9}  {outcome.over(peer):.1f}×", flush=True)
    met = outcome.right and outcome.ratio >= LEAST[part]
    print(f"         at least {LEAST[part]:g}× asked: {'met' if met else 'missed'}", flush=True)
    return {
        "model": model,
        "case": outcome.case,
        "layers": 2 * blocks,
        "seconds": whole,
        "timed_layers": 2 * peer_blocks,
        "ours": asdict(outcome.ours),
        "peers": [asdict(peer) | {"ratio": outcome.over(peer)} for peer in outcome.peers],
        "at_least": LEAST[part],
        "met": met,
    }


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; exit code 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="a part alone; again for more")
    parser.add_argument("--blocks", type=int, default=24, help="blocks of the model, two layers each (24)")
    parser.add_argument("--peer-blocks", type=int, default=2, help="blocks that both sides are timed on (2)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure into FILE, which keeps its other parts"
    )
    options = parser.parse_args(arguments)
    description = machine()
    print(f"{description['processor']}, {description['cores']} cores, load {description['load']:.2f}")
    parts = {
        "extract": lambda: extract_lines(options.blocks, options.peer_blocks),
        "resize": lambda: resize_lines(options.blocks, options.peer_blocks),
        "memory": memory_lines,
    }
    missed = False
    for part in options.only or PARTS:
        lines = parts[part]()
        missed = missed or any(_is_missed(line) for line in lines)
        if options.json:
            update(options.json, part, {"machine": description, "lines": lines})
    return int(missed)


def _is_missed(line: dict[str, Any]) -> bool:
    if "met" in line:
        return not line["met"]
    return line["allowed"] is not None and line["peak"] > line["allowed"]


if __name__ == "__main__":
    sys.exit(main())
