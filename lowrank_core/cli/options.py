"""Options that several verbs have, declared once for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Alpha",
    "Base",
    "BaseRestored",
    "CsvFile",
    "Dask",
    "DryRun",
    "Error",
    "Exclude",
    "FigureFile",
    "Force",
    "Full",
    "Include",
    "JsonFile",
    "KohyaPrefix",
    "LayerWorkers",
    "MaxRank",
    "Objective",
    "Parameters",
    "Rank",
    "Ratio",
    "Uniform",
    "Variance",
]

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
Dask = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Work on the Dask cluster of this scheduler instead.")
]
LayerWorkers = Annotated[int, typer.Option(min=1, metavar="N", help="Threads over the layers.")]

Rank = Annotated[
    int | None, typer.Option(min=1, metavar="R", help="Keep R components of each layer, or all that it has.")
]
Variance = Annotated[
    float | None, typer.Option(metavar="T", help="Keep the fewest with this fraction of a layer's variance, as 0.95.")
]
Error = Annotated[
    float | None, typer.Option(metavar="E", help="Keep the fewest with at most this relative error, as 0.1.")
]
Ratio = Annotated[
    float | None,
    typer.Option(metavar="ρ", help="Keep those with σᵢ ≥ ρσ₁, a fraction of the largest, as 0.05."),
]
Parameters = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Spend at most N parameters on all layers together, where they keep the most variance."
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="Variance of a budget: relative (every layer's share alike) or absolute (large updates count more).",
        show_default="relative",
    ),
]
MaxRank = Annotated[
    int | None, typer.Option(min=1, metavar="R", help="Keep R at most in any layer, whatever another option says.")
]

Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Take only modules whose name, or its end after a dot, matches; * stands for anything. May be repeated.",
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Leave out modules that match. May be repeated.")
]
Alpha = Annotated[
    float | None,
    typer.Option(
        metavar="α",
        help="α that the adapter holds; the factors are scaled so that the update is right under any.",
        show_default="16",
    ),
]
Uniform = Annotated[
    bool,
    typer.Option("--uniform", help="Pad to one rank r with zeros, with α = r: every reader then applies the scale 1."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report without writing OUT.")]
Full = Annotated[bool, typer.Option("--full", help="Print the size of every layer and all that is left out.")]
Base = Annotated[
    Path | None,
    typer.Option(metavar="BASE", help="The base model's checkpoint, whose names turn a kohya file's into PEFT's."),
]
KohyaPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="What a kohya file's keys begin with, made of PEFT's names.", show_default="lora_unet"
    ),
]
BaseRestored = Annotated[
    bool,
    typer.Option(
        "--base-restored",
        help="The base is again as it was before an initialisation (PiSSA and its kin) altered it.",
    ),
]
