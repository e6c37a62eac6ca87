"""Which rank for which layer, when all of them share one budget."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._validation import as_fraction, as_whole_numbers, check_choice, check_scalar
from lowrank_core.spectra import Spectrum, energy_fractions

__all__ = ["RankAllocation", "allocate_ranks"]

OBJECTIVES = ("relative", "absolute")

# Sums of thousands of shares agree to about 1e-14.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class RankAllocation:
    """A rank for every layer, and how near to the best possible allocation this one is.

    Attributes
    ----------
    ranks : dict of str to int
        Keys as those of the spectra, in their order; 0 leaves a layer out.
    parameters : int
        Number of entries of all factors together: the sum of r·(m + n).
    variance : float
        Share of the variance that these ranks keep, between 0 and 1.
    upper_bound : float
        No allocation within the budget keeps a larger share: the optimum of the linear relaxation, in which a rank may
        be taken in part. For an allocation by variance, the budget is the number of parameters found.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import allocate_ranks, spectrum
    >>> allocate_ranks({"q": spectrum(np.diag([2.0, 1.0, 1.0]))}, parameters=9)
    RankAllocation(ranks={'q': 1}, parameters=6, variance=0.6666666666666666, upper_bound=0.75)
    """

    ranks: dict[str, int]
    parameters: int
    variance: float
    upper_bound: float


def allocate_ranks(
    spectra: Mapping[str, Spectrum],
    *,
    parameters: int | None = None,
    variance: float | None = None,
    max_rank: int | Mapping[str, int] | None = None,
    objective: str = "relative",
) -> RankAllocation:
    r"""Share a budget of parameters among layers so that as much variance as possible is kept, or meet a variance.

    Rank k of layer i costs :math:`m_i + n_i` parameters and keeps :math:`\sigma_{i,k}^2` more of its variance.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        One unbatched spectrum for each layer. Shapes may differ.
    parameters : int, optional
        The budget: at most so many entries in all factors together. The variance kept never falls as it grows.
    variance : float, optional
        Instead of a budget: the share to keep, between 0 and 1, with as few parameters as possible.
    max_rank : int or mapping of str to int, optional
        The largest rank for every layer, or for those named. None: min(m, n).
    objective : {"relative", "absolute"}
        What "variance" counts. ``relative``: every layer's share :math:`H_r / N^2` alike, that is their mean, so that
        small updates matter as much as large ones. ``absolute``: :math:`\sum H_r / \sum N^2`, as if the layers were
        blocks of one matrix. Layers of zeros have nothing to keep; they get rank 0 and do not count.

    Returns
    -------
    RankAllocation

    Raises
    ------
    ValueError
        If not exactly one of `parameters` and `variance` is given; if the budget is smaller than the cheapest single
        rank, or the variance is more than the largest ranks keep: the nearest figure that can be had is named; if a
        spectrum is batched, or holds fewer values than its layer would be given ranks.

    Notes
    -----
    In each layer the gains fall with k and the costs are equal, so the order of gain per parameter over all pairs
    (layer, k) never asks for a rank before the one below it. The budget is spent in this order; what no longer fits is
    skipped. With equal costs that is the optimum. Otherwise it keeps less than the optimum by less than the gain of the
    first rank that was skipped, and ``upper_bound`` tells how much less at most.

    The variance kept is monotone in the budget: two budgets agree up to the first rank that only the larger affords,
    and this one gains more than all that the smaller can still buy, at lower gains per parameter. Single ranks need not
    be monotone. For a given variance the ranks are dropped in the reverse order, skipping those that are still needed;
    the parameters found exceed the least by less than the m + n of one layer.

    The order is never sorted: the gain per parameter at which the budget ends is found by bisection, with a binary
    search in each layer.

    References
    ----------
    Dantzig, Operations Research 5 (1957) 266, for the order and the relaxation of the knapsack problem.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import allocate_ranks, spectrum
    >>> layers = {"q": spectrum(np.diag([4.0, 3.0, 0.1])), "v": spectrum(np.diag([2.0, 2.0, 2.0]))}
    >>> found = allocate_ranks(layers, parameters=18)
    >>> found.ranks, found.parameters, round(found.variance, 3)
    ({'q': 2, 'v': 1}, 18, 0.666)
    >>> allocate_ranks(layers, variance=0.9).ranks
    {'q': 2, 'v': 3}
    """
    if (parameters is None) == (variance is None):
        raise ValueError(
            "give either parameters, the budget, or variance, the fraction to keep, and not both; "
            f"got parameters={parameters!r}, variance={variance!r}."
        )
    items = _items(spectra, max_rank, objective)
    if parameters is not None:
        budget = _as_budget(parameters, items)
        density = _density_of(budget, items)
        taken = _spend(items, budget, density)
    else:
        taken = _drop(items, _as_target(variance, items))
        budget = int(taken @ items.costs)
        density = _density_of(budget, items)
    _check_held(items, taken)
    kept = items.kept(taken)
    return RankAllocation(
        ranks=dict(zip(spectra, taken.tolist(), strict=True)),
        parameters=int(taken @ items.costs),
        variance=kept,
        # The relaxation's optimum is no less than any allocation's, beyond the rounding of the sums.
        upper_bound=max(kept, _relaxation(items, budget, density)),
    )


@dataclass(frozen=True)
class _Items:
    """Every pair (layer, k) that may be taken; those of layer i are densities[starts[i] : starts[i + 1]]."""

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    costs: NDArray[np.int64]
    weights: NDArray[np.float64]
    # Weighted gain per parameter, descending in each layer.
    densities: NDArray[np.float64]
    # H_k / N² for k = 0 … of each layer in turn: one more than it has items.
    heads: NDArray[np.float64]
    # Whether a layer may have ranks beyond its items, at gains that its spectrum does not hold.
    goes_on: NDArray[np.bool_]

    def kept(self, taken: NDArray[np.int64]) -> float:
        """Share of the variance that these ranks keep; all of it where there is none."""
        if not np.any(self.weights):
            return 1.0
        layers = np.arange(len(taken))
        return min(1.0, math.fsum(self.weights * self.heads[self.starts[:-1] + layers + taken]))

    def above(self, density: float) -> NDArray[np.int64]:
        """Count the items of each layer of more than this gain per parameter: a binary search in all layers at once."""
        low, high = self.starts[:-1].copy(), self.starts[1:].copy()
        while np.any(open_ := low < high):
            middle = (low + high) // 2
            # A layer that is done looks at an item of its own or its neighbour's, and does not move.
            larger = self.densities[np.minimum(middle, len(self.densities) - 1)] > density
            low = np.where(open_ & larger, middle + 1, low)
            high = np.where(open_ & ~larger, middle, high)
        return low - self.starts[:-1]

    def density(self, layer: int | np.integer[Any], rank: int | np.integer[Any]) -> float:
        """Gain per parameter of a layer's rank k ≥ 1; 0 beyond its last."""
        position = self.starts[layer] + rank - 1
        return float(self.densities[position]) if position < self.starts[layer + 1] else 0.0


