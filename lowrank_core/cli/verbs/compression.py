"""The verbs that write adapters: ``lowrank extract``, ``lowrank resize`` and ``lowrank merge``."""

# No deferred annotations here: typer reads the types of the options from the functions themselves.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowrank_core.cli import options, output
from lowrank_core.cli.rank_choice import choose_rank
from lowrank_core.cli.reports import compression_tables
from lowrank_core.cli.workers import workers_for_layers
from lowrank_core.models.operations.compression import Compression, to_rows
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.resizing import resize
from lowrank_core.models.results import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["add_to"]

# \b keeps the line breaks of what follows it.
EXTRACT_EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank extract base/ tuned/ my-adapter/ --rank 32\n"
    "  lowrank extract base/ tuned/ my-adapter/ --variance 0.95 --max-rank 64 --exclude lm_head\n"
    "  lowrank extract base/ tuned/ my-adapter.safetensors --rank 16 --dtype bfloat16   (a kohya file)\n"
    "  lowrank extract base/ tuned/ my-adapter/ --parameters 2000000 --dtype bfloat16\n"
    "  lowrank extract base/ tuned/ my-adapter/ --error 0.1 --dry-run\n"
)
RESIZE_EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank resize my-adapter/ smaller/ --rank 8\n"
    "  lowrank resize my-adapter/ smaller/ --variance 0.99 --uniform\n"
    "  lowrank resize my-adapter/ my-adapter.safetensors   (the same update as a kohya file)\n"
)
MERGE_EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank merge one/ two/ both/\n"
    "  lowrank merge one/ two.safetensors both/ --weights 1,-0.5 --rank 16 --base base/\n"
)

SOME_LAYERS_FAILED = 1

