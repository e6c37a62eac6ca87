"""The verbs of the command line: options in, one call of the library, tables and files out."""

# No deferred annotations here: typer reads the types of the options from the functions themselves.

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import lowrank_core
from lowrank_core.cli import options, output
from lowrank_core.cli.demo.article import MAX_SEED, RANKS, STYLE_RANK, Settings
from lowrank_core.cli.reports import inspection_tables
from lowrank_core.cli.verbs import alpha as alpha_verb
from lowrank_core.cli.verbs import compression as compression_verbs
from lowrank_core.cli.verbs import plan as plan_verb
from lowrank_core.cli.workers import workers_for_layers
from lowrank_core.models.inspection.layers import DEFAULT_ALPHA, DEFAULT_RANKS, DEFAULT_RULES, inspect
from lowrank_core.models.inspection.report import Inspection, to_rows
from lowrank_core.models.results import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lowrank_core.cli.demo.article import Article

__all__ = ["app", "run"]

# \b keeps the line breaks of what follows it.
PROGRAM_EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank demo                               the question, on a small simulation\n"
    "  lowrank inspect ADAPTER                    a LoRA adapter, layer by layer\n"
    "  lowrank inspect TUNED --base BASE          a fine-tune: two checkpoints\n"
    "  lowrank extract BASE TUNED OUT --rank 32   an adapter of it\n"
    "  lowrank resize ADAPTER OUT --rank 8        a smaller adapter\n"
    "  lowrank plan BASE TUNED --parameters N     a rank for each layer, as PEFT takes it\n"
    "  lowrank alpha --rank 8 --alpha 16 --to-rank 64   the alpha that keeps the scale\n"
)
DEMO_EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank demo\n"
    "  lowrank demo --size 32 --ranks 1,2,4,8 --seed 7\n"
    "  lowrank demo --figure demo.pdf --json demo.json\n"
)
INSPECT_EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank inspect my-adapter/\n"
    "  lowrank inspect tuned/ --base base/ --ranks 4,16,64\n"
    "  lowrank inspect my-adapter/ --csv layers.csv --figure layers.pdf\n"
    "  lowrank inspect adapters/ --recursive --jsonl census.jsonl --workers 8\n"
)

SOME_LAYERS_FAILED = 1
LARGEST_DEMO = 512

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run(arguments: Sequence[str]) -> int:
    """Run the verb that these arguments name.

    Parameters
    ----------
    arguments : sequence of str

    Returns
    -------
    int
        The exit code: 0, or 1 where some layers failed.

    Raises
    ------
    ValueError
        If the arguments, or what they name, cannot be used.
    BrokenPipeError
        If the reader of standard output went away.
    """
    try:
        # Without its own handling, for typer reports bad usage in several lines.
        code = app(args=list(arguments), prog_name="lowrank", standalone_mode=False)
    except SystemExit as error:
        # Typer itself exits for one thing alone, whatever it is told: a reader that closed standard output.
        raise BrokenPipeError from error
    except Exception as error:
        # typer's usage errors come from click, or from a copy of click inside typer, by version: their shape is one.
        if not hasattr(error, "format_message"):
            raise
        raise ValueError(error.format_message()) from error
    return code if isinstance(code, int) else 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowrank {lowrank_core.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=PROGRAM_EXAMPLES)
