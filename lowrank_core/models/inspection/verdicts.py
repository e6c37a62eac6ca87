"""Verdicts on an update: what its figures say is wrong with it, each with the number that it rests on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from lowrank_core.models.inspection.report import LayerReport, Verdict
from lowrank_core.models.module_names import kind
from lowrank_core.models.norms import NOT_FINITE

UNDER_ROUNDING = "under-rounding"
CONDITIONS = ("zero", "not-finite", UNDER_ROUNDING, "spike")
"""The kinds of verdicts."""

_NAMES_SHOWN = 3
# An update that varies by a quarter of a step from entry to entry loses so much, one of half a step a third.
_MOST_LOST = 0.9
# The median absolute deviation of few values is that of one or two of them, and says nothing of their spread.
_FEWEST_OF_A_KIND = 8
# Of normally distributed numbers one in 10⁹ is six standard deviations above the mean. Those of trained layers have
# longer tails, of which 3.5 deviations, the usual limit (Iglewicz and Hoaglin, 1993), would make spikes.
_DEVIATIONS = 6.0
# What the median absolute deviation is multiplied with for the standard deviation of normal values.
_NORMAL = 1.4826
# Layers that are nearly alike have a deviation of nearly 0: of a spike, σ₁² is also ten times as large beside the rest.
_LEAST_EXCESS = math.log(10.0)
# A direction with less than half of N² is not larger than all others together.
_LEAST_SPIKE = 0.5
# What float32 factors leave of a rest that is zero.
_NO_REST = 1e-6


def find_verdicts(
    layers: Sequence[LayerReport], failures: Mapping[str, str], *, of_checkpoints: bool
) -> tuple[Verdict, ...]:
    """Return the verdicts on an adapter or a pair of checkpoints, in the order of :data:`CONDITIONS`."""
    found = (
        zero(layers, of_checkpoints=of_checkpoints),
        not_finite(failures, len(layers)),
        under_rounding(layers),
        spikes(layers),
    )
    return tuple(verdict for verdict in found if verdict is not None)


def check_conditions(conditions: Collection[str]) -> None:
    """Check that each is the kind of a verdict."""
    unknown = next((each for each in conditions if each not in CONDITIONS), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is not a condition: conditions are {', '.join(CONDITIONS)}")


def zero(layers: Sequence[LayerReport], *, of_checkpoints: bool) -> Verdict | None:
    """Return the verdict on layers whose update is zero; of two checkpoints only where that is so of every layer.

    A layer that was not trained is the same in both checkpoints, and an adapter should not have it.
    """
    names = [layer.name for layer in layers if layer.norm == 0.0]
    if not names or (of_checkpoints and len(names) < len(layers)):
        return None
    if len(names) == len(layers):
        sentence = f"The update is zero in every layer ({len(names)} of {len(layers)} have norm 0): it changes nothing."
    else:
        sentence = f"The update is zero (norm 0) in {len(names)} of {len(layers)} layers: {_listed(names)}."
    return Verdict("zero", tuple(names), float(len(names)), sentence)


def not_finite(failures: Mapping[str, str], reported: int) -> Verdict | None:
    """Return the verdict on layers with NaN or infinity, which are among the failures."""
    names = [name for name, reason in failures.items() if NOT_FINITE in reason]
    if not names:
        return None
    sentence = (
        f"{len(names)} of {reported + len(failures)} layers {'has' if len(names) == 1 else 'have'} no finite update: "
        f"{_listed(names)}; of the first, {failures[names[0]]}."
    )
    return Verdict("not-finite", tuple(names), float(len(names)), sentence)


def under_rounding(layers: Sequence[LayerReport]) -> Verdict | None:
    """Return the verdict on layers that a merge into the base's dtype would lose: at least 90 % of the squared norm.

    An entry below half a step (ulp) of the weight that it is added to is rounded away. Layers for which no base was
    given have no figures of a merge, and no verdict.
    """
    lost = {layer.name: layer.base.merge_error**2 for layer in layers if layer.base and layer.base.merge_error}
    names = [name for name, fraction in lost.items() if fraction >= _MOST_LOST]
    if not names:
        return None
    worst = max(names, key=lambda name: lost[name])
    unchanged = {layer.name: layer.base.merge_unchanged for layer in layers if layer.base}[worst]
    sentence = (
        f"In {len(names)} of {len(layers)} layers the update is under the rounding of the base's weights: "
        f"{_listed(names)}. A merge loses {lost[worst]:.1%} of its squared norm in {worst}, where {unchanged:.1%} of "
        "the weights stay as they are."
    )
    return Verdict(UNDER_ROUNDING, tuple(names), lost[worst], sentence)


def spikes(layers: Sequence[LayerReport]) -> Verdict | None:
    r"""Return the verdict on layers of which one direction has far more of the update than in the others of their kind.

    A layer is compared with those of its kind that have as many singular values, at least eight of them, by
    :math:`x = \ln(\sigma_1^2 / (N^2 - \sigma_1^2))`. It is a spike where :math:`\sigma_1^2 \ge N^2 / 2` and
    :math:`x > \mathrm{median} + \max(6 \cdot 1.4826\,\mathrm{MAD}, \ln 10)`, with the median and the median absolute
    deviation (MAD) of all of them. A layer with one singular value has :math:`\sigma_1 = N`, and says nothing.
    """
    found = [spike for alike in _alike(layers) for spike in _spikes_among(alike)]
    if not found:
        return None
    largest = max(found, key=lambda spike: spike.fraction)
    others = [spike.name for spike in found if spike is not largest]
    more = f" Others are {_listed(others)}." if others else ""
    sentence = (
        f"One direction has {largest.fraction:.1%} of the squared norm (σ₁²/N²) in {largest.name}; the median of the "
        f"{largest.alike} layers of its kind is {largest.median:.1%}, and above {largest.limit:.1%} it is a spike."
        f"{more}"
    )
    return Verdict("spike", tuple(spike.name for spike in found), largest.fraction, sentence)


class _Spike(NamedTuple):
    """A layer, its σ₁²/N², how many layers it was compared with, their median, and the limit that follows."""

    name: str
    fraction: float
    alike: int
    median: float
    limit: float


def _alike(layers: Sequence[LayerReport]) -> list[list[LayerReport]]:
    """Return the layers whose σ₁²/N² can be compared: of one kind, and with equally many singular values."""
    groups: dict[tuple[str, int], list[LayerReport]] = {}
    for layer in layers:
        if layer.norm > 0.0 and layer.singular_values.size > 1:
            groups.setdefault((kind(layer.name), layer.singular_values.size), []).append(layer)
    return [group for group in groups.values() if len(group) >= _FEWEST_OF_A_KIND]


def _spikes_among(layers: Sequence[LayerReport]) -> Iterator[_Spike]:
    # Fractions p = σ₁²/N² are crowded towards 1, where a spike is; ln(p / (1 − p)) is not.
    odds = {layer.name: -math.log(max(layer.stable_rank - 1.0, _NO_REST)) for layer in layers}
    middle = median(odds.values())
    deviation = _NORMAL * median(abs(each - middle) for each in odds.values())
    limit = max(middle + max(_DEVIATIONS * deviation, _LEAST_EXCESS), _log_odds(_LEAST_SPIKE))
    for name, each in odds.items():
        if each > limit:
            yield _Spike(name, _fraction(each), len(layers), _fraction(middle), _fraction(limit))


def _log_odds(fraction: float) -> float:
    return math.log(fraction / (1.0 - fraction))


def _fraction(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-log_odds))


def _listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many others there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else shown