Out = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", help="What to write: a kohya file if its name ends in .safetensors, else a PEFT folder."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="What the factors are stored in: float32, bfloat16, float16 or float64.",
        show_default="the finest that is there now",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Give a program these verbs."""
    add = app.command
    add("extract", short_help="An adapter from two checkpoints.", epilog=EXTRACT_EXAMPLES)(_extract)
    add("resize", short_help="A smaller adapter from an adapter.", epilog=RESIZE_EXAMPLES)(_resize)
    add("merge", short_help="One adapter from the weighted sum of several.", epilog=MERGE_EXAMPLES)(_merge)


def _extract(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The checkpoint before training.")],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="The checkpoint after training.")],
    out: Out,
    *,
    rank: options.Rank = None,
    variance: options.Variance = None,
    error: options.Error = None,
    ratio: options.Ratio = None,
    parameters: options.Parameters = None,
    objective: options.Objective = None,
    above_noise: Annotated[
        bool, typer.Option("--above-noise", help="Keep what stands above the rounding of the stored weights.")
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
    max_rank: options.MaxRank = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Extract modules that match as embeddings, left out otherwise. May be repeated."
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
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What module names begin with in the model, as transformer; in a kohya file, what keys begin with.",
            show_default="nothing; lora_unet for kohya",
        ),
    ] = None,
    alpha: options.Alpha = None,
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="Scaling rule of the adapter: standard (α/r) or rslora (α/√r).")
    ] = "standard",
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="What the factors are stored in: float32, bfloat16, float16 or float64."),
    ] = "float32",
    uniform: options.Uniform = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    workers: options.LayerWorkers = 1,
    dask: options.Dask = None,
    full: options.Full = False,
    json: options.JsonFile = None,
    csv: options.CsvFile = None,
    figure: options.FigureFile = None,
) -> int:
    """Extract a LoRA adapter from two checkpoints: the best update of each layer that a rank can hold.

    One of --rank, --variance, --error, --ratio, --parameters and --above-noise chooses how many components of
    TUNED − BASE each layer keeps. What an adapter cannot carry (biases, norms, embeddings unless asked for) is listed
    with the norm of its change. The exit code is 1 if some layers failed and the others were written.
    """
    output.check_outputs(figure, json, csv)
    chosen = choose_rank(
        rank=rank,
        max_rank=max_rank,
        parameters=parameters,
        objective=objective,
        above_noise=above_noise,
        sides=sides,
        variance=variance,
        error=error,
        ratio=ratio,
    )
    if chosen is None:
        raise ValueError(
            "how much to keep? Give one of --rank, --variance, --error, --ratio, --parameters and --above-noise."
        )
    with workers_for_layers(workers, dask) as executor, output.progress_bar("layers") as advance:
        report = extract(
            base,
            tuned,
            out,
            rank=chosen,
            include=include or (),
            exclude=exclude or (),
            embeddings=embedding or (),
            transposed=transposed,
            prefix=prefix,
            alpha=alpha,
            rule=rule,
            dtype=dtype,
            uniform=uniform,
            force=force,
            dry_run=dry_run,
            executor=executor,
            progress=advance,
        )
    return _write_report(report, full=full, json=json, csv=csv, figure=figure)


def _resize(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's folder, or a kohya file.")],
    out: Out,
    *,
    rank: options.Rank = None,
    variance: options.Variance = None,
    error: options.Error = None,
    ratio: options.Ratio = None,
    parameters: options.Parameters = None,
    objective: options.Objective = None,
    max_rank: options.MaxRank = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    base: options.Base = None,
    base_restored: options.BaseRestored = False,
    prefix: options.KohyaPrefix = None,
    alpha: options.Alpha = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Scaling rule of the new adapter: standard (α/r) or rslora (α/√r).",
            show_default="that of ADAPTER",
        ),
    ] = None,
    dtype: Dtype = None,
    uniform: options.Uniform = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    workers: options.LayerWorkers = 1,
    dask: options.Dask = None,
    full: options.Full = False,
    json: options.JsonFile = None,
    csv: options.CsvFile = None,
    figure: options.FigureFile = None,
) -> int:
    """Write the best smaller adapter of the same update, or the same one in another format, dtype or rule.

    One of --rank, --variance, --error, --ratio and --parameters chooses how many components each layer keeps; without
    one, all. The product BA is never formed. What else the adapter holds (modules saved in full, biases) is copied as
    it is. The exit code is 1 if some layers failed and the others were written.
    """
    output.check_outputs(figure, json, csv)
    chosen = choose_rank(
        rank=rank,
        max_rank=max_rank,
        parameters=parameters,
        objective=objective,
        variance=variance,
        error=error,
        ratio=ratio,
    )
    with workers_for_layers(workers, dask) as executor, output.progress_bar("layers") as advance:
        report = resize(
            adapter,
            out,
            rank=chosen,
            base=base,
            base_restored=base_restored,
            include=include or (),
            exclude=exclude or (),
            prefix=prefix,
            alpha=alpha,
            rule=rule,
            dtype=dtype,
            uniform=uniform,
            force=force,
            dry_run=dry_run,
            executor=executor,
            progress=advance,
        )
    return _write_report(report, full=full, json=json, csv=csv, figure=figure)


def _merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER", help="PEFT adapters' folders and kohya files, of one base model."),
    ],
    out: Out,
    *,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="W,W,…",
            help="What to multiply each adapter's update by, in their order, as 1,-0.5; or --weights W for each.",
            show_default="1 for each",
        ),
    ] = None,
    rank: options.Rank = None,
    variance: options.Variance = None,
    error: options.Error = None,
    ratio: options.Ratio = None,
    parameters: options.Parameters = None,
    objective: options.Objective = None,
    max_rank: options.MaxRank = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    base: options.Base = None,
    base_restored: options.BaseRestored = False,
    prefix: options.KohyaPrefix = None,
    alpha: options.Alpha = None,
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="Scaling rule of the new adapter: standard (α/r) or rslora (α/√r).")
    ] = "standard",
    dtype: Dtype = None,
    uniform: options.Uniform = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    workers: options.LayerWorkers = 1,
    dask: options.Dask = None,
    full: options.Full = False,
    json: options.JsonFile = None,
    csv: options.CsvFile = None,
    figure: options.FigureFile = None,
) -> int:
    """Write the weighted sum of several adapters as one, whatever their formats, ranks and scaling rules.

    Weights multiply updates, so that 0.5 halves one. One of --rank, --variance, --error, --ratio and --parameters
    chooses how many components of the sum each layer keeps; without one, all, and the sum is exact. The exit code is 1
    if some layers failed and the others were written.
    """
    output.check_outputs(figure, json, csv)
    chosen = choose_rank(
        rank=rank,
        max_rank=max_rank,
        parameters=parameters,
        objective=objective,
        variance=variance,
        error=error,
        ratio=ratio,
    )
    with workers_for_layers(workers, dask) as executor, output.progress_bar("layers") as advance:
        report = merge(
            adapters,
            out,
            weights=None if weights is None else parse_weights(weights),
            rank=chosen,
            base=base,
            base_restored=base_restored,
            include=include or (),
            exclude=exclude or (),
            prefix=prefix,
            alpha=alpha,
            rule=rule,
            dtype=dtype,
            uniform=uniform,
            force=force,
            dry_run=dry_run,
            executor=executor,
            progress=advance,
        )
    return _write_report(report, full=full, json=json, csv=csv, figure=figure)


def parse_weights(texts: list[str]) -> list[float]:
    """Read weights, separated by commas or each given alone, in their order.

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If one is no number.

    Examples
    --------
    >>> parse_weights(["1,-0.5"]), parse_weights(["1", "-0.5"])
    ([1.0, -0.5], [1.0, -0.5])
    """
    try:
        return [float(part) for text in texts for part in text.split(",")]
    except ValueError:
        given = " ".join(texts)
        raise ValueError(f"--weights takes numbers separated by commas, such as 1,-0.5; got {given!r}.") from None


def _write_report(report: Compression, *, full: bool, json: Path | None, csv: Path | None, figure: Path | None) -> int:
    output.write_report(
        lambda: compression_tables.compression(report, full=full),
        [(json, lambda: output.json_text(to_json(report))), (csv, lambda: output.csv_text(to_rows(report)))],
        figure,
        lambda: _draw(report),
    )
    return SOME_LAYERS_FAILED if report.failures else 0


def _draw(report: Compression) -> "Figure":
    # Here, for matplotlib takes a second to load and most runs draw nothing.
    from lowrank_core.cli.reports import compression_figure

    return compression_figure.draw(report)
