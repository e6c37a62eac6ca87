"""The verb ``lowrank alpha``: what becomes of the scale when the rank or the rule changes."""

# No deferred annotations here: typer reads the types of the options from the functions themselves.

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer
from rich.console import RenderableType
from rich.text import Text

from lowrank_core import equivalent_alpha, learning_gain, scaling_rule
from lowrank_core.cli import options, output
from lowrank_core.cli.tables import RULE_LABELS, note, table

__all__ = ["add_to"]

# \b keeps the line breaks of what follows it.
EXAMPLES = (
    "\b\n"
    "Examples:\n"
    "  lowrank alpha --rank 8 --alpha 16 --to-rank 64\n"
    "  lowrank alpha --rank 8 --alpha 16 --to-rank 64 --to-rule rslora\n"
)


class Case(NamedTuple):
    """One combination of rule, rank and alpha, and what follows from it."""

    what: str
    rule: str
    rank: int
    alpha: float
    scaling: float
    learning_gain: float
    # What the factors are multiplied with by those who know the rule, and by those who take α/r for every adapter.
    applied_with_the_rule: float
    applied_as_standard: float


def add_to(app: typer.Typer) -> None:
    """Give a program this verb."""
    app.command("alpha", short_help="The alpha that keeps the scale at another rank or rule.", epilog=EXAMPLES)(_alpha)


def _alpha(
    *,
    rank: Annotated[int, typer.Option(min=1, metavar="R", help="Rank now.")],
    alpha: Annotated[float, typer.Option(metavar="α", help="α now.")],
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="Scaling rule now: standard (α/r) or rslora (α/√r).")
    ] = "standard",
    to_rank: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Rank to come.", show_default="as it is")
    ] = None,
    to_rule: Annotated[
        str | None, typer.Option(metavar="RULE", help="Scaling rule to come.", show_default="as it is")
    ] = None,
    json: options.JsonFile = None,
) -> None:
    """Show what becomes of the scale γ when the rank or the rule changes, and the α that keeps it.

    γ is what the product B·A is multiplied with; γ²r is what one step of gradient descent moves the update by.
    """
    output.check_outputs(None, json)
    cases = _cases(rank, alpha, rule, rank if to_rank is None else to_rank, rule if to_rule is None else to_rule)
    output.write_report(
        lambda: _tables(cases), [(json, lambda: output.json_text({"cases": [case._asdict() for case in cases]}))]
    )


def _cases(rank: int, alpha: float, rule: str, to_rank: int, to_rule: str) -> list[Case]:
    now = _case("now", rule, rank, alpha)
    if (to_rank, to_rule) == (rank, rule):
        return [now]
    kept = float(equivalent_alpha(alpha, rank, rule, to_rank=to_rank, to_rule=to_rule))
    # α that makes γ²r, and with it the first step, what it is now: γ' = γ √(r / r').
    gain = kept * (rank / to_rank) ** 0.5
    return [
        now,
        _case("α as it is", to_rule, to_rank, alpha),
        _case("α that keeps γ", to_rule, to_rank, kept),
        _case("α that keeps γ²r", to_rule, to_rank, gain),
    ]


def _case(what: str, rule: str, rank: int, alpha: float) -> Case:
    scaling = float(scaling_rule(rule)(alpha, rank))
    return Case(
        what=what,
        rule=rule,
        rank=rank,
        alpha=float(alpha),
        scaling=scaling,
        learning_gain=float(learning_gain(alpha, rank, rule)),
        applied_with_the_rule=scaling,
        applied_as_standard=float(scaling_rule("standard")(alpha, rank)),
    )


def _tables(cases: list[Case]) -> Iterator[RenderableType]:
    rows = table("", "rule", "r", "α", "γ", "γ²r", "PEFT,\nvLLM", "kohya,\nllama.cpp", names=2)
    for case in cases:
        figures = (case.alpha, case.scaling, case.learning_gain, case.applied_with_the_rule, case.applied_as_standard)
        rows.add_row(case.what, RULE_LABELS[case.rule], str(case.rank), *(f"{figure:.6g}" for figure in figures))
    yield rows
    yield note(
        "The last two columns: the scale that readers apply. PEFT and vLLM know both rules; readers of kohya's files "
        "and llama.cpp take α/r for every adapter."
    )
    if any(case.applied_with_the_rule != case.applied_as_standard for case in cases):
        yield Text("Readers disagree about α/√r: for those of α/r, store α·√r, or convert to the rule standard.")
    yield note("The factors are given: keep γ. They are to be learned: γ²r is the first step of gradient descent.")