def _items(spectra: Mapping[str, Spectrum], max_rank: int | Mapping[str, int] | None, objective: str) -> _Items:
    check_choice(objective, "objective", OBJECTIVES)
    if not spectra:
        raise ValueError("there is no layer to give ranks to: spectra must hold at least one.")
    for name, of in spectra.items():
        if of.values.ndim != 1:
            raise ValueError(
                f"layer {name!r} has a batch of spectra, of shape {of.values.shape}; give each a name of its own."
            )
    limits = _limits(spectra, max_rank)
    held = {name: of.values.shape[-1] for name, of in spectra.items()}
    caps = [min(limits[name], held[name]) for name in spectra]
    goes_on = [held[name] < limits[name] and not of.complete for name, of in spectra.items()]
    weights = _weights(spectra, objective)
    costs = np.array([sum(of.shape) for of in spectra.values()], dtype=np.int64)
    starts = np.array([0, *accumulate(caps)], dtype=np.int64)
    densities, heads = np.empty(starts[-1]), np.empty(starts[-1] + len(caps))
    for i, of in enumerate(spectra.values()):
        start, cap = starts[i], caps[i]
        # Over the norm before they are squared: 1e±200 has no square.
        shares = np.square(of.values[:cap] / (of.norm or 1.0))
        densities[start : start + cap] = shares * (weights[i] / costs[i])
        heads[start + i : start + i + cap + 1] = energy_fractions(of, np.arange(cap + 1))[0]
    return _Items(tuple(spectra), starts, costs, weights, densities, heads, np.array(goes_on))