def _program(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """How much of a weight update fits a low rank, and what a scaling rule does to it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(short_help="The question, on a small simulation.", epilog=DEMO_EXAMPLES)
def demo(
    *,
    size: Annotated[
        int, typer.Option(min=STYLE_RANK, max=LARGEST_DEMO, metavar="N", help="Rows and columns of the updates.")
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
    """Show what a rank can hold and what a scaling rule does, by simulation.

    A style update (low-rank) and a facts update (full-rank) are truncated to each rank and scaled by α/r and α/√r; the
    facts are then learned from zero under each rule, by gradient descent and by Adam. Every claim of the article that
    this comes from is judged by the figures just obtained.
    """
    output.check_outputs(figure, json)
    settings = Settings(
        size=size,
        ranks=tuple(rank for rank in RANKS if rank <= size) if ranks is None else parse_ranks(ranks),
        alpha=alpha,
        seed=seed,
    )
    from lowrank_core.cli import report_files as reports
    from lowrank_core.cli.demo import article, verdicts
    from lowrank_core.cli.demo import tables as demo_tables

    figures = article.run(settings)
    judged = verdicts.verdicts(figures)
    output.write_report(
        lambda: demo_tables.demo(figures, judged),
        [(json, lambda: output.json_text(reports.demo(figures, judged)))],
        figure,
        lambda: _draw_demo(figures),
    )


@app.command(name="inspect", short_help="An adapter or a fine-tune, layer by layer.", epilog=INSPECT_EXAMPLES)
def inspect_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A PEFT adapter's folder, a kohya file, (with --base) a checkpoint, or (with --recursive) a folder.",
        ),
    ],
    *,
    base: Annotated[
        Path | None, typer.Option(metavar="BASE", help="The checkpoint that PATH was tuned from: inspect PATH − BASE.")
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…",
            help="Ranks to give errors at; a layer takes one beyond its own largest as that.",
            show_default=",".join(map(str, DEFAULT_RANKS)),
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Scaling rule to give errors under: standard (α/r), rslora (α/√r) or unscaled (1). May be repeated.",
            show_default=" and ".join(DEFAULT_RULES),
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
    full: Annotated[bool, typer.Option("--full", help="Print the errors of every layer, however many.")] = False,
    json: options.JsonFile = None,
    csv: options.CsvFile = None,
    figure: options.FigureFile = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Report every adapter under the folder PATH, in one row each.")
    ] = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl",
            metavar="FILE",
            help="With --recursive, add each row to FILE as it comes; run again, it goes on where it stopped.",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Threads over the layers; with --recursive, processes over the adapters."
        ),
    ] = 1,
    dask: options.Dask = None,
) -> int:
    """Report what an update holds: each layer's scale, effective rank, rank needed, and error at chosen ranks.

    PATH is a LoRA adapter; with --base, PATH and BASE are two safetensors checkpoints, and the update is their
    difference. The exit code is 1 if some layers could not be read and the others are reported.
    """
    from lowrank_core.cli.verbs import census as census_verb

    one = {"base": base, "rule": rule, "alpha": alpha, "figure": figure}
    census_verb.check_options(recursive=recursive, jsonl=jsonl, workers=workers, dask=dask, **one)
    output.check_outputs(figure, json, csv, jsonl)
    chosen = DEFAULT_RANKS if ranks is None else parse_ranks(ranks)
    if recursive:
        return census_verb.run(path, chosen, full=full, json=json, csv=csv, jsonl=jsonl, workers=workers, dask=dask)
    rules = DEFAULT_RULES if rule is None else tuple(dict.fromkeys(rule))
    with workers_for_layers(workers, dask) as executor, output.progress_bar("layers") as advance:
        report = inspect(path, base, ranks=chosen, rules=rules, alpha=alpha, executor=executor, progress=advance)
    if report.failures and not report.layers:
        name, reason = next(iter(report.failures.items()))
        raise ValueError(
            f"no layer of {str(path)!r} could be read; the first of {len(report.failures)}, {name}: {reason}"
        )
    output.write_report(
        lambda: inspection_tables.inspection(report, full=full),
        [(json, lambda: output.json_text(to_json(report))), (csv, lambda: output.csv_text(to_rows(report)))],
        figure,
        lambda: _draw_inspection(report),
    )
    return SOME_LAYERS_FAILED if report.failures else 0


# The figures' modules load matplotlib, which takes a second: only where something is drawn.
def _draw_demo(figures: "Article") -> "Figure":
    from lowrank_core.cli.demo import figure as demo_figure

    return demo_figure.draw(figures)


def _draw_inspection(report: Inspection) -> "Figure":
    from lowrank_core.cli.reports import inspection_figure

    return inspection_figure.draw(report)


def parse_ranks(text: str) -> tuple[int, ...]:
    """Read ranks separated by commas, in increasing order and each once.

    Parameters
    ----------
    text : str

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        If one is no whole number.

    Examples
    --------
    >>> parse_ranks("8,2,4,4")
    (2, 4, 8)
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ValueError(f"--ranks takes whole numbers separated by commas, such as 2,4,8; got {text!r}.") from None


compression_verbs.add_to(app)
plan_verb.add_to(app)
alpha_verb.add_to(app)
