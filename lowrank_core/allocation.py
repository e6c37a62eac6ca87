"""Ranks for the layers of a model under one budget."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._plots import draw_ranks
from lowrank_core._results import html_table
from lowrank_core._validation import as_fraction, as_whole_numbers, check_choice, check_scalar
from lowrank_core.spectra import Spectrum, check_spectrum, energy_fractions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RankAllocation", "allocate_ranks"]

OBJECTIVES = ("relative", "absolute")

# Sums of thousands of fractions agree to about 1e-14.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class RankAllocation:
    """A rank for every layer, as :func:`allocate_ranks` computes it, and a bound on what any allocation captures.

    Attributes
    ----------
    ranks : dict of str to int
        By the names of the spectra, in their order; 0 leaves a layer out.
    parameters : int
        Number of entries of all factors together, the sum of r·(m + n).
    variance : float
        Fraction of the variance that these ranks capture, between 0 and 1.
    upper_bound : float
        No allocation within the budget captures a larger fraction: the optimum of the linear relaxation, in which part
        of a rank may be taken. For an allocation by variance, the budget is `parameters`.

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

    def _repr_html_(self) -> str:
        title = f"{self.parameters:,} parameters, {self.variance:.1%} of the variance"
        return html_table(title, ["layer", "rank"], [list(item) for item in self.ranks.items()])

    def plot(self, ax: Any = None) -> Axes:
        """Draw the rank of each layer.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            What to draw in; None for those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return draw_ranks(list(self.ranks), list(self.ranks.values()), ax)


def allocate_ranks(
    spectra: Mapping[str, Spectrum],
    *,
    parameters: int | None = None,
    variance: float | None = None,
    max_rank: int | Mapping[str, int] | None = None,
    objective: str = "relative",
) -> RankAllocation:
    r"""Compute the ranks that capture most variance within a budget of parameters, or a given variance with fewest.

    Rank k of layer i costs :math:`m_i + n_i` parameters and captures :math:`\sigma_{i,k}^2` more of its variance.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        One unbatched spectrum for each layer. Shapes may differ.
    parameters : int, optional
        The budget: the largest number of entries in all factors together. A larger one never captures less.
    variance : float, optional
        Instead of a budget: the fraction to capture, between 0 and 1, with as few parameters as possible.
    max_rank : int or mapping of str to int, optional
        The largest rank for every layer, or for those named. None: min(m, n).
    objective : {"relative", "absolute"}
        Which variance is meant. ``relative``: the mean of the layers' fractions :math:`H_r / N^2`, in which small
        updates count as much as large ones. ``absolute``: :math:`\sum H_r / \sum N^2`, as if the layers were blocks of
        one matrix. Layers of zeros do not count, and get rank 0.

    Returns
    -------
    RankAllocation

    Raises
    ------
    ValueError
        If not exactly one of `parameters` and `variance` is given; if the budget is smaller than the cheapest single
        rank, or the variance larger than the largest ranks capture, where the message names the nearest figure that is
        possible; if a spectrum is batched, or has fewer values than its layer would be given ranks.

    See Also
    --------
    rank_for_variance, rank_for_error : One rank, of one update.

    Notes
    -----
    In each layer the gains fall with k and the costs are equal, so the order of gain per parameter over all pairs
    (layer, k) never asks for a rank before the one below it. The budget is spent in this order, skipping what no longer
    fits. With equal costs that is the optimum. Otherwise it captures less than the optimum by less than the gain of the
    first rank that was skipped, and by `upper_bound` minus `variance` at most.

    The variance captured is monotone in the budget: two budgets agree up to the first rank that only the larger one
    affords, whose gain exceeds that of all that the smaller can still buy, at lower gains per parameter. Single ranks
    need not be monotone. For a given variance the ranks are dropped in the reverse order, skipping those still needed;
    the parameters exceed the fewest possible by less than the m + n of one layer.

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
    >>> allocation = allocate_ranks(layers, parameters=18)
    >>> allocation.ranks, allocation.parameters, round(allocation.variance, 3)
    ({'q': 2, 'v': 1}, 18, 0.666)
    >>> allocate_ranks(layers, variance=0.9).ranks
    {'q': 2, 'v': 3}
    """
    if (parameters is None) == (variance is None):
        raise ValueError(
            "give either parameters, the budget, or variance, the fraction to capture, and not both; "
            f"got parameters={parameters!r}, variance={variance!r}."
        )
    items = _items(spectra, max_rank, objective)
    if parameters is not None:
        budget = _as_budget(parameters, items)
        density = _budget_density(budget, items)
        ranks = _ranks_within(budget, items, density)
    else:
        ranks = _ranks_capturing(_as_target(variance, items), items)
        budget = int(ranks @ items.costs)
        density = _budget_density(budget, items)
    _check_known(items, ranks)
    captured = items.captured(ranks)
    return RankAllocation(
        ranks=dict(zip(spectra, ranks.tolist(), strict=True)),
        parameters=int(ranks @ items.costs),
        variance=captured,
        # The relaxation's optimum is no less than any allocation's, beyond the rounding of the sums.
        upper_bound=max(captured, _relaxed_optimum(budget, items, density)),
    )


@dataclass(frozen=True)
class _Items:
    """Pairs (layer, k) that may be allocated; those of layer i are densities[starts[i] : starts[i + 1]]."""

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    costs: NDArray[np.int64]
    weights: NDArray[np.float64]
    # Weighted gain per parameter, descending in each layer.
    densities: NDArray[np.float64]
    # H_k / N² for k = 0 … of each layer in turn: one more than it has items.
    heads: NDArray[np.float64]
    # Whether a layer may have ranks beyond its items, with gains unknown to its incomplete spectrum.
    unknown_beyond: NDArray[np.bool_]

    def captured(self, ranks: NDArray[np.int64]) -> float:
        """Return the fraction of the variance that these ranks capture; 1 where there is no variance."""
        if not np.any(self.weights):
            return 1.0
        layers = np.arange(len(ranks))
        return min(1.0, math.fsum(self.weights * self.heads[self.starts[:-1] + layers + ranks]))

    def count_above(self, density: float) -> NDArray[np.int64]:
        """Return the number of items of each layer above a gain per parameter: a binary search in all at once."""
        low, high = self.starts[:-1].copy(), self.starts[1:].copy()
        while np.any(searching := low < high):
            middle = (low + high) // 2
            # A layer whose search has ended reads some item, perhaps of the next layer, and does not move.
            larger = self.densities[np.minimum(middle, len(self.densities) - 1)] > density
            low = np.where(searching & larger, middle + 1, low)
            high = np.where(searching & ~larger, middle, high)
        return low - self.starts[:-1]

    def density(self, layer: int | np.integer[Any], rank: int | np.integer[Any]) -> float:
        """Return the gain per parameter of a layer's rank k ≥ 1; 0 beyond its last."""
        position = self.starts[layer] + rank - 1
        return float(self.densities[position]) if position < self.starts[layer + 1] else 0.0


