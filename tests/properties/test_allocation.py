"""Theorems on allocations of a budget."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from lowrank_core import allocate_ranks, variance_captured
from lowrank_core.testing import spectra
from tests import oracles

objectives = st.sampled_from(["relative", "absolute"])
regular = spectra(max_side=4, kinds=["ordinary", "repeated", "clustered", "deficient"])
layers = st.lists(regular, min_size=1, max_size=4).map(lambda drawn: {str(i): of for i, of in enumerate(drawn)})
anything = st.lists(spectra(max_side=4), min_size=1, max_size=4).map(lambda drawn: dict(enumerate(drawn)))


def cost(spectra_of):
    return [sum(of.shape) for of in spectra_of.values()]


@given(layers, st.integers(8, 100), objectives)
def test_nothing_keeps_more_than_the_bound_within_the_budget(of, budget, objective):
    assume(budget >= min(cost(of)))
    found = allocate_ranks(of, parameters=budget, objective=objective)
    parameters, kept = oracles.every_allocation(of, objective)
    best = kept[parameters <= budget].max()
    assert found.parameters == np.dot(list(found.ranks.values()), cost(of)) <= budget
    assert found.variance - 1e-14 <= best <= found.upper_bound + 1e-14
    if len(set(cost(of))) == 1:
        assert found.variance >= best - 1e-14


@given(anything, st.integers(8, 60), st.integers(0, 20), objectives)
def test_more_budget_keeps_no_less(of, budget, more, objective):
    assume(budget >= max(cost(of)))
    small, large = (allocate_ranks(of, parameters=b, objective=objective) for b in (budget, budget + more))
    assert large.variance >= small.variance - 1e-15


@given(anything, st.floats(0.0, 1.0), objectives)
def test_a_variance_is_met(of, target, objective):
    found = allocate_ranks(of, variance=target, objective=objective)
    assert found.variance >= target - 1e-12
    assert found.upper_bound >= found.variance
    for name, rank in found.ranks.items():
        assert 0 <= rank <= np.count_nonzero(of[name].values)


@given(layers, st.floats(0.0, 1.0))
def test_variance_is_the_mean_of_what_the_layers_keep(of, target):
    found = allocate_ranks(of, variance=target)
    mean = np.mean([variance_captured(of[name], rank) for name, rank in found.ranks.items()])
    assert abs(found.variance - mean) <= 1e-14


@given(layers, st.integers(8, 100), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_does_not_change_what_is_kept(of, budget, shuffler):
    assume(budget >= min(cost(of)))
    names = list(of)
    shuffler.shuffle(names)
    found = allocate_ranks({name: of[name] for name in names}, parameters=budget)
    assert list(found.ranks) == names
    if len(set(cost(of))) == 1:
        assert abs(found.variance - allocate_ranks(of, parameters=budget).variance) <= 1e-14
