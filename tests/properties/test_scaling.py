"""Identities of the scaling rules."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowrank_core import equivalent_alpha, learning_gain, power_rule, rslora, scaling_rule, standard, unscaled

alphas = st.floats(1e-6, 1e6)
ranks = st.integers(1, 4096)
proportional = st.sampled_from(["standard", "rslora"]) | st.floats(-2, 2).map(power_rule)
CLOSE = 4 * 2.0**-52


@given(alphas, ranks)
def test_rules_by_their_formulas(alpha, rank):
    assert standard(alpha, rank) == alpha / rank
    assert rslora(alpha, rank) == alpha / np.sqrt(rank)
    assert unscaled(alpha, rank) == 1


@given(alphas, ranks)
def test_rslora_lies_between_none_and_standard(alpha, rank):
    # α/√r is the geometric mean of α and α/r.
    assert rslora(alpha, rank) ** 2 == pytest.approx(alpha * standard(alpha, rank), rel=CLOSE)


@given(alphas, ranks, st.floats(-2, 2), st.floats(-2, 2))
def test_powers_add(alpha, rank, first, second):
    product = power_rule(first)(alpha, rank) * power_rule(second)(1.0, rank)
    # An exponent's rounding is multiplied by ln r, which is under 9.
    assert power_rule(first + second)(alpha, rank) == pytest.approx(product, rel=10 * CLOSE)


@given(alphas, ranks)
def test_power_rules_contain_the_others(alpha, rank):
    assert power_rule(-1)(alpha, rank) == pytest.approx(standard(alpha, rank), rel=CLOSE)
    assert power_rule(-0.5)(alpha, rank) == pytest.approx(rslora(alpha, rank), rel=CLOSE)
    assert power_rule(0)(alpha, rank) == alpha


@given(proportional, alphas, ranks, st.integers(1, 4096), proportional)
def test_equivalent_alpha_keeps_the_scaling_and_comes_back(rule, alpha, rank, to_rank, to_rule):
    there = equivalent_alpha(alpha, rank, rule, to_rank=to_rank, to_rule=to_rule)
    kept = scaling_rule(rule)(alpha, rank)
    assert scaling_rule(to_rule)(there, to_rank) == pytest.approx(kept, rel=CLOSE)
    back = equivalent_alpha(there, to_rank, to_rule, to_rank=rank, to_rule=rule)
    assert back == pytest.approx(alpha, rel=2 * CLOSE)


@given(alphas, ranks)
def test_the_paper_turns_rslora_into_standard_by_the_root_of_the_rank(alpha, rank):
    result = equivalent_alpha(alpha, rank, "rslora", to_rule="standard")
    assert result == pytest.approx(alpha * np.sqrt(rank), rel=CLOSE)


@given(alphas, ranks, proportional)
def test_the_same_rank_and_rule_keep_alpha(alpha, rank, rule):
    assert equivalent_alpha(alpha, rank, rule) == pytest.approx(alpha, rel=CLOSE)


@given(alphas, ranks)
def test_gains_of_one_step(alpha, rank):
    assert learning_gain(alpha, rank, "standard") == pytest.approx(alpha**2 / rank, rel=CLOSE)
    assert learning_gain(alpha, rank, "rslora") == pytest.approx(alpha**2, rel=CLOSE)
    assert learning_gain(alpha, rank, "unscaled") == rank


@given(st.lists(alphas, min_size=1, max_size=4), st.lists(st.integers(0, 64), min_size=1, max_size=4), proportional)
@example([1.0], [48], power_rule(2.0**-7))  # NumPy's ** of one number and of an array differ in the last bit
def test_rules_of_arrays_are_those_of_their_entries(alpha, rank, rule):
    table = scaling_rule(rule)(np.array(alpha)[:, np.newaxis], rank)
    gains = learning_gain(np.array(alpha)[:, np.newaxis], rank, rule)
    assert table.shape == gains.shape == (len(alpha), len(rank))
    for i, a in enumerate(alpha):
        for j, r in enumerate(rank):
            assert table[i, j] == scaling_rule(rule)(a, r)
            assert gains[i, j] == learning_gain(a, r, rule)
            if r == 0:
                assert table[i, j] == gains[i, j] == 0
