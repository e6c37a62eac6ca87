"""The verb ``lowrank merge``: one adapter from the weighted sum of several."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options
from lowrank_core.cli.rank_choice import choose_one_rank
from lowrank_core.cli.written import write_adapter

EXAMPLES = options.examples(
    "lowrank merge one/ two/ both/",
    "lowrank merge one/ two.safetensors both/ --weights 1,-0.5 --rank 16",
)


def merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER", help="Adapters of one base model, folders or files, in any formats."),
    ],
    out: options.Out,
    *,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="W,W,…",
            help="What to multiply each adapter's update by, in their order, as 1,-0.5; or --weights W for each.",
            show_default="1 for each",
        ),
    ] = None,
    choice: options.RankChoice,
    modules: options.Modules,
    conversion: options.Conversion,
    rule: options.Rule = "standard",
    dtype: options.Dtype = None,
    written: options.NewAdapter,
    work: options.Work,
    reports: options.Reports,
) -> int:
    """Write the weighted sum of several adapters as one, whatever their formats, ranks and scaling rules.

    Weights multiply updates, so that 0.5 halves one. One of --rank, --variance, --error, --ratio, --parameters and
    --megabytes chooses how many components of the sum each layer keeps; without one, all, and the sum is exact. The
    exit code is 1 if some layers failed and the others were written, or something of the adapters is not in the sum.
    """
    operation = partial(
        models.merge,
        adapters,
        out,
        weights=None if weights is None else parse_weights(weights),
        rank=choose_one_rank(choice),
        rule=rule,
        dtype=dtype,
        **vars(modules),
        **vars(conversion),
        **vars(written),
    )
    return write_adapter(operation, (*adapters, out, conversion.base), work, reports)


def parse_weights(texts: list[str]) -> list[float]:
    """Return weights that are separated by commas or given one by one."""
    try:
        return [float(part) for text in texts for part in text.split(",")]
    except ValueError:
        given = " ".join(texts)
        raise ValueError(f"--weights takes numbers separated by commas, such as 1,-0.5; got {given!r}.") from None
