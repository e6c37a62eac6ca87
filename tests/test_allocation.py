"""Allocations by hand and against every possible choice of ranks."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lowrank_core import RankAllocation, Spectrum, allocate_ranks, rank_for_variance, spectrum
from tests import oracles


def layer(values, shape, complete=True):
    return Spectrum(values, np.linalg.norm(values), shape, complete)


PLAIN = {"q": layer([4.0, 3.0, 0.5], (6, 4)), "v": layer([2.0, 2.0, 2.0], (3, 7)), "o": layer([1.0], (20, 30))}


def test_a_budget_by_hand():
    # By gain per parameter: q 16/25.25 and 9/25.25, v three times 1/3, q 0.25/25.25; o costs 50 for all of its own.
    allocation = allocate_ranks(PLAIN, parameters=45)
    assert allocation == RankAllocation({"q": 2, "v": 2, "o": 0}, 40, allocation.variance, allocation.upper_bound)
    assert allocation.variance == pytest.approx((25 / 25.25 + 2 / 3 + 0) / 3, rel=1e-15)
    # Five more parameters buy half of v's third rank in the relaxation.
    assert allocation.upper_bound == pytest.approx(allocation.variance + 0.5 * (1 / 3) / 3, rel=1e-14)


def test_ranks_that_do_not_fit_are_skipped():
    layers = {"dear": layer([3.0, 2.9], (20, 20)), "cheap": layer([1.0, 1.0, 1.0], (3, 3))}
    # Rank 1 of "dear" gains more a parameter than any of "cheap", under "absolute"; its rank 2 does not fit.
    assert allocate_ranks(layers, parameters=55, objective="absolute").ranks == {"dear": 1, "cheap": 2}
    assert allocate_ranks(layers, parameters=52, objective="absolute").ranks == {"dear": 1, "cheap": 2}
    assert allocate_ranks(layers, parameters=46, objective="absolute").ranks == {"dear": 1, "cheap": 1}
    assert allocate_ranks(layers, parameters=39, objective="absolute").ranks == {"dear": 0, "cheap": 3}


def test_the_rest_of_a_budget_buys_the_rank_that_gains_most_next():
    # Rank 1 of "dear" leaves 6 parameters: "steep" gains 10²/6 a parameter for them, "flat" less, though more after it.
    layers = {
        "dear": layer([30.0, 28.0], (20, 20)),
        "flat": layer([9.0, 8.0], (3, 3)),
        "steep": layer([10.0, 1.0], (3, 3)),
    }
    ranks = allocate_ranks(layers, parameters=46, objective="absolute").ranks
    assert ranks == {"dear": 1, "flat": 0, "steep": 1}


def test_ranks_not_needed_for_a_variance_are_dropped():
    # "cheap" gains more a parameter, and is no longer needed beside "dear".
    layers = {"cheap": layer([1.0], (1, 1)), "dear": layer([3.0], (20, 20))}
    assert allocate_ranks(layers, variance=0.95, objective="absolute").ranks == {"cheap": 1, "dear": 1}
    assert allocate_ranks(layers, variance=0.85, objective="absolute").ranks == {"cheap": 0, "dear": 1}


def test_the_two_objectives_differ_where_layers_differ_in_size():
    layers = {"large": layer([100.0, 90.0], (5, 5)), "small": layer([1.0, 0.1], (5, 5))}
    assert allocate_ranks(layers, parameters=20).ranks == {"large": 1, "small": 1}
    allocation = allocate_ranks(layers, parameters=20, objective="absolute")
    assert allocation.ranks == {"large": 2, "small": 0}
    assert allocation.variance == pytest.approx(18100 / 18101.01, rel=1e-15)


def drawn_layers(rng, *, equal_costs):
    """Two to four small layers, some of them of equal values, for budgets that every choice is tried for."""
    layers = {}
    for name in range(rng.integers(2, 5)):
        cost = 12 if equal_costs else int(rng.integers(4, 40))
        n = int(rng.integers(1, cost))
        count = min(n, cost - n, int(rng.integers(1, 5)))
        drawn = rng.random(count) if rng.random() < 0.5 else rng.integers(1, 4, count)
        layers[str(name)] = layer(np.sort(drawn + 0.01)[::-1], (cost - n, n))
    return layers


def test_equal_costs_give_the_optimum_of_brute_force():
    rng = np.random.default_rng(4)
    for case in range(200):
        layers = drawn_layers(rng, equal_costs=True)
        objective = ("relative", "absolute")[case % 2]
        budget, target = int(rng.integers(12, 200)), rng.random()
        parameters, kept = oracles.every_allocation(layers, objective)
        allocation = allocate_ranks(layers, parameters=budget, objective=objective)
        assert allocation.variance == pytest.approx(kept[parameters <= budget].max(), rel=1e-13)
        met = allocate_ranks(layers, variance=target, objective=objective)
        assert met.parameters == parameters[kept >= target].min()


def test_unequal_costs_are_within_the_stated_bounds():
    rng = np.random.default_rng(5)
    misses = 0
    for case in range(200):
        layers = drawn_layers(rng, equal_costs=False)
        objective = ("relative", "absolute")[case % 2]
        budget, target = int(rng.integers(40, 200)), rng.random()
        parameters, kept = oracles.every_allocation(layers, objective)
        allocation = allocate_ranks(layers, parameters=budget, objective=objective)
        best = kept[parameters <= budget].max()
        assert allocation.parameters <= budget
        assert allocation.variance - 1e-14 <= best <= allocation.upper_bound + 1e-14
        misses += allocation.variance < best - 1e-12
        met = allocate_ranks(layers, variance=target, objective=objective)
        least = parameters[kept >= target].min()
        assert met.variance >= target - 1e-14
        assert least <= met.parameters < least + max(sum(s.shape) for s in layers.values())
        assert kept[parameters <= met.parameters].max() <= met.upper_bound + 1e-14
    # The bounds are at work: some of these cases are knapsacks that no order solves.
    assert misses > 10


def test_variance_is_monotone_in_the_budget_parameters_in_the_variance():
    rng = np.random.default_rng(6)
    for _ in range(12):
        layers = drawn_layers(rng, equal_costs=False)
        cheapest = min(sum(s.shape) for s in layers.values())
        kept = [allocate_ranks(layers, parameters=budget).variance for budget in range(cheapest, 150, 2)]
        assert np.all(np.diff(kept) >= -1e-15)
        needed = [allocate_ranks(layers, variance=target).parameters for target in np.linspace(0, 1, 30)]
        assert np.all(np.diff(needed) >= 0)


def test_one_layer_agrees_with_rank_for_variance():
    s = spectrum(np.random.default_rng(0).standard_normal((30, 20)))
    for target in np.linspace(0.01, 1, 50):
        assert allocate_ranks({"only": s}, variance=target).ranks["only"] == rank_for_variance(s, target)


def test_ties_go_to_the_first_layers():
    layers = {name: layer(np.ones(4), (5, 5)) for name in "abc"}
    assert allocate_ranks(layers, parameters=60).ranks == {"a": 4, "b": 2, "c": 0}
    assert allocate_ranks(layers, variance=0.5).ranks == {"a": 4, "b": 2, "c": 0}


def test_max_rank_limits_all_layers_or_those_named():
    allocation = allocate_ranks(PLAIN, parameters=10_000, max_rank=2)
    assert allocation.ranks == {"q": 2, "v": 2, "o": 1}
    assert allocation.upper_bound == allocation.variance
    assert allocate_ranks(PLAIN, parameters=10_000, max_rank={"q": 0, "v": 99}).ranks == {"q": 0, "v": 3, "o": 1}


def test_an_allocation_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        allocate_ranks(PLAIN, parameters=45).variance = 1.0


def test_a_max_rank_of_0_leaves_a_layer_out():
    assert allocate_ranks(PLAIN, parameters=100, max_rank=0) == RankAllocation({"q": 0, "v": 0, "o": 0}, 0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"0\.5 cannot be captured: the largest ranks allowed capture 0\.0"):
        allocate_ranks(PLAIN, variance=0.5, max_rank=0)


def test_everything_fits_a_large_budget():
    allocation = allocate_ranks(PLAIN, parameters=10**12)
    assert allocation == RankAllocation({"q": 3, "v": 3, "o": 1}, 110, 1.0, 1.0)
    assert allocate_ranks(PLAIN, variance=1).ranks == allocation.ranks


def test_a_variance_below_the_rounding_of_sums_is_not_dropped():
    # 2.5e-13 of the variance, and all of it is the target.
    assert allocate_ranks({"only": layer([1.0, 5e-7], (3, 3))}, variance=1).ranks == {"only": 2}


def test_all_of_the_variance_is_1_and_no_more():
    # The fractions of their squares add up to 1 + 2⁻⁵².
    layers = {str(norm): layer([norm], (2, 3)) for norm in (18.0, 22.0, 25.0)}
    allocation = allocate_ranks(layers, parameters=100, objective="absolute")
    assert allocation.variance == allocation.upper_bound == 1.0
    assert allocate_ranks(layers, variance=1, objective="absolute").ranks == allocation.ranks


def test_a_part_of_a_rank_captures_at_most_all_of_the_variance():
    # The three large layers' fractions and 49/50 of the small one's, 2e-16, add up to 1 + 2⁻⁵².
    layers = {str(norm): layer([norm], (2, 3)) for norm in (15.0, 18.0, 28.0)} | {"small": layer([4.5e-7], (20, 30))}
    allocation = allocate_ranks(layers, parameters=64, objective="absolute")
    assert allocation.variance == allocation.upper_bound == 1.0


def test_a_variance_beyond_the_largest_by_the_rounding_of_sums_is_met():
    halves = {"only": layer([1.0, 1.0], (3, 3))}
    assert allocate_ranks(halves, variance=0.5 + 1e-12, max_rank=1).ranks == {"only": 1}
    with pytest.raises(ValueError, match="cannot be captured"):
        allocate_ranks(halves, variance=0.5 + 1.5e-12, max_rank=1)


def test_nothing_is_spent_where_nothing_is_gained():
    zero = {"a": spectrum(np.zeros((3, 4))), "b": layer([1.0, 0.0], (2, 2))}
    assert allocate_ranks(zero, parameters=100) == RankAllocation({"a": 0, "b": 1}, 4, 1.0, 1.0)
    assert allocate_ranks({"a": zero["a"]}, parameters=0) == RankAllocation({"a": 0}, 0, 1.0, 1.0)
    assert allocate_ranks({"a": zero["a"]}, variance=0.9) == RankAllocation({"a": 0}, 0, 1.0, 1.0)
    assert allocate_ranks({"a": zero["a"]}, variance=0.9, max_rank=0) == RankAllocation({"a": 0}, 0, 1.0, 1.0)
    # It has none of its values, and none is needed.
    unheld = {"a": spectrum(np.zeros((3, 4)), rank=0), "b": zero["b"]}
    assert allocate_ranks(unheld, parameters=100) == RankAllocation({"a": 0, "b": 1}, 4, 1.0, 1.0)
    assert allocate_ranks(PLAIN, variance=0).ranks == {"q": 0, "v": 0, "o": 0}


@pytest.mark.parametrize("size", [1e-300, 1e200])
def test_allocations_do_not_depend_on_size(size):
    scaled = {name: Spectrum(s.values * size, s.norm * size, s.shape, True) for name, s in PLAIN.items()}
    for objective in ("relative", "absolute"):
        allocation = allocate_ranks(scaled, parameters=45, objective=objective)
        assert allocation.ranks == allocate_ranks(PLAIN, parameters=45, objective=objective).ranks


def test_an_incomplete_spectrum_is_enough_until_all_its_values_are_taken():
    whole = {"a": layer([4.0, 3.0, 2.0, 1.0], (4, 4)), "b": layer([4.0, 3.0, 2.0, 1.0], (4, 4))}
    part = whole | {"a": Spectrum([4.0, 3.0, 2.0], np.sqrt(30.0), (4, 4), complete=False)}
    allocation = allocate_ranks(part, parameters=32)
    assert allocation == allocate_ranks(whole, parameters=32)
    with pytest.raises(ValueError, match=r"'a' is given all 3 leading values.*spectrum\(update, rank=\.\.\.\)"):
        allocate_ranks(part, parameters=40)
    assert allocate_ranks(part, parameters=1000, max_rank=3).ranks == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either parameters.*or variance"),
        ({"parameters": 100, "variance": 0.5}, "and not both; got parameters=100, variance=0.5"),
        ({"parameters": 9}, "too small for any rank: the cheapest, rank 1 of layer 'q', costs m . n = 10"),
        ({"parameters": -5}, "parameters must be a whole number of at least 0; got -5"),
        ({"parameters": 1e3 + 0.5}, "parameters must be a whole number"),
        ({"parameters": np.nan}, "parameters must be a whole number"),
        ({"parameters": [100, 200]}, "one budget for all layers"),
        ({"variance": 1.5}, "between 0 and 1.*95 % as 0.95"),
        ({"variance": -0.1}, "between 0 and 1"),
        ({"variance": [0.5, 0.6]}, "one fraction for all layers"),
        ({"variance": 0.9, "max_rank": 1}, r"0\.9 cannot be captured: the largest ranks allowed capture 0\.655665"),
        ({"variance": 0.5, "max_rank": -1}, "max_rank must be a whole number"),
        ({"variance": 0.5, "max_rank": [1, 2, 3]}, "or a mapping"),
        ({"variance": 0.5, "max_rank": {"k": 3}}, "max_rank names 'k', which is not among the 3 layers"),
        ({"variance": 0.5, "objective": "nuclear"}, "unknown objective 'nuclear'; accepted are relative"),
    ],
)
def test_refusals_name_the_nearest_figure(options, message):
    with pytest.raises(ValueError, match=message):
        allocate_ranks(PLAIN, **options)


def test_each_layer_has_one_spectrum():
    with pytest.raises(ValueError, match="at least one layer"):
        allocate_ranks({}, parameters=10)
    with pytest.raises(ValueError, match=r"'q' has a batch of spectra, of shape \(2, 3\)"):
        allocate_ranks({"q": spectrum(np.ones((2, 3, 4)))}, parameters=10)


def test_the_figures_that_messages_name_are_possible():
    assert allocate_ranks(PLAIN, parameters=10).parameters == 10
    assert allocate_ranks(PLAIN, variance=0.655665, max_rank=1).ranks == {"q": 1, "v": 1, "o": 1}


def test_a_thousand_equal_layers_share_a_budget():
    # Every item ties with every other: nothing may walk through them one by one.
    flat = layer(np.ones(512), (512, 600))
    layers = dict.fromkeys(map(str, range(1_000)), flat)
    allocation = allocate_ranks(layers, parameters=1112 * 100_000)
    assert allocation.parameters == 1112 * 100_000
    assert allocation.variance == pytest.approx(100_000 / 512_000, rel=1e-12)
    allocation = allocate_ranks(layers, variance=0.25)
    assert sum(allocation.ranks.values()) == 128_000
