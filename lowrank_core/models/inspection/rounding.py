"""What storing two checkpoints has added to their difference: rounding that looks like an update of high rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lowrank_core._dtypes import FLOATS
from lowrank_core.rounding_noise import NoiseLevel, RoundingNoise

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_core import Spectrum

COARSE = tuple(name for name, dtype in FLOATS.items() if dtype.eps > FLOATS["float32"].eps)
"""The stored dtypes whose steps are of the size of fine-tuning updates."""


@dataclass(frozen=True)
class AboveNoise:
    """
    Keep the components of each layer that stand above the rounding of its stored weights.

    Attributes
    ----------
    sides : int
        1: the tuning started from the base as it is stored. 2: from a finer copy, so that both sides were rounded.
    max_rank : int or None
        The largest rank of any layer.

    Raises
    ------
    ValueError
        If the number of sides is none of these.
    """

    sides: int = 1
    max_rank: int | None = None

    def __post_init__(self) -> None:
        if self.sides not in {1, 2}:
            raise ValueError(f"one side was rounded, the tuned one, or two, both of them; got {self.sides!r}")

    def rule(self, noise: RoundingNoise) -> Callable[[Spectrum], int]:
        """
        Make the rule that gives one layer's rank.

        Parameters
        ----------
        noise : RoundingNoise
            The layer's.

        Returns
        -------
        callable
            Of the layer's spectrum.
        """
        return partial(_rank_above, noise.one_side if self.sides == 1 else noise.two_sides, self.max_rank)


@dataclass(frozen=True)
class LayerRounding:
    """
    What of one layer's update cannot be told from the rounding of its stored weights.

    Attributes
    ----------
    noise : RoundingNoise
        The noise, its edge, and whether its model holds.
    rank_above : tuple of int
        The number of singular values above the edge, where one side was rounded and where both were.
    variance_below : tuple of float
        The share of the update's variance in the others, for each of the two.
    """

    noise: RoundingNoise
    rank_above: tuple[int, int]
    variance_below: tuple[float, float]


def layer_rounding(noise: RoundingNoise, found: Spectrum) -> LayerRounding:
    """
    Hold a layer's spectrum against its rounding noise.

    Parameters
    ----------
    noise : RoundingNoise
        Of its two stored weights.
    found : Spectrum
        Of their difference.

    Returns
    -------
    LayerRounding
        For one rounded side and for two.
    """
    one, two = noise.one_side, noise.two_sides
    return LayerRounding(
        noise=noise,
        rank_above=(one.rank(found), two.rank(found)),
        variance_below=(one.variance_below(found), two.variance_below(found)),
    )


def rounding_json(rounding: LayerRounding) -> dict[str, Any]:
    """
    Turn a layer's rounding into plain JSON.

    Parameters
    ----------
    rounding : LayerRounding
        A layer's.

    Returns
    -------
    dict
        Every figure, flat.
    """
    noise = rounding.noise
    figures: dict[str, Any] = {"rounding_holds": noise.applies, "unchanged": noise.unchanged}
    for place, (sides, side) in enumerate((("one_side", noise.one_side), ("two_sides", noise.two_sides))):
        figures |= {
            f"rounding_noise_{sides}": side.std,
            f"rounding_edge_{sides}": side.edge,
            f"rank_above_rounding_{sides}": rounding.rank_above[place],
            f"variance_below_rounding_{sides}": rounding.variance_below[place],
        }
    return figures


def _rank_above(level: NoiseLevel, max_rank: int | None, found: Spectrum) -> int:
    rank = level.rank(found)
    return rank if max_rank is None else min(rank, max_rank)
