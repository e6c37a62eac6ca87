"""The verb ``lowrank plan``: a rank and an alpha for each layer, for PEFT's configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options, output
from lowrank_core.cli.rank_choice import option
from lowrank_core.cli.reports import plan_tables
from lowrank_core.cli.workers import over_layers
from lowrank_core.models.operations.rank_words import choose_budget

EXAMPLES = options.examples(
    "lowrank plan base/ tuned/ --parameters 2M --out plan.json",
    "lowrank plan base/ tuned/ --variance 0.9 --rule rslora --scale 2",
    "lowrank plan my-adapter/ --parameters 500k",
    after="then, in Python: peft.LoraConfig(**json.load(open('plan.json')))",
)


def plan(
    paths: Annotated[
        list[Path], typer.Argument(metavar="BASE TUNED | ADAPTER", help="Two checkpoints, or one adapter.")
    ],
    *,
    parameters: options.Parameters = None,
    variance: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="Keep this fraction of the variance of all layers together, with the fewest parameters."
        ),
    ] = None,
    objective: options.Objective = None,
    max_rank: options.MaxRank = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="γ", help="Scale of every layer.", show_default="each adapter layer's own; 1 for checkpoints"
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Scaling rule that α is for: standard (α/r) or rslora (α/√r).",
            show_default="the adapter's own; standard for checkpoints",
        ),
    ] = None,
    pairing: options.Pairing,
    modules: options.Modules,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write ranks, alphas and modules as JSON, as peft.LoraConfig(**…) takes them."
        ),
    ] = None,
    work: options.Work,
    full: options.Full = False,
    json: options.JsonFile = None,
) -> int:
    """Plan a rank for each layer within a budget, from an update that exists already, and write it as PEFT takes it.

    One of --parameters and --variance says how much. Ranks go where they keep the most variance for their parameters;
    the table says how far from the best possible that is, and what one rank for all layers would cost or keep. The exit
    code is 1 if some layers could not be read and the others are planned, or if an adapter has more than layers.
    """
    output.check_outputs(None, json, out, others=paths)
    if len(paths) > 2:
        raise ValueError(f"two checkpoints, BASE and TUNED, or one ADAPTER; got {len(paths)} paths.")
    budget = choose_budget(
        parameters=parameters, variance=variance, objective=objective, max_rank=max_rank, spelled=option
    )
    *bases, path = paths
    made = over_layers(
        partial(
            models.plan,
            path,
            bases[0] if bases else None,
            budget=budget,
            **pairing.arguments,
            scale=scale,
            rule=rule,
            **vars(modules),
        ),
        work,
    )
    output.write_report(
        made,
        partial(plan_tables.plan, full=full),
        (json, output.json_text),
        (out, lambda made: output.json_text(made.config)),
    )
    return output.exit_code(complete=made.complete)
