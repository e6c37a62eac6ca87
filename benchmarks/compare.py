"""Print how many times faster lowrank_core is than its peers: ``python -m benchmarks.compare``.

Each line is one run of both sides on the same input and the same cores: both warmed up, the best of several, the peer
at the faster of one BLAS thread and its default, both answers checked. ``--peers`` prints every peer that was tried.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import cases, sweep_cases
from benchmarks.reach import reaches
from benchmarks.timing import Outcome, Timing, contest
from lowrank_core._processors import usable_processors

ALL_RANKS = (*sweep_cases.ARTICLE_RANKS, 64)


@dataclass(frozen=True)
class Line:
    """A line of the table: its case, with full and with small inputs, and its target."""

    row: str
    build: Callable[..., cases.Case]
    full: tuple[Any, ...]
    small: tuple[Any, ...]
    at_least: float | None = None  # of the ratio, the peer's time over ours
    aim: float | None = None
    fraction: float | None = None  # the aim, as a fraction of the machine's own limit
    inverse: bool = False  # written as our time over the peer's, which is to be at most 1 / at_least


LINES = (
    Line("small", cases.stack, (10_000, 8, "float64"), (1_000, 8, "float64"), 4, 10),
    Line("small", cases.stack, (10_000, 16, "float64"), (1_000, 16, "float64"), 4, 10),
    Line("medium", cases.stack, (4_000, 32, "float64"), (400, 32, "float64"), 3, 8),
    Line("medium", cases.stack, (2_000, 64, "float64"), (200, 64, "float64"), 3, 8),
    Line("medium32", cases.stack, (400, 128, "float32"), (40, 128, "float32"), 3.5, 6),
    Line("medium32", cases.stack, (64, 256, "float32"), (8, 256, "float32"), 3.5, 6),
    Line("medium32", cases.stack, (16, 512, "float32"), (2, 512, "float32"), 3.5, 6),
    Line("tall", cases.doubles, (1, 100_000, 16), (1, 10_000, 16), 2, 4),
    Line("tall", cases.doubles, (1, 20_000, 64), (1, 2_000, 64), 2, 4),
    Line("tall", cases.doubles, (1, 1_000_000, 4), (1, 10_000, 4), 2, 4),
    Line("tall", cases.doubles, (1, 4_096, 256), (1, 1_024, 64), 2, 4),
    Line("float64", cases.doubles, (50, 100, 100), (5, 100, 100), 1),
    Line("float64", cases.doubles, (1, 600, 500), (1, 150, 125), 1),
    Line("float64", cases.doubles, (1, 1_000, 1_000), (1, 250, 250), 1.5, 3),
    Line("float64", cases.doubles, (1, 2_000, 2_000), (1, 500, 500), 1.5, 3),
    Line("large", cases.large, (2048,), (512,), 2, 4),
    Line("large", cases.large, (4096,), (1024,), 2, 4),
    *(
        Line("leading", cases.leading, (n, power, 64, True), (n // 4, power, 64, True), 2, 4)
        for n in (2048, 4096)
        for power in (0.5, 1.0)
    ),
    *(
        Line("truncate", cases.truncation, (count, n, dtype, max(2, n // 8)), (count // 10 + 1, n, dtype, 2), 2)
        for dtype in ("float64", "float32")
        for count, n in ((10_000, 8), (4_000, 16), (1_000, 32), (400, 64), (80, 128), (16, 256), (4, 512))
    ),
    Line("truncate", cases.leading_double, (2_000, 32), (200, 8), 1.5),
    Line("factors", cases.factors, (4096, 16), (1024, 16), 8, fraction=0.5),
    Line("factors", cases.factors, (4096, 64), (1024, 64), 8, fraction=0.5),
    Line("factors", cases.factors, (4096, 256), (1024, 256), 4, fraction=0.5),
    Line("kronecker", cases.kronecker, (64, "float64"), (16, "float64")),
    Line("kronecker", cases.kronecker, (64, "float32"), (16, "float32")),
    Line("sweep", sweep_cases.sweep, (1_000, 4_096, 256), (100, 1_024, 64), 5, fraction=0.5),
    Line("learning", sweep_cases.learning, (ALL_RANKS, 10), (ALL_RANKS, 1), 1.8, fraction=2 / 3),
    Line("article", sweep_cases.article, (), (), 40),
    Line("updates", sweep_cases.many_updates, (1_000, False), (100, False), 1000),
    Line("updates", sweep_cases.many_updates, (1_000, True), (100, True), 1000),
    Line("import", sweep_cases.import_time, (), (), 1 / 1.5, 1 / 1.1, inverse=True),
    Line("demo", sweep_cases.demo, (), (), 1 / 2.5, 1 / 1.5, inverse=True),
    Line("workers", cases.two_workers, (10_000, 16, "float64"), (1_000, 16, "float64"), 1.8),
    Line("workers", cases.two_workers, (2_000, 64, "float64"), (200, 64, "float64"), 1.8),
    Line("workers", cases.two_workers, (64, 256, "float32"), (8, 256, "float32"), 1.8),
)
ROWS = tuple(dict.fromkeys(line.row for line in LINES))
COLUMNS = "{:<9} {:<48} {:>8}  {:<37} {:>8} {:>7} {:>8} {:>6} {:<7}  {}"
TITLES = ("row", "case", "ours", "peer", "its time", "ratio", "asked", "aim", "", "error (allowed), remarks")


def verdict(line: Line, outcome: Outcome) -> str:
    """Compare an outcome with its target."""
    if not outcome.right:
        return "WRONG"
    if line.at_least is not None and outcome.ratio < line.at_least:
        return "missed"
    return "met"


def cells(line: Line, outcome: Outcome) -> tuple[str, ...]:
    """Return the cells of a line of the table."""
    peer, ours = outcome.rival, outcome.ours
    return (
        line.row,
        outcome.case,
        duration(ours.seconds),
        named(peer),
        duration(peer.seconds),
        times(outcome.ratio, line),
        bound(line.at_least, line),
        bound(line.aim, line),
        verdict(line, outcome),
        "; ".join(remarks(line, outcome)),
    )


def remarks(line: Line, outcome: Outcome) -> list[str]:
    """Return the errors, the machine's limits over our time, and the fastest peer where its answer is not as exact."""
    parts = []
    if outcome.unit:
        parts.append(
            f"{outcome.ours.error:.2g} ({outcome.bound:.2g}) {outcome.unit}, the peer {outcome.rival.error:.2g}"
        )
    for i, limit in enumerate(outcome.limits):
        aim = f", aim {line.fraction:.0%}" if line.fraction is not None and i == 0 else ""
        parts.append(f"{limit.name} takes {limit.seconds / outcome.ours.seconds:.0%} of this time{aim}")
    fastest = outcome.peers[0]
    if fastest.name != outcome.rival.name:
        parts.append(f"{named(fastest)} errs by {fastest.error:.2g}, {times(outcome.over(fastest), line)}")
    return parts