def _items(spectra: Mapping[str, Spectrum], max_rank: int | Mapping[str, int] | None, objective: str) -> _Items:
    check_choice(objective, "objective", OBJECTIVES)
    if not spectra:
        raise ValueError("spectra is empty; at least one layer is needed.")
    for name, spectrum in spectra.items():
        check_spectrum(spectrum, f"layer {name!r}")
        if spectrum.values.ndim != 1:
            raise ValueError(
                f"layer {name!r} has a batch of spectra, of shape {spectrum.values.shape}; give each a name of its own."
            )
    limits = _limits(spectra, max_rank)
    known = {name: spectrum.values.shape[-1] for name, spectrum in spectra.items()}
    counts = [min(limits[name], known[name]) for name in spectra]
    unknown_beyond = [known[name] < limits[name] and not spectrum.complete for name, spectrum in spectra.items()]
    weights = _weights(spectra, objective)
    costs = np.array([sum(spectrum.shape) for spectrum in spectra.values()], dtype=np.int64)
    starts = np.array([0, *accumulate(counts)], dtype=np.int64)
    densities, heads = np.empty(starts[-1]), np.empty(starts[-1] + len(counts))
    for i, spectrum in enumerate(spectra.values()):
        start, count = starts[i], counts[i]
        # Over the norm before they are squared: 1e±200 has no square.
        gains = np.square(spectrum.values[:count] / (spectrum.norm or 1.0))
        densities[start : start + count] = gains * (weights[i] / costs[i])
        heads[start + i : start + i + count + 1] = energy_fractions(spectrum, np.arange(count + 1))[0]
    return _Items(tuple(spectra), starts, costs, weights, densities, heads, np.array(unknown_beyond))


