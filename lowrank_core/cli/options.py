"""Options that several verbs share, each declared once; a group of options is a dataclass of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from lowrank_core.cli.silence import silenced

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write every number as JSON; - prints it instead of tables."),
]
CsvFile = Annotated[
    Path | None,
    typer.Option("--csv", metavar="FILE", help="Write a row for each layer; - prints them instead of tables."),
]
FigureFile = Annotated[
    Path | None, typer.Option("--figure", metavar="FILE", help="Draw the results: .png, .pdf or .svg.")
]
Full = Annotated[bool, typer.Option("--full", help="Print every row of every table, however many.")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors alone: no tables, no progress, no warnings."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads over the layers.", show_default="every core this process may use"),
]
Dask = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Work on the Dask cluster of this scheduler instead.")
]


def parse_count(text: str) -> int:
    """Return a whole number as people write large ones: with k, M, G or B for thousands, millions and billions.

    Examples
    --------
    >>> parse_count("8k"), parse_count("2.5M"), parse_count("1_000")
    (8000, 2500000, 1000)
    """
    factor = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}.get(text[-1:], 1)
    try:
        number = Decimal(text if factor == 1 else text[:-1]) * factor
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number != number.to_integral_value():
        raise typer.BadParameter(f"{text!r} is not a whole number, as 8000, 8k, 2.5M or 1G.")
    return int(number)


def parse_megabytes(text: str) -> float:
    """Return a size in 10⁶ bytes: of a number alone those, of one with k, M or G so many bytes.

    Examples
    --------
    >>> parse_megabytes("20"), parse_megabytes("0.5G"), parse_megabytes("800kB")
    (20.0, 500.0, 0.8)
    """
    size = text.removesuffix("B") if text[-2:-1] in {"k", "M", "G"} else text
    if size[-1:] in {"k", "M", "G"}:
        return parse_count(size) / 1e6
    try:
        return float(size)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size, as 20, 20M or 0.5G.") from None


Parameters = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=parse_count,
        help="Spend at most N parameters (as 2M) on all layers together, where they keep the most variance.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="Variance of a budget: relative (every layer counts alike), absolute (large updates count more) or base "
        "(those large beside their weights, ‖Δ‖²/‖W‖²).",
        show_default="relative",
    ),
]
MaxRank = Annotated[
    int | None, typer.Option(min=1, metavar="R", help="Keep at most R in any layer, whatever another option chooses.")
]
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder or file, in any format.")]
Base = Annotated[Path, typer.Argument(metavar="BASE", help="The checkpoint that the adapter was trained from.")]
_OUT_HELP = (
    "What to write, in the adapter's own format if it is named so; else a kohya file if its name ends in "
    ".safetensors, or a PEFT folder."
)
Out = Annotated[Path, typer.Argument(metavar="OUT", help=_OUT_HELP)]
OutUnlessDryRun = Annotated[
    Path | None,
    typer.Argument(metavar="OUT", help=f"{_OUT_HELP} Not needed with --dry-run.", show_default=False),
]
RULE_HELP = "Scaling rule of the new adapter: standard (α/r) or rslora (α/√r)."
OwnRule = Annotated[str | None, typer.Option(metavar="RULE", help=RULE_HELP, show_default="that of ADAPTER")]
Rule = Annotated[str, typer.Option(metavar="RULE", help=RULE_HELP)]
DTYPE_HELP = "What the factors are stored in: float32, bfloat16, float16 or float64."
BaseRestored = Annotated[
    bool,
    typer.Option(
        "--base-restored",
        help="The base is again as it was before an initialisation (PiSSA and similar) altered it.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report without writing OUT.")]
Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help=DTYPE_HELP, show_default="the finest in the input")]


@dataclass(frozen=True)
class RankChoice:
    """How many components each layer keeps."""

    rank: Annotated[
        str | None,
        typer.Option(
            metavar="R[,R,…]",
            help="Keep R components of each layer, or all that it has; of several ranks, write OUT-rR for each.",
        ),
    ] = None
    variance: Annotated[
        float | None,
        typer.Option(metavar="T", help="Keep the fewest with this fraction of a layer's variance, as 0.95."),
    ] = None
    error: Annotated[
        float | None, typer.Option(metavar="E", help="Keep the fewest with at most this relative error, as 0.1.")
    ] = None
    ratio: Annotated[
        float | None,
        typer.Option(metavar="ρ", help="Keep those with σᵢ ≥ ρσ₁, a fraction of the largest, as 0.05."),
    ] = None
    parameters: Parameters = None
    megabytes: Annotated[
        float | None,
        typer.Option(
            metavar="MB",
            parser=parse_megabytes,
            help="Write a file of at most so many 10⁶ bytes (or as 0.5G), spent as those of --parameters.",
        ),
    ] = None
    objective: Objective = None
    max_rank: MaxRank = None


@dataclass(frozen=True)
class Modules:
    """Which modules are taken."""

    include: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Take only modules whose name, or its end after a dot, matches; * stands for anything. "
            "May be repeated.",
        ),
    ] = field(default_factory=list)
    exclude: Annotated[list[str], typer.Option(metavar="PATTERN", help="Skip modules that match. May be repeated.")] = (
        field(default_factory=list)
    )


@dataclass(frozen=True)
class Pairing:
    """Which tensors of two checkpoints are the same weights."""

    match: Annotated[
        list[str],
        typer.Option(
            metavar="OLD=NEW",
            help="Names of BASE that begin with OLD begin with NEW in the tuned checkpoint. May be repeated.",
            show_default="aligned by what their ends have in common",
        ),
    ] = field(default_factory=list)
    component: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The component of two pipelines of diffusers, as transformer.",
            show_default="all that differ",
        ),
    ] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The same, as the functions take it."""
        return {"match": parse_match(self.match), "component": self.component}