def _limits(spectra: Mapping[str, Spectrum], max_rank: int | Mapping[str, int] | None) -> dict[str, int]:
    """Largest rank that each layer may be given: a cap beyond min(m, n) is no cap."""
    if isinstance(max_rank, Mapping):
        unknown = [name for name in max_rank if name not in spectra]
        if unknown:
            raise ValueError(f"max_rank names {unknown[0]!r}, which is none of the {len(spectra)} layers.")
        caps = {name: _as_cap(cap) for name, cap in max_rank.items()}
    else:
        caps = {} if max_rank is None else dict.fromkeys(spectra, _as_cap(max_rank))
    return {name: min(caps.get(name, min(of.shape)), *of.shape) for name, of in spectra.items()}


def _as_cap(cap: int) -> int:
    given = as_whole_numbers(cap, "max_rank")
    check_scalar(given, "max_rank is one whole number for all layers, or a mapping of names to such", cap)
    return int(given)


def _weights(spectra: Mapping[str, Spectrum], objective: str) -> NDArray[np.float64]:
    """Give what each layer's own share counts; together 1, and nothing for a layer of zeros."""
    norms = np.array([of.norm for of in spectra.values()])
    if not np.any(norms):
        return np.zeros(len(norms))
    # Over the largest before they are squared, for the same reason as the values.
    sizes = np.square(norms / np.max(norms)) if objective == "absolute" else (norms > 0).astype(np.float64)
    weights: NDArray[np.float64] = sizes / math.fsum(sizes)
    return weights


def _as_budget(parameters: int, items: _Items) -> int:
    useful = items.above(0.0) > 0
    if np.any(useful):
        cheapest = int(np.argmin(np.where(useful, items.costs, np.iinfo(np.int64).max)))
        least = items.costs[cheapest]
        if np.ndim(parameters) == 0 and np.asarray(parameters).dtype.kind in "iuf" and parameters < least:
            raise ValueError(
                f"a budget of {parameters} parameters buys no rank at all: the cheapest, rank 1 of layer "
                f"{items.names[cheapest]!r}, costs m + n = {least}."
            )
    budget = as_whole_numbers(parameters, "parameters")
    check_scalar(budget, "parameters is one budget for all layers together", parameters)
    return int(budget)


def _as_target(variance: float | None, items: _Items) -> float:
    given = as_fraction(variance, "variance")  # type: ignore[arg-type]  # None is refused there
    check_scalar(given, "variance is one fraction for all layers together", variance)
    target = float(given)
    if not np.any(items.weights):
        return 0.0
    most = items.kept(items.above(0.0))
    if target > most + _ROUNDING:
        # Rounded down, so that the figure named can be had.
        nearest = math.floor(most * 1e6) / 1e6
        raise ValueError(
            f"a variance of {target:g} cannot be kept: with the largest ranks allowed, {nearest} is. "
            "Raise max_rank, give more of each spectrum's values, or ask for less."
        )
    return min(target, most)


