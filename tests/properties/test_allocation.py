"""Theorems on allocations."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from lowrank_core import allocate_ranks, variance_captured
from lowrank_core.testing import spectra
from tests import oracles

objectives = st.sampled_from(["relative", "absolute"])
regular = spectra(max_side=4, kinds=["ordinary", "repeated", "clustered", "deficient"])
layer_sets = st.lists(regular, min_size=1, max_size=4).map(lambda drawn: {str(i): s for i, s in enumerate(drawn)})
anything = st.lists(spectra(max_side=4), min_size=1, max_size=4).map(lambda drawn: dict(enumerate(drawn)))


def cost(layers):
    return [sum(s.shape) for s in layers.values()]


@given(layer_sets, st.integers(8, 100), objectives)
def test_no_allocation_within_the_budget_captures_more_than_the_bound(layers, budget, objective):
    assume(budget >= min(cost(layers)))
    allocation = allocate_ranks(layers, parameters=budget, objective=objective)
    parameters, kept = oracles.every_allocation(layers, objective)
    best = kept[parameters <= budget].max()
    assert allocation.parameters == np.dot(list(allocation.ranks.values()), cost(layers)) <= budget
    assert allocation.variance - 1e-14 <= best <= allocation.upper_bound + 1e-14
    if len(set(cost(layers))) == 1:
        assert allocation.variance >= best - 1e-14


@given(anything, st.integers(8, 60), st.integers(0, 20), objectives)
def test_a_larger_budget_captures_no_less(layers, budget, more, objective):
    assume(budget >= max(cost(layers)))
    small, large = (allocate_ranks(layers, parameters=b, objective=objective) for b in (budget, budget + more))
    assert large.variance >= small.variance - 1e-15


@given(anything, st.floats(0.0, 1.0), objectives)
def test_a_variance_is_met(layers, target, objective):
    allocation = allocate_ranks(layers, variance=target, objective=objective)
    assert allocation.variance >= target - 1e-12
    assert allocation.upper_bound >= allocation.variance
    for name, rank in allocation.ranks.items():
        assert 0 <= rank <= np.count_nonzero(layers[name].values)


@given(layer_sets, st.floats(0.0, 1.0))
def test_variance_is_the_mean_of_the_layers_fractions(layers, target):
    allocation = allocate_ranks(layers, variance=target)
    mean = np.mean([variance_captured(layers[name], rank) for name, rank in allocation.ranks.items()])
    assert abs(allocation.variance - mean) <= 1e-14


@given(layer_sets, st.integers(8, 100), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_does_not_change_the_variance_captured(layers, budget, shuffler):
    assume(budget >= min(cost(layers)))
    names = list(layers)
    shuffler.shuffle(names)
    allocation = allocate_ranks({name: layers[name] for name in names}, parameters=budget)
    assert list(allocation.ranks) == names
    if len(set(cost(layers))) == 1:
        assert abs(allocation.variance - allocate_ranks(layers, parameters=budget).variance) <= 1e-14