def named(timing: Timing) -> str:
    """Return the name of a contender, and its threads where they are not its default."""
    return timing.name + (" (1 thread)" if timing.threads == 1 else "")


def duration(seconds: float) -> str:
    """Return a time with its unit."""
    unit, size = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if seconds >= pair[1]), ("µs", 1e-6))
    return f"{seconds / size:.3g} {unit}"


def times(ratio: float, line: Line) -> str:
    """Return a ratio as the line has it."""
    figure = 1.0 / ratio if line.inverse else ratio
    return f"{figure:.3g}×" if figure < 1000 else f"{figure:,.0f}×"


def bound(ratio: float | None, line: Line) -> str:
    """Return the bound on a ratio."""
    return "" if ratio is None else ("≤ " if line.inverse else "≥ ") + times(ratio, line)


def peer_lines(line: Line, outcome: Outcome) -> list[str]:
    """Return a line for every peer."""
    return [
        f"          {named(peer):<44} {duration(peer.seconds):>9} {times(outcome.over(peer), line):>8}"
        f"  error {peer.error:.3g} {outcome.unit}"
        for peer in outcome.peers
    ]


def machine() -> dict[str, Any]:
    """Return the machine that the figures were measured on, and the versions of the software."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": processor(),
        "cores": usable_processors(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "reaches": {reach.name: reach.figure for reach in reaches()},
        "python": platform.python_version(),
        "versions": {
            name: installed(name) for name in ("lowrank_core", "numpy", "numba", "scipy", "scikit-learn", "torch")
        },
    }


def processor() -> str:
    """Return the name of the processor that the system has for it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def installed(name: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure(line: Line, *, quick: bool) -> Outcome:
    """Run the contest of one line; a RuntimeError that names the pip line if a peer is not installed."""
    case = line.build(*(line.small if quick else line.full))
    if missing := case.missing():
        raise RuntimeError(f"{case.name} needs its peers: pip install {' '.join(missing)}")
    return contest(case, rounds=1, least=0.0) if quick else contest(case)


def record(line: Line, outcome: Outcome, description: dict[str, Any]) -> dict[str, Any]:
    """Return a line and its outcome as JSON has them, with the date and the load of its run."""
    target = {"row": line.row, "at_least": line.at_least, "aim": line.aim, "fraction_aim": line.fraction}
    circumstances = {"date": description["date"], "load": description["load"]}
    measured = {"ratio": outcome.ratio, "verdict": verdict(line, outcome)}
    return target | circumstances | asdict(outcome) | measured


def run(
    rows: Sequence[str], description: dict[str, Any], *, quick: bool, peers: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure and print the rows asked for; return their records, and the errors of the others."""
    records, refused = [], []
    for line in LINES:
        if line.row not in rows:
            continue
        try:
            outcome = measure(line, quick=quick)
        except RuntimeError as error:
            refused.append(f"{line.row}: {error}")
            print(f"{line.row:<9} REFUSED: {error}", flush=True)
            continue
        records.append(record(line, outcome, description))
        print(COLUMNS.format(*cells(line, outcome)).rstrip(), flush=True)
        if peers:
            print("\n".join(peer_lines(line, outcome)), flush=True)
    return records, refused


def keep(file: Path, description: dict[str, Any], records: list[dict[str, Any]], *, quick: bool) -> None:
    """Write the records into a file, in place of its lines of the same rows; other lines and their machine are kept.

    Lines of small inputs and of full ones are never in the same file: the later ones replace all of the earlier.
    """
    lines = records
    if file.exists() and (kept := json.loads(file.read_text(encoding="utf-8")))["quick"] == quick:
        measured = {entry["row"] for entry in records}
        others = [entry for entry in kept["lines"] if entry["row"] in ROWS and entry["row"] not in measured]
        lines = sorted(others + records, key=lambda entry: ROWS.index(entry["row"]))
        description = kept["machine"] if others else description
    whole = {"machine": description, "quick": quick, "lines": lines}
    file.write_text(json.dumps(whole, indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if an answer was wrong, 2 if a row was refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}; again for more"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs, each call timed once: a smoke test")
    parser.add_argument("--peers", action="store_true", help="a line for every peer that was tried")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure to FILE, which keeps its lines of other rows"
    )
    options = parser.parse_args(arguments)
    start, description = time.perf_counter(), machine()
    print(
        f"{description['processor']}, {description['cores']} cores, load {description['load']:.2f}; "
        + ", ".join(f"{name} {number}" for name, number in description["versions"].items())
    )
    if options.quick:
        print("Small inputs, each call timed once: the ratios below say nothing about the targets.")
    print(COLUMNS.format(*TITLES).rstrip())
    for name, figure in description["reaches"].items():
        print(f"{name}: {figure:.3g}")
    records, refused = run(options.only or ROWS, description, quick=options.quick, peers=options.peers)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.json:
        keep(options.json, description, records, quick=options.quick)
    for refusal in refused:
        print(refusal, file=sys.stderr)
    return 2 if refused else int(any(entry["verdict"] == "WRONG" for entry in records))


if __name__ == "__main__":
    sys.exit(main())
