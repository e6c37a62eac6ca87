"""The verb ``lowrank demo``: what a rank can capture and what a scaling rule does, by simulation."""

from __future__ import annotations

from typing import Annotated

import typer

from lowrank_core.cli import options, output
from lowrank_core.cli.demo import experiments, tables, verdicts
from lowrank_core.cli.demo.experiments import MAX_SEED, RANKS, STYLE_RANK, Settings
from lowrank_core.cli.drawing import draw_demo

EXAMPLES = options.examples(
    "lowrank demo",
    "lowrank demo --size 32 --ranks 1,2,4,8 --seed 7",
    "lowrank demo --figure demo.pdf --json demo.json",
)

_LARGEST_SIZE = 512


def demo(
    *,
    size: Annotated[
        int, typer.Option(min=STYLE_RANK, max=_LARGEST_SIZE, metavar="N", help="Rows and columns of the updates.")
    ] = Settings.size,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…",
            help="Ranks, from 1 to the size.",
            show_default=f"{','.join(map(str, RANKS))} up to the size",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(metavar="α", help="α of the scaling rules.")] = Settings.alpha,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of every draw.")] = Settings.seed,
    json: options.JsonFile = None,
    figure: options.FigureFile = None,
) -> None:
    """Show what a rank can capture and what a scaling rule does, by simulation.

    A style update (low-rank) and a facts update (full-rank) are truncated to each rank and scaled by α/r and α/√r; the
    facts are then learned from zero under each rule, by gradient descent and by Adam. Every claim of the article that
    this comes from is judged by the numbers just computed.
    """
    output.check_outputs(figure, json)
    chosen = tuple(rank for rank in RANKS if rank <= size) if ranks is None else options.parse_ranks(ranks)
    results = experiments.run(Settings(size=size, ranks=chosen, alpha=alpha, seed=seed))
    judged = verdicts.verdicts(results)
    output.write_report(
        results,
        lambda results: tables.demo(results, judged),
        (json, lambda results: output.json_text({**experiments.to_json(results), "verdicts": judged})),
        (figure, draw_demo),
    )
