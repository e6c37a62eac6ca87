"""The verb ``lowrank inspect``: an adapter, a fine-tune, or many adapters, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options, output
from lowrank_core.cli.drawing import draw_report
from lowrank_core.cli.reports import inspection_tables
from lowrank_core.cli.verbs import census
from lowrank_core.cli.workers import over_layers
from lowrank_core.models.formats import is_adapter
from lowrank_core.models.inspection.layers import DEFAULT_ALPHA, DEFAULT_RANKS, LEADING
from lowrank_core.models.inspection.report import to_rows
from lowrank_core.models.inspection.verdicts import CONDITIONS, UNDER_ROUNDING, check_conditions

EXAMPLES = options.examples(
    "lowrank inspect my-adapter/",
    "lowrank inspect tuned/ --base base/ --ranks 4,16,64",
    "lowrank inspect my-adapter/ --csv layers.csv --figure layers.pdf",
    "lowrank inspect my-adapter/ --fail-on zero --fail-on not-finite",
    "lowrank inspect adapters/ --recursive --jsonl census.jsonl --workers 8",
)


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="An adapter, (with --base) a checkpoint or an adapter, or (with --recursive) a folder.",
        ),
    ],
    *,
    base: Annotated[Path | None, typer.Option(metavar="BASE", help="The checkpoint that PATH was tuned from.")] = None,
    pairing: options.Pairing,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…",
            help="Ranks to report errors at; one beyond a layer's own largest is taken as the largest.",
            show_default=",".join(map(str, DEFAULT_RANKS)),
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Scaling rule to report errors under: standard (α/r), rslora (α/√r) or unscaled (1). May be repeated.",
            show_default="the best possible errors alone",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="α",
            help="α of these rules.",
            show_default=f"each adapter layer's own; {DEFAULT_ALPHA:g} for checkpoints",
        ),
    ] = None,
    intruders: Annotated[
        bool,
        typer.Option(
            "--intruders",
            help="With --base, count intruder dimensions: leading left vectors of W + Δ near none of W's.",
        ),
    ] = False,
    leading: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="How many leading vectors --intruders examines.", show_default=f"{LEADING}"
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help=f"End with exit code 3 on this verdict: {', '.join(CONDITIONS)}. May be repeated.",
        ),
    ] = None,
    reports: options.Reports,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Report every adapter under the folder PATH, in one row each.")
    ] = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl",
            metavar="FILE",
            help="With --recursive, add each row to FILE as it comes; run again, it continues where it stopped.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Threads over the layers; with --recursive, processes over the adapters.",
            show_default="1; with --base, every core this process may use",
        ),
    ] = None,
    dask: options.Dask = None,
) -> int:
    """Report an update layer by layer: scale, effective rank, rank needed, and error at chosen ranks.

    PATH is an adapter, or with --base a checkpoint, whose update is its difference from BASE. Some updates of adapters
    (DoRA, GLoRA, OFT, IA3) depend on the weights of the base, and without --base they count as not read. The exit code
    is 1 if the report is not complete: a layer could not be read, a matrix differs that is in no layer, or an adapter
    has more than low-rank updates, as biases and modules saved in full. All are named, and not in the totals. It is 3
    where a condition of --fail-on is met.
    """
    census.check_options(
        recursive=recursive,
        jsonl=jsonl,
        base=base,
        rule=rule,
        alpha=alpha,
        fail_on=fail_on,
        intruders=intruders,
        figure=reports.figure,
        **pairing.arguments,
    )
    if leading is not None and not intruders:
        raise ValueError("--leading is how many vectors --intruders examines: give that too.")
    _check_base(path, base, fail_on or (), intruders=intruders)
    output.check_outputs(reports.figure, reports.json, reports.csv, jsonl, others=(path, base))
    # A layer's factors take a millisecond, most of it in Python, where threads wait for each other.
    work = options.Work(1 if workers is None and base is None else workers, dask)
    chosen = DEFAULT_RANKS if ranks is None else options.parse_ranks(ranks)
    if recursive:
        return census.run(path, chosen, jsonl, work, reports)
    rules = tuple(dict.fromkeys(rule or ()))
    inspection = over_layers(
        partial(
            models.inspect,
            path,
            base,
            ranks=chosen,
            rules=rules,
            alpha=alpha,
            intruders=(leading or LEADING) if intruders else 0,
            **pairing.arguments,
        ),
        work,
    )
    is_met = any(verdict.kind in (fail_on or ()) for verdict in inspection.verdicts)
    if inspection.failures and not inspection.layers and not is_met:
        name, reason = next(iter(inspection.failures.items()))
        raise ValueError(
            f"no layer of {str(path)!r} could be read; the first of {len(inspection.failures)}, {name}: {reason}"
        )
    output.write_report(
        inspection,
        partial(inspection_tables.inspection, full=reports.full),
        (reports.json, output.json_text),
        (reports.csv, lambda inspection: output.csv_text(to_rows(inspection))),
        (reports.figure, draw_report),
    )
    return output.exit_code(complete=inspection.complete, is_met=is_met)


def _check_base(path: Path, base: Path | None, conditions: Sequence[str], *, intruders: bool) -> None:
    """Check that the base is given where a condition or an option needs it."""
    check_conditions(conditions)
    if intruders and base is None:
        raise ValueError("--intruders compares W + Δ with the base's weights W: give the base too (--base).")
    if UNDER_ROUNDING in conditions and (base is None or not is_adapter(path)):
        raise ValueError(
            f"{UNDER_ROUNDING!r} is whether a merge would lose an adapter's update: it needs the adapter, and its base "
            "(--base)."
        )
