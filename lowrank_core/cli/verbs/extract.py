"""The verb ``lowrank extract``: an adapter from two checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowrank_core import models
from lowrank_core.cli import options
from lowrank_core.cli.rank_choice import choose_rank
from lowrank_core.cli.written import write_adapter

EXAMPLES = options.examples(
    "lowrank extract base/ tuned/ my-adapter/ --rank 32",
    "lowrank extract base/ tuned/ lora --rank 4,8,16   (lora-r4, -r8 and -r16)",
    "lowrank extract base/ tuned/ my-adapter/ --variance 0.95 --exclude lm_head",
    "lowrank extract base/ tuned/ lora.safetensors --rank 16   (a kohya file)",
    "lowrank extract base/ tuned/ my-adapter/ --parameters 2M --dtype bfloat16",
    "lowrank extract base/ tuned/ my-adapter/ --error 0.1 --dry-run",
)


def extract(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The checkpoint before training.")],
    tuned: Annotated[
        Path, typer.Argument(metavar="TUNED", help="The checkpoint after training, or an adapter of BASE.")
    ],
    out: options.OutUnlessDryRun = None,
    *,
    choice: options.RankChoice,
    above_noise: Annotated[
        bool, typer.Option("--above-noise", help="Keep what exceeds the rounding of the stored weights.")
    ] = False,
    sides: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            metavar="N",
            help="With --above-noise, which were rounded: 1, TUNED alone; 2, BASE as well, tuned from a finer copy.",
            show_default="1",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="T",
            help="With --rank, the fraction of the energy beyond it that may be missed; 0 decomposes in full.",
            show_default="1e-6; 1e-12 for float64",
        ),
    ] = None,
    modules: options.Modules,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Extract modules that match as embeddings, skipped otherwise. May be repeated."
        ),
    ] = None,
    transposed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Modules whose weights are stored as (in, out). May be repeated.",
            show_default="what config.json says of the model type",
        ),
    ] = None,
    pairing: options.Pairing,
    names: Annotated[
        str,
        typer.Option(
            metavar="WHICH", help="Whose names the modules have: base or tuned, the checkpoint that you will load."
        ),
    ] = "base",
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What module names begin with in the model, as transformer; in a kohya file, what keys begin with.",
            show_default="nothing; lora_unet for kohya, the component for diffusers",
        ),
    ] = None,
    rule: options.Rule = "standard",
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help=options.DTYPE_HELP)] = "float32",
    written: options.NewAdapter,
    work: options.Work,
    reports: options.Reports,
) -> int:
    """Extract a LoRA adapter from two checkpoints: of each layer the best update of its rank.

    One of --rank, --variance, --error, --ratio, --parameters, --megabytes and --above-noise chooses how many
    components of TUNED − BASE each layer keeps. What an adapter cannot contain (biases, norms, embeddings unless
    --embedding names them) is listed with the norm of its change. The exit code is 1 if what was written is not all: a
    layer failed, or a matrix differs that is in no layer and was not excluded.
    """
    options.check_out(out, dry_run=written.dry_run)
    rank = choose_rank(choice, required=True, above_noise=above_noise, sides=sides)
    operation = partial(
        models.extract,
        base,
        tuned,
        out,
        rank=rank,
        tolerance=tolerance,
        embeddings=embedding or (),
        transposed=transposed,
        names=names,
        **pairing.arguments,
        prefix=prefix,
        rule=rule,
        dtype=dtype,
        **vars(modules),
        **vars(written),
    )
    return write_adapter(operation, (base, tuned, out), work, reports, several=isinstance(rank, tuple))
