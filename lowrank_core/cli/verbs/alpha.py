"""The verb ``lowrank alpha``: what becomes of the scale when the rank or the rule changes."""

from __future__ import annotations

from typing import Annotated

import typer

from lowrank_core.cli import options, output
from lowrank_core.cli.reports import alpha_tables

EXAMPLES = options.examples(
    "lowrank alpha --rank 8 --alpha 16 --to-rank 64",
    "lowrank alpha --rank 8 --alpha 16 --to-rank 64 --to-rule rslora",
)


def alpha(
    *,
    rank: Annotated[int, typer.Option(min=1, metavar="R", help="Present rank.")],
    alpha: Annotated[float, typer.Option(metavar="α", help="Present α.")],
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="Present scaling rule: standard (α/r) or rslora (α/√r).")
    ] = "standard",
    to_rank: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="New rank.", show_default="the present one")
    ] = None,
    to_rule: Annotated[
        str | None, typer.Option(metavar="RULE", help="New scaling rule.", show_default="the present one")
    ] = None,
    json: options.JsonFile = None,
) -> None:
    """Show what becomes of the scale γ when the rank or the rule changes, and the α that keeps it.

    γ multiplies the product B·A; γ²r is how far one step of gradient descent moves the update.
    """
    output.check_outputs(None, json)
    cases = alpha_tables.cases(alpha, rank, rule, to_rank=to_rank or rank, to_rule=to_rule or rule)
    output.write_report(cases, alpha_tables.alpha, (json, lambda cases: output.json_text({"cases": cases})))