def _limits(spectra: Mapping[str, Spectrum], max_rank: int | Mapping[str, int] | None) -> dict[str, int]:
    """Return the largest rank that each layer may be given, at most min(m, n)."""
    if isinstance(max_rank, Mapping):
        unknown = [name for name in max_rank if name not in spectra]
        if unknown:
            raise ValueError(f"max_rank names {unknown[0]!r}, which is not among the {len(spectra)} layers.")
        limits = {name: _as_limit(limit) for name, limit in max_rank.items()}
    else:
        limits = {} if max_rank is None else dict.fromkeys(spectra, _as_limit(max_rank))
    return {name: min(limits.get(name, min(spectrum.shape)), *spectrum.shape) for name, spectrum in spectra.items()}


def _as_limit(limit: int) -> int:
    whole = as_whole_numbers(limit, "max_rank")
    check_scalar(whole, "max_rank is one whole number for all layers, or a mapping of names to such", limit)
    return int(whole)


def _weights(spectra: Mapping[str, Spectrum], objective: str) -> NDArray[np.float64]:
    """Return the weight of each layer's own fraction; together 1, and 0 for a layer of zeros."""
    norms = np.array([spectrum.norm for spectrum in spectra.values()])
    if not np.any(norms):
        return np.zeros(len(norms))
    # Over the largest before they are squared, for the same reason as the values.
    sizes = np.square(norms / np.max(norms)) if objective == "absolute" else (norms > 0).astype(np.float64)
    weights: NDArray[np.float64] = sizes / math.fsum(sizes)
    return weights


def _as_budget(parameters: int, items: _Items) -> int:
    budget = as_whole_numbers(parameters, "parameters")
    check_scalar(budget, "parameters is one budget for all layers together", parameters)
    useful = items.count_above(0.0) > 0
    cheapest = int(np.argmin(np.where(useful, items.costs, np.iinfo(np.int64).max)))
    if np.any(useful) and budget < items.costs[cheapest]:
        raise ValueError(
            f"a budget of {budget} parameters is too small for any rank: the cheapest, rank 1 of layer "
            f"{items.names[cheapest]!r}, costs m + n = {items.costs[cheapest]}."
        )
    return int(budget)


def _as_target(variance: float | None, items: _Items) -> float:
    fraction = as_fraction(variance, "variance")  # type: ignore[arg-type]  # None is refused there
    check_scalar(fraction, "variance is one fraction for all layers together", variance)
    target = float(fraction)
    if not np.any(items.weights):
        return 0.0
    most = items.captured(items.count_above(0.0))
    if target > most + _ROUNDING:
        # Rounded down, so that the figure named is possible.
        nearest = math.floor(most * 1e6) / 1e6
        raise ValueError(
            f"a variance of {target:g} cannot be captured: the largest ranks allowed capture {nearest}. "
            "Raise max_rank, pass spectra with more values, or ask for less."
        )
    return min(target, most)