@dataclass(frozen=True)
class Conversion:
    """What converting between formats and bases takes."""

    base: Annotated[
        Path | None,
        typer.Option(metavar="BASE", help="The base model's checkpoint, whose names turn a kohya file's into PEFT's."),
    ] = None
    base_restored: BaseRestored = False
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What a kohya file's keys begin with, made of PEFT's names.",
            show_default="lora_unet",
        ),
    ] = None


@dataclass(frozen=True)
class NewAdapter:
    """How an adapter is written."""

    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Write this format: peft, kohya, diffusers and others.",
            show_default="what OUT's name asks for",
        ),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="α",
            help="α stored in the adapter; the factors are scaled so that the update is right under any.",
            show_default="16",
        ),
    ] = None
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform", help="Pad to one rank r with zeros, with α = r: every reader then applies the scale 1."
        ),
    ] = False
    force: Force = False
    dry_run: DryRun = False


@dataclass(frozen=True)
class Work:
    """Where the work is done."""

    workers: Workers = None
    dask: Dask = None

    def __post_init__(self) -> None:
        """Refuse two places to work in."""
        if self.dask is not None and (self.workers or 1) > 1:
            raise ValueError("--workers and --dask exclude each other: a Dask cluster has its own number of workers.")


@dataclass(frozen=True)
class Reports:
    """What is printed, and which files are written."""

    full: Full = False
    json: JsonFile = None
    csv: CsvFile = None
    figure: FigureFile = None


def examples(*lines: str, after: str = "") -> str:
    """Return examples for the end of a help text, each on a line of its own, and a line after them."""
    # \b keeps the line breaks of what follows it.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines), after])


def ungrouped(verb: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return a verb as typer takes it: each group replaced by its options, and with --quiet."""
    parameters = inspect.signature(verb, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in parameters if is_dataclass(one.annotation)}

    def run(*, quiet: bool = False, **given: Any) -> int | None:
        for name, group in groups.items():
            given[name] = group(**{option.name: given.pop(option.name) for option in fields(group)})
        with silenced() if quiet else nullcontext():
            return verb(**given)

    flat = [option for one in parameters for option in (_options(groups[one.name]) if one.name in groups else [one])]
    # Options by name come in any order, so those without a default need not be first. mypy does not know that a
    # function may have a signature of its own, which inspect.signature returns.
    flat.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet))
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {option.name: option.annotation for option in flat}
    run.__doc__ = verb.__doc__
    return run


def _options(group: type) -> list[inspect.Parameter]:
    annotations = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=_default(option), annotation=annotations[option.name]
        )
        for option in fields(group)
    ]


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def check_out(out: Path | None, *, dry_run: bool) -> None:
    """Check that there is a path to write to, unless nothing is written."""
    if out is None and not dry_run:
        raise ValueError("where to write? Give OUT, or --dry-run to report without writing.")


def parse_ranks(text: str, option: str = "--ranks") -> tuple[int, ...]:
    """Return ranks separated by commas, in increasing order and each once.

    Examples
    --------
    >>> parse_ranks("8,2,4,4")
    (2, 4, 8)
    """
    try:
        return tuple(sorted({parse_count(part.strip()) for part in text.split(",")}))
    except typer.BadParameter:
        raise ValueError(f"{option} takes whole numbers separated by commas, such as 2,4,8; got {text!r}.") from None


def parse_match(pairs: Sequence[str]) -> dict[str, str]:
    """Return beginnings of names with those that replace them.

    Examples
    --------
    >>> parse_match(["model=model.language_model"])
    {'model': 'model.language_model'}
    """
    for pair in pairs:
        if pair.count("=") != 1:
            raise ValueError(f"--match takes OLD=NEW, two beginnings of names, as model=language_model; got {pair!r}.")
    return dict(pair.split("=") for pair in pairs)
