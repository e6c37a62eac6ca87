"""Every verdict must follow its figures: each is fed with figures that flip it."""

from dataclasses import replace

import numpy as np
import pytest

from lowrank_core.cli.demo.experiments import Experiments, Learning
from lowrank_core.cli.demo.verdicts import (
    drops_steadily_and_uses_the_rank,
    facts_error_is_not_steady,
    name_of,
    rank_helps_one_rule_only,
    standard_fades,
    style_is_low_facts_are_high,
    verdicts,
)


def learning(standard: list[float], rslora: list[float]) -> Learning:
    errors = {"standard": np.array(standard), "rslora": np.array(rslora)}
    ranks = 2 ** np.arange(1, len(standard) + 1)
    return Learning("sgd", 1e-3, 1, 1, ranks, np.zeros(len(standard)), errors, errors, errors)


def test_the_numbers_of_the_article_give_the_known_verdicts(results: Experiments) -> None:
    outcomes = [verdict.outcome for verdict in verdicts(results)]
    assert outcomes == ["holds", "holds", "holds", "holds in part", "holds", "fails", "fails"]


def test_verdicts_quote_the_numbers_that_decide(results: Experiments) -> None:
    texts = [verdict.because for verdict in verdicts(results)]
    for text, quoted in zip(
        texts,
        (["99.15%", "28.34%"], ["0.25", "2", "r = 64"], ["0.628 at r = 32", "0.686 at r = 48"], ["3.016", "1.297"]),
        strict=False,
    ):
        assert all(figure in text for figure in quoted)
    best = results.learning[0].errors["standard"].min()
    assert f"best with {best:.3f} at r = 8" in texts[4]


def test_verdicts_change_with_the_numbers(results: Experiments) -> None:
    flat = replace(
        results.facts, captured=np.ones(64), errors={rule: np.linspace(0.9, 0.1, 64) for rule in ("standard", "rslora")}
    )
    outcomes = [verdict.outcome for verdict in verdicts(replace(results, facts=flat))]
    assert outcomes[0] == "holds in part"
    assert outcomes[2] == "fails"
    assert outcomes[3] == "holds"


@pytest.mark.parametrize(
    ("style", "facts", "outcome"),
    [(0.992, 0.28, "holds"), (0.95, 0.28, "holds in part"), (0.992, 0.6, "holds in part"), (0.95, 0.6, "fails")],
)
def test_style_is_low_and_facts_are_high(style: float, facts: float, outcome: str) -> None:
    verdict = style_is_low_facts_are_high(4, style, 8, facts)
    assert verdict.outcome == outcome
    assert f"{style:.2%}" in verdict.because
    assert f"{facts:.2%}" in verdict.because


@pytest.mark.parametrize(
    ("standard", "rslora", "outcome"),
    [(0.25, 2.0, "holds"), (1.0, 8.0, "holds in part"), (0.1, 0.9, "holds in part"), (1.5, 0.5, "fails")],
)
def test_standard_fades(standard: float, rslora: float, outcome: str) -> None:
    assert standard_fades(64, standard, rslora).outcome == outcome


@pytest.mark.parametrize(
    ("errors", "outcome", "quoted"),
    [
        ([0.9, 0.5, 0.6], "holds", "from 0.500 at r = 4 to 0.600 at r = 8"),
        ([0.9, 0.5, 0.4], "fails", "from 0.900 at r = 2 to 0.400 at r = 8"),
        ([0.9, 0.9, 0.4], "fails", "from 0.900 at r = 2 to 0.400 at r = 8"),
    ],
)
def test_facts_error_is_not_steady(errors: list[float], outcome: str, quoted: str) -> None:
    verdict = facts_error_is_not_steady((2, 4, 8), errors)
    assert (verdict.outcome, quoted in verdict.because) == (outcome, True)


@pytest.mark.parametrize(
    ("standard", "rslora", "outcome", "said", "unsaid"),
    [
        ([2.0, 0.7, 0.6], [3.0, 2.0, 1.2], "holds in part", ["never below 1", "above that of α/r", "cannot show"], []),
        ([2.0, 0.5, 0.6], [3.0, 0.9, 0.8], "holds in part", ["above that of α/r"], ["never below 1"]),
        ([2.0, 4.0, 1.5], [3.0, 2.0, 1.2], "holds in part", ["never below 1"], ["above that of α/r"]),
        ([2.0, 0.7, 0.9], [3.0, 2.0, 0.8], "holds", ["below 1"], ["cannot show"]),
        ([2.0, 0.7, 0.9], [3.0, 3.0, 0.8], "fails", ["does not drop from 3.000 at r = 2"], ["cannot show"]),
        ([2.0, 0.7, 0.9], [3.0, 2.0, 2.5], "fails", ["from 2.000 at r = 4 to 2.500 at r = 8"], ["cannot show"]),
    ],
)
def test_drops_steadily_and_uses_the_rank(
    standard: list[float], rslora: list[float], outcome: str, said: list[str], unsaid: list[str]
) -> None:
    verdict = drops_steadily_and_uses_the_rank((2, 4, 8), standard, rslora)
    assert verdict.outcome == outcome
    assert all(text in verdict.because for text in said)
    assert not any(text in verdict.because for text in unsaid)


@pytest.mark.parametrize(
    ("standard", "rslora", "outcome", "said"),
    [
        ([0.9, 0.8, 0.95], [0.9, 0.6, 0.3], "holds", "best with 0.800 at r = 4 and ends with 0.950 at r = 8"),
        ([0.9, 0.8, 0.70], [0.9, 0.6, 0.3], "fails", "α/r improves at every step, from 0.900 at r = 2"),
        ([0.9, 0.95, 0.70], [0.9, 0.6, 0.3], "fails", "α/r improves, though not at every step"),
        ([0.9, 0.8, 0.95], [0.9, 0.6, 0.7], "holds in part", "α/√r is best with 0.600 at r = 4"),
        ([0.9, 0.8, np.inf], [0.9, 0.6, 0.3], "undecided", "diverged"),
        ([0.9, 0.8, 0.9], [0.9, np.inf, 0.3], "undecided", "diverged"),
    ],
)
def test_rank_helps_one_rule_only(standard: list[float], rslora: list[float], outcome: str, said: str) -> None:
    verdict = rank_helps_one_rule_only(learning(standard, rslora))
    assert verdict.outcome == outcome
    assert said in verdict.because


def test_one_rank_decides_nothing() -> None:
    single = (
        facts_error_is_not_steady((4,), [0.5]),
        drops_steadily_and_uses_the_rank((4,), [0.5], [0.4]),
        rank_helps_one_rule_only(learning([0.5], [0.4])),
    )
    assert {verdict.outcome for verdict in single} == {"undecided"}


def test_experiments_are_named_by_optimiser_and_rate(results: Experiments) -> None:
    assert [name_of(experiment) for experiment in results.learning] == [
        "gradient descent at 1e-3",
        "Adam at 2e-3",
        "Adam at 5e-4",
    ]
