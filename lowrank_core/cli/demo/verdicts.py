"""What the article claims, and whether the numbers of an experiment support it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core.cli.demo.experiments import STYLE_RANK, Experiments, Learning

Outcome = Literal["holds", "holds in part", "fails", "undecided"]

_ALMOST_ALL = 0.99
_A_MINORITY = 0.5
_ADAPTER_RANK = 8


@dataclass(frozen=True)
class Verdict:
    """A claim, whether it holds, and the numbers that decide."""

    claim: str
    outcome: Outcome
    because: str


def verdicts(results: Experiments) -> tuple[Verdict, ...]:
    """Return a verdict on every claim of the article."""
    settings, facts = results.settings, results.facts
    top = {rule: float(gamma[-1]) for rule, gamma in results.scalings.gamma.items()}
    style_rank, facts_rank = min(STYLE_RANK, settings.size), min(_ADAPTER_RANK, settings.size)
    standard, rslora = (facts.at(facts.errors[rule], settings.ranks) for rule in ("standard", "rslora"))
    return (
        style_is_low_facts_are_high(
            style_rank, results.style.captured[style_rank - 1], facts_rank, facts.captured[facts_rank - 1]
        ),
        standard_fades(int(results.scalings.ranks[-1]), top["standard"], top["rslora"]),
        facts_error_is_not_steady(settings.ranks, standard),
        drops_steadily_and_uses_the_rank(settings.ranks, standard, rslora),
        *(rank_helps_one_rule_only(learning) for learning in results.learning),
    )


def style_is_low_facts_are_high(style_rank: int, style: float, facts_rank: int, facts: float) -> Verdict:
    """Judge the spectra: a small rank captures the style update, and a usual one does not capture the facts update."""
    keeps, loses = style > _ALMOST_ALL, facts < _A_MINORITY
    return Verdict(
        claim=f"A style update is low-rank, a facts update is not: rank {style_rank} captures over {_ALMOST_ALL:.0%} "
        f"of the one, rank {facts_rank} under {_A_MINORITY:.0%} of the other.",
        outcome=_outcome(keeps, loses),
        because=f"Rank {style_rank} captures {style:.2%} of the style update, rank {facts_rank} captures {facts:.2%} "
        "of the facts.",
    )


def standard_fades(rank: int, standard: float, rslora: float) -> Verdict:
    """Judge the scalings at the largest rank: below 1 under α/r, not under α/√r."""
    fades, stays = standard < 1, rslora >= 1
    return Verdict(
        claim="α/r fades as the rank grows (γ below 1), α/√r stays meaningful (γ of 1 or more).",
        outcome=_outcome(fades, stays),
        because=f"At r = {rank}, γ is {standard:.4g} under α/r and {rslora:.4g} under α/√r.",
    )


def facts_error_is_not_steady(ranks: Sequence[int], standard: ArrayLike) -> Verdict:
    """Judge the facts update truncated and scaled by α/r: somewhere a larger rank is worse."""
    errors = np.asarray(standard, dtype=np.float64)
    claim = "With α/r the error of the facts update does not improve steadily."
    if len(ranks) < 2:
        return _one_rank(claim, ranks)
    rises = np.flatnonzero(np.diff(errors) > 0)
    if not rises.size:
        return Verdict(claim, "fails", f"It falls at every step, {_from_to(ranks, errors)}.")
    first = int(rises[0])
    return Verdict(claim, "holds", f"It rises from {_at(ranks, errors, first)} to {_at(ranks, errors, first + 1)}.")


def drops_steadily_and_uses_the_rank(ranks: Sequence[int], standard: ArrayLike, rslora: ArrayLike) -> Verdict:
    """Judge the facts update truncated and scaled by α/√r: its error drops steadily, to a useful size."""
    under, over = np.asarray(standard, dtype=np.float64), np.asarray(rslora, dtype=np.float64)
    claim = "With α/√r the error of the facts update drops steadily, so α/√r uses the rank."
    if len(ranks) < 2:
        return _one_rank(claim, ranks)
    if not _falls(over):
        worse = int(np.flatnonzero(np.diff(over) >= 0)[0])
        return Verdict(
            claim,
            "fails",
            f"It does not drop from {_at(ranks, over, worse)} to {_at(ranks, over, worse + 1)}.",
        )
    drop = f"It drops at every step, {_from_to(ranks, over)}"
    useless = bool(np.all(over >= 1))
    beaten = bool(np.all(over > under))
    if not (useless or beaten):
        return Verdict(claim, "holds", f"{drop}, and is below 1 and below that of α/r at some of them.")
    faults = [
        *(["it is never below 1, the error of no adapter at all"] if useless else []),
        *(["it is above that of α/r at every rank"] if beaten else []),
    ]
    return Verdict(
        claim,
        "holds in part",
        f"{drop}, but {', and '.join(faults)}. SVD factors already have the right size, so any γ ≠ 1 is pure error: "
        "this experiment cannot show what it concludes.",
    )


def rank_helps_one_rule_only(learning: Learning) -> Verdict:
    """Judge the conclusion on one learning experiment: α/r gets worse with rank, α/√r better at every step."""
    standard, rslora = learning.errors["standard"], learning.errors["rslora"]
    ranks = [int(rank) for rank in learning.ranks]
    claim = f"Raising the rank helps only with α/√r: learning, {name_of(learning)}."
    if len(ranks) < 2:
        return _one_rank(claim, ranks)
    if not (np.all(np.isfinite(standard)) and np.all(np.isfinite(rslora))):
        return Verdict(claim, "undecided", "Some runs diverged: the rate is too high for this α.")
    worsens = int(np.argmin(standard)) < len(ranks) - 1
    outcome: Outcome = "fails" if not worsens else "holds" if _falls(rslora) else "holds in part"
    return Verdict(claim, outcome, f"{_course('α/r', ranks, standard)}; {_course('α/√r', ranks, rslora)}.")


def name_of(learning: Learning) -> str:
    """Return an experiment's name: its optimiser and rate."""
    names = {"sgd": "gradient descent", "adam": "Adam"}
    return f"{names[learning.optimizer]} at {rate_of(learning)}"


def rate_of(learning: Learning) -> str:
    """Return a learning rate as 2e-3."""
    mantissa, exponent = f"{learning.learning_rate:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _course(rule: str, ranks: Sequence[int], errors: NDArray[np.float64]) -> str:
    if _falls(errors):
        return f"{rule} improves at every step, {_from_to(ranks, errors)}"
    lowest = int(np.argmin(errors))
    if lowest == len(ranks) - 1:
        return f"{rule} improves, though not at every step, {_from_to(ranks, errors)}"
    return f"{rule} is best with {_at(ranks, errors, lowest)} and ends with {_at(ranks, errors, -1)}"


def _falls(errors: NDArray[np.float64]) -> bool:
    return bool(np.all(np.diff(errors) < 0))


def _outcome(first: bool, second: bool) -> Outcome:
    if first and second:
        return "holds"
    return "holds in part" if first or second else "fails"


def _one_rank(claim: str, ranks: Sequence[int]) -> Verdict:
    return Verdict(claim, "undecided", f"With {len(ranks)} rank there is nothing to compare: give two or more.")


def _from_to(ranks: Sequence[int], errors: NDArray[np.float64]) -> str:
    return f"from {_at(ranks, errors, 0)} to {_at(ranks, errors, -1)}"


def _at(ranks: Sequence[int], errors: NDArray[np.float64], index: int) -> str:
    return f"{errors[index]:.3f} at r = {ranks[index]}"