def _check_held(items: _Items, taken: NDArray[np.int64]) -> None:
    """Refuse an allocation that takes all that an incomplete spectrum holds: its next value may be worth more."""
    short = items.goes_on & (taken == np.diff(items.starts)) & (items.weights > 0)
    if np.any(short):
        layer = int(np.argmax(short))
        raise ValueError(
            f"layer {items.names[layer]!r} is given all {taken[layer]} leading values that its spectrum holds; ask "
            f"for more with spectrum(update, rank=...), or set max_rank to {taken[layer]} for it."
        )


def _density_of(budget: int, items: _Items) -> float:
    """Find the least gain per parameter such that all items above it are within the budget."""
    return _least_density(items, lambda taken: bool(taken @ items.costs <= budget))


def _spend(items: _Items, budget: int, density: float) -> NDArray[np.int64]:
    """Take items by gain per parameter while they fit; what does not fit is skipped."""
    taken = items.above(density)
    left = budget - int(taken @ items.costs)
    # Those at the boundary itself, which do not all fit, in the order of the layers.
    level = items.above(np.nextafter(density, 0.0)) - taken
    for layer in np.flatnonzero(level):
        more = min(int(level[layer]), left // int(items.costs[layer]))
        taken[layer] += more
        left -= more * int(items.costs[layer])
    # Less is left than one of them costs, so this buys a few more at most.
    queue = [(-items.density(i, taken[i] + 1), i) for i in np.flatnonzero(items.costs <= left)]
    heapq.heapify(queue)
    while queue:
        gain, layer = heapq.heappop(queue)
        # A layer that has become too dear stays so; beyond its last rank that gains, nothing is worth its price.
        if items.costs[layer] <= left and gain < 0:
            taken[layer] += 1
            left -= int(items.costs[layer])
            heapq.heappush(queue, (-items.density(layer, taken[layer] + 1), layer))
    return taken


def _drop(items: _Items, target: float) -> NDArray[np.int64]:
    """Drop items by the least gain per parameter while the target is kept; what is still needed is skipped."""
    if target == 0:
        return np.zeros(len(items.costs), dtype=np.int64)
    density = _least_density(items, lambda taken: items.kept(taken) < target)
    taken = items.above(density)
    # Those at the boundary itself, not all of which can be dropped: as many as are needed, in the order of the layers.
    level = items.above(np.nextafter(density, 0.0)) - taken
    before = np.cumsum(level) - level
    needed = bisect_left(
        range(int(np.sum(level))),
        True,
        key=lambda count: items.kept(taken + np.clip(count - before, 0, level)) >= target,
    )
    taken += np.clip(needed - before, 0, level)
    spare = items.kept(taken) - target - _ROUNDING
    queue = [(items.density(i, taken[i]), i) for i in np.flatnonzero(taken)]
    heapq.heapify(queue)
    while queue:
        gain, layer = heapq.heappop(queue)
        # A layer whose last rank is needed needs those below it, which gain more.
        if gain * items.costs[layer] <= spare:
            taken[layer] -= 1
            spare -= gain * items.costs[layer]
            if taken[layer]:
                heapq.heappush(queue, (items.density(layer, taken[layer]), layer))
    return taken


def _relaxation(items: _Items, budget: int, density: float) -> float:
    """Give the most that any allocation can keep where the last rank may be taken in part."""
    taken = items.above(density)
    return min(1.0, items.kept(taken) + float(budget - int(taken @ items.costs)) * density)


def _least_density(items: _Items, holds: Callable[[NDArray[np.int64]], bool]) -> float:
    """Find the least gain per parameter such that `holds` is true of the items above it; it is true of none at all."""
    if holds(items.above(0.0)):
        return 0.0
    # Positive floats are ordered as their bits are, so 63 halvings end between two neighbours, ties and all.
    low, high = 0, int(np.max(items.densities).view(np.int64))
    while high - low > 1:
        middle = (low + high) // 2
        if holds(items.above(_from_bits(middle))):
            high = middle
        else:
            low = middle
    return _from_bits(high)


def _from_bits(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