def _check_known(items: _Items, ranks: NDArray[np.int64]) -> None:
    """Check that no layer is given all values of an incomplete spectrum: its next may gain more than another's."""
    short = items.unknown_beyond & (ranks == np.diff(items.starts)) & (items.weights > 0)
    if np.any(short):
        layer = int(np.argmax(short))
        raise ValueError(
            f"layer {items.names[layer]!r} is given all {ranks[layer]} leading values of its spectrum; ask "
            f"for more with spectrum(update, rank=...), or set max_rank to {ranks[layer]} for it."
        )


def _budget_density(budget: int, items: _Items) -> float:
    """Return the least gain per parameter such that all items above it are within the budget."""
    return _least_density(items, lambda ranks: bool(ranks @ items.costs <= budget))


def _ranks_within(budget: int, items: _Items, density: float) -> NDArray[np.int64]:
    """Return the ranks that a budget buys in the order of gain per parameter; what does not fit is skipped."""
    ranks = items.count_above(density)
    left = budget - int(ranks @ items.costs)
    # Those at the boundary itself, which do not all fit, in the order of the layers.
    ties = items.count_above(np.nextafter(density, 0.0)) - ranks
    for layer in np.flatnonzero(ties):
        more = min(int(ties[layer]), left // int(items.costs[layer]))
        ranks[layer] += more
        left -= more * int(items.costs[layer])
    # Less is left than one of them costs, so this buys a few more at most.
    queue = [(-items.density(i, ranks[i] + 1), i) for i in np.flatnonzero(items.costs <= left)]
    heapq.heapify(queue)
    while queue:
        gain, layer = heapq.heappop(queue)
        # A layer that has become too dear remains so; a rank without gain is never bought.
        if items.costs[layer] <= left and gain < 0:
            ranks[layer] += 1
            left -= int(items.costs[layer])
            heapq.heappush(queue, (-items.density(layer, ranks[layer] + 1), layer))
    return ranks


def _ranks_capturing(target: float, items: _Items) -> NDArray[np.int64]:
    """Return the ranks left when those of least gain per parameter are dropped and those still needed are skipped."""
    if target == 0:
        return np.zeros(len(items.costs), dtype=np.int64)
    density = _least_density(items, lambda ranks: items.captured(ranks) < target)
    ranks = items.count_above(density)
    # Those at the boundary itself, not all of which can be dropped: as many as are needed, in the order of the layers.
    ties = items.count_above(np.nextafter(density, 0.0)) - ranks
    before = np.cumsum(ties) - ties
    needed = bisect_left(
        range(int(np.sum(ties))),
        True,
        key=lambda count: items.captured(ranks + np.clip(count - before, 0, ties)) >= target,
    )
    ranks += np.clip(needed - before, 0, ties)
    spare = items.captured(ranks) - target - _ROUNDING
    queue = [(items.density(i, ranks[i]), i) for i in np.flatnonzero(ranks)]
    heapq.heapify(queue)
    while queue:
        gain, layer = heapq.heappop(queue)
        # A layer whose last rank is needed needs those below it, which gain more.
        if gain * items.costs[layer] <= spare:
            ranks[layer] -= 1
            spare -= gain * items.costs[layer]
            if ranks[layer]:
                heapq.heappush(queue, (items.density(layer, ranks[layer]), layer))
    return ranks


def _relaxed_optimum(budget: int, items: _Items, density: float) -> float:
    """Return the most that any allocation can capture where part of the last rank may be taken."""
    ranks = items.count_above(density)
    return min(1.0, items.captured(ranks) + float(budget - int(ranks @ items.costs)) * density)


def _least_density(items: _Items, condition: Callable[[NDArray[np.int64]], bool]) -> float:
    """Return the least gain per parameter such that the items above it meet a condition, as no items at all do."""
    if condition(items.count_above(0.0)):
        return 0.0
    # Positive floats are ordered as their bits are, so 63 halvings end between two adjacent ones, ties and all.
    low, high = 0, int(np.max(items.densities).view(np.int64))
    while high - low > 1:
        middle = (low + high) // 2
        if condition(items.count_above(_from_bits(middle))):
            high = middle
        else:
            low = middle
    return _from_bits(high)


def _from_bits(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
