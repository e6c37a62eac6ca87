"""What becomes of the scale when the rank or the rule changes: the cases, and their table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from lowrank_core import equivalent_alpha, learning_gain, scaling_rule
from lowrank_core.cli.tables import note, table
from lowrank_core.cli.texts import RULE_LABELS


@dataclass(frozen=True)
class Case:
    """A combination of rule, rank and alpha, and the scale that follows."""

    what: str
    rule: str
    rank: int
    alpha: float
    scaling: float
    learning_gain: float
    # The scales that two kinds of readers apply: those that know the rule, and those that know α/r alone.
    applied_with_the_rule: float
    applied_as_standard: float


def cases(alpha: float, rank: int, rule: str, *, to_rank: int, to_rule: str) -> list[Case]:
    """Return the present case, and the new ones under α unchanged and under those that keep γ and γ²r."""
    now = _case("now", rule, rank, alpha)
    if (to_rank, to_rule) == (rank, rule):
        return [now]
    kept = float(equivalent_alpha(alpha, rank, rule, to_rank=to_rank, to_rule=to_rule))
    # γ'²r' = γ²r, so that the first step keeps its size: γ' = γ √(r / r').
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


def alpha(cases: Sequence[Case]) -> Iterator[RenderableType]:
    """Yield the table of cases, and what to make of it."""
    rows = table("", "rule", "r", "α", "γ", "γ²r", "PEFT,\nvLLM", "kohya,\nllama.cpp", names=2)
    for case in cases:
        numbers = (case.alpha, case.scaling, case.learning_gain, case.applied_with_the_rule, case.applied_as_standard)
        rows.add_row(case.what, RULE_LABELS[case.rule], str(case.rank), *(f"{number:.6g}" for number in numbers))
    yield rows
    yield note(
        "The last two columns: the scale that readers apply. PEFT and vLLM know both rules; readers of kohya's files "
        "and llama.cpp take α/r for every adapter."
    )
    if any(case.applied_with_the_rule != case.applied_as_standard for case in cases):
        yield Text("Readers disagree about α/√r: for those of α/r, store α·√r, or convert to the rule standard.")
    yield note("For factors that exist already, keep γ. For factors to be trained: γ²r sets the first step's size.")
