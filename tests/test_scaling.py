"""Scaling rules: their figures, their names, and refused arguments."""

import re

import numpy as np
import pytest

from lowrank_core import (
    equivalent_alpha,
    error_sweep,
    learning_gain,
    power_rule,
    rslora,
    scaling_rule,
    spectrum,
    standard,
    unscaled,
)
from lowrank_core.scaling import rule_name, scalings

RANKS = [1, 4, 8, 16, 32, 64]


def test_the_articles_scalings():
    assert standard(16, RANKS).tolist() == [16, 4, 2, 1, 0.5, 0.25]
    assert rslora(16, RANKS).round(4).tolist() == [16, 8, 5.6569, 4, 2.8284, 2]
    assert unscaled(16, RANKS).tolist() == [1] * 6


@pytest.mark.parametrize("rule", [standard, rslora, unscaled, power_rule(0), power_rule(-2), power_rule(1.5)])
def test_every_rule_is_0_at_rank_0(rule):
    assert rule(16, 0) == 0
    assert rule([1.0, 2.0], [0, 1])[0] == 0


@pytest.mark.parametrize("rule", [standard, rslora, unscaled, power_rule(-0.25)])
def test_scalars_give_scalars_and_arrays_broadcast(rule):
    assert isinstance(rule(16, 4), np.float64)
    assert rule(16, 4).shape == ()
    assert rule(np.ones((3, 1)), [1, 2]).shape == (3, 2)
    assert rule([[16.0]], 4).dtype == np.float64
    assert rule(16, []).shape == (0,)


def test_rules_by_name():
    for name, rule in (("standard", standard), ("rslora", rslora), ("unscaled", unscaled)):
        assert scaling_rule(name) is rule
        assert rule_name(name) == rule_name(rule) == name
    own = power_rule(-0.25)
    assert scaling_rule(own) is own
    assert own.__name__ == "power_rule(-0.25)"


@pytest.mark.parametrize("name", ["rsLoRA", "", "lora", None, 3])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    for ask in (scaling_rule, lambda r: learning_gain(16, 8, r), lambda r: equivalent_alpha(16, 8, r)):
        with pytest.raises(ValueError, match=re.escape(repr(name)) + r".*rslora, standard, unscaled.*power_rule"):
            ask(name)


@pytest.mark.parametrize("power", [np.nan, np.inf, -np.inf])
def test_a_power_must_be_finite(power):
    with pytest.raises(ValueError, match=r"power must be finite; got .*alpha/r"):
        power_rule(power)


def test_equivalent_alphas_by_hand():
    assert equivalent_alpha(16, 64, "rslora", to_rule="standard") == 128
    assert equivalent_alpha(16, 64, "standard", to_rule="rslora") == 2
    assert equivalent_alpha(16, 8, "standard", to_rank=64) == 128
    assert equivalent_alpha(16, 16, "rslora", to_rank=64) == 32
    assert equivalent_alpha(16, [8, 32], standard, to_rank=[32, 8]).tolist() == [64, 4]
    assert equivalent_alpha([8, 16], 8, "standard", to_rank=[[16], [32]]).shape == (2, 2)


def test_a_rule_without_alpha_has_no_equivalent_unless_the_scaling_is_its_own():
    assert equivalent_alpha(16, 16, "standard", to_rule="unscaled") == 16
    assert equivalent_alpha(16, 4, "unscaled", to_rule="standard") == 4
    with pytest.raises(ValueError, match=r"no alpha gives the scaling 2.0 under the rule 'unscaled'.*proportional"):
        equivalent_alpha(16, 8, "standard", to_rule="unscaled")
    with pytest.raises(ValueError, match=r"not proportional to alpha"):
        equivalent_alpha(16, 8, "standard", to_rule=lambda alpha, rank: (alpha + 1) / rank)


def test_a_rule_may_miss_the_scaling_by_a_part_in_1e12():
    def off_by(part):
        # α^(1 + δ) is off by δ ln 16 at α = 16.
        power = 1 + part / np.log(16)
        return lambda alpha, rank: np.asarray(alpha) ** power / rank

    assert equivalent_alpha(16, 1, "standard", to_rule=off_by(0.5e-12)) == 16
    with pytest.raises(ValueError, match=r"not proportional to alpha"):
        equivalent_alpha(16, 1, "standard", to_rule=off_by(1.5e-12))


def test_rank_0_has_no_equivalent():
    for ranks in ({"rank": 0}, {"rank": [4, 0]}, {"rank": 4, "to_rank": 0}, {"rank": 0, "to_rank": 4}):
        with pytest.raises(ValueError, match=r"rank 0 has no scaling to keep"):
            equivalent_alpha(16, rule="standard", **ranks)


def test_learning_gains():
    assert learning_gain(16, [8, 64], "standard").tolist() == [32, 4]
    assert learning_gain(16, [16, 64], "rslora").tolist() == [256, 256]
    assert learning_gain(16, [0, 8], "unscaled").tolist() == [0, 8]
    assert learning_gain(2, [3, 5], power_rule(1)).tolist() == [108, 500]


def test_a_users_rule_receives_arrays_and_never_rank_0():
    calls = []

    def own(alpha, rank):
        calls.append((alpha, rank))
        return alpha / rank

    assert learning_gain(16, [0, 8], own).tolist() == [0, 32]
    s = spectrum(np.eye(3))
    sweep = error_sweep(s, [0, 2], rules=[own], alpha=[4.0, 8.0])
    assert sweep.scalings.tolist() == [[[0, 2], [0, 4]]]
    assert sweep.rules == ("own",)
    for alpha, rank in calls:
        assert isinstance(alpha, np.ndarray)
        assert np.all(np.asarray(rank) > 0)


def test_scalings_are_tables_of_rules_alphas_and_ranks():
    ranks, alphas = np.array([0, 1, 4]), np.array([2.0, 16.0])
    table = scalings(["standard", rslora], alphas, ranks)
    assert table.tolist() == [[[0, 2, 0.5], [0, 16, 4]], [[0, 2, 1], [0, 16, 8]]]
    assert scalings(["unscaled"], np.array(16.0), ranks).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("rules", ["standard", [], ()])
def test_rules_must_be_a_sequence(rules):
    with pytest.raises(ValueError, match=r"rules must be a sequence such as \('standard', 'rslora'\); got"):
        error_sweep(spectrum(np.eye(2)), [1], rules=rules)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_rule_must_give_finite_numbers(value):
    def broken(alpha, rank):
        return np.full(np.broadcast_shapes(np.shape(alpha), np.shape(rank)), value)

    with pytest.raises(ValueError, match=r"rule 'broken' gives scalings that are not finite"):
        error_sweep(spectrum(np.eye(2)), [1], rules=[broken])
