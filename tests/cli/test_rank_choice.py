"""Which rank the options choose: the library's own answers, bounded, and refused where they contradict each other."""

import pickle

import numpy as np
import pytest

from lowrank_core import Spectrum, rank_for_error, rank_for_ratio, rank_for_variance, spectrum
from lowrank_core.cli.options import RankChoice
from lowrank_core.cli.rank_choice import choose_one_rank, choose_rank
from lowrank_core.models.operations.rank_choice import AboveNoise, Budget

RULES = {"variance": rank_for_variance, "error": rank_for_error, "ratio": rank_for_ratio}


@pytest.fixture
def falling() -> Spectrum:
    """Falling values, on which the three rules disagree at the thresholds that are tried here."""
    return spectrum(np.diag(np.geomspace(1.0, 0.2, 12)))


def test_a_number_is_itself_and_nothing_is_no_choice() -> None:
    assert choose_rank(RankChoice(rank="7")) == 7
    assert choose_rank(RankChoice()) is None
    assert choose_rank(RankChoice(), above_noise=False) is None


@pytest.mark.parametrize("value", [0.3, 0.4])
def test_each_option_follows_its_own_rule_in_another_process_too(falling: Spectrum, value: float) -> None:
    ranks = {}
    for name, rule in RULES.items():
        chosen = pickle.loads(pickle.dumps(choose_rank(RankChoice(**{name: value}))))
        ranks[name] = chosen(falling)
        assert ranks[name] == rule(falling, value)
    assert len(set(ranks.values())) == 3


def test_budgets_and_noise_are_plain_values() -> None:
    assert choose_rank(RankChoice(parameters=100)) == Budget(parameters=100)
    choice = RankChoice(parameters=100, objective="absolute", max_rank=3)
    assert choose_rank(choice) == Budget(parameters=100, max_rank=3, objective="absolute")
    choice = RankChoice(megabytes=2.5, objective="base")
    assert choose_rank(choice) == Budget(megabytes=2.5, objective="base")
    assert choose_rank(RankChoice(), above_noise=True) == AboveNoise()
    assert choose_rank(RankChoice(max_rank=5), above_noise=True, sides=2) == AboveNoise(2, 5)


def test_the_largest_rank_bounds_a_rule_from_above_alone(falling: Spectrum) -> None:
    for most in range(1, 13):
        chosen = choose_rank(RankChoice(variance=0.99, max_rank=most))
        assert chosen(falling) == min(most, rank_for_variance(falling, 0.99))


def test_both_ends_of_a_fraction_are_taken(falling: Spectrum) -> None:
    assert choose_rank(RankChoice(error=0.0))(falling) == 12
    assert choose_rank(RankChoice(error=1.0))(falling) == 1


@pytest.mark.parametrize(
    ("choice", "noise", "message"),
    [
        ({"rank": "4", "variance": 0.9}, {}, "--rank and --variance exclude each other"),
        ({"variance": 0.9, "error": 0.1, "ratio": 0.1}, {}, "--variance, --error and --ratio exclude each other"),
        ({"error": 0.0, "ratio": 0.0}, {}, "--error and --ratio exclude each other"),
        ({"rank": "4", "max_rank": 8}, {}, "for a fixed rank, give --rank alone"),
        ({"max_rank": 8}, {}, "--parameters or --megabytes chooses, and none of them is given"),
        ({"max_rank": 8}, {"above_noise": False}, "--megabytes or --above-noise chooses, and none of them is given"),
        ({"rank": "4", "parameters": 100}, {}, "--rank and --parameters exclude each other"),
        ({"parameters": 100, "megabytes": 1.0}, {}, "--parameters and --megabytes exclude each other"),
        ({"parameters": 100}, {"above_noise": True}, "--parameters and --above-noise exclude each other"),
        ({"objective": "absolute"}, {}, "--objective belongs to --parameters or --megabytes, which is not given"),
        (
            {"variance": 0.9},
            {"above_noise": False, "sides": 2},
            "--sides belongs to --above-noise, which is not given",
        ),
        ({"variance": 95.0}, {}, "--variance is a fraction between 0 and 1; got 95"),
        ({"error": -0.1}, {}, "--error is a fraction between 0 and 1; got -0.1"),
        ({"ratio": float("nan")}, {}, "--ratio is a fraction between 0 and 1; got nan"),
    ],
)
def test_what_contradicts_itself_is_refused(
    choice: dict[str, float | str], noise: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rank(RankChoice(**choice), **noise)


def test_several_ranks_are_each_once_and_in_order() -> None:
    assert choose_rank(RankChoice(rank="16,4,8,4")) == (4, 8, 16)
    assert choose_one_rank(RankChoice(rank="16")) == 16
    with pytest.raises(ValueError, match="--rank is one number here; got 4,8"):
        choose_one_rank(RankChoice(rank="8,4"))


@pytest.mark.parametrize(("text", "message"), [("0", "at least 1"), ("-1,4", "at least 1"), ("four", "whole numbers")])
def test_ranks_that_are_not_ranks_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"--rank .*{message}"):
        choose_rank(RankChoice(rank=text))
