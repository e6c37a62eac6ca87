"""What of a layer's update cannot be told from the rounding of its stored weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowrank_core import Spectrum
from lowrank_core._dtypes import FLOATS
from lowrank_core.models.results import to_json
from lowrank_core.rounding_noise import RoundingNoise

COARSE_DTYPES = tuple(name for name, dtype in FLOATS.items() if dtype.eps > FLOATS["float32"].eps)
"""The stored dtypes whose steps are of the size of fine-tuning updates."""


@dataclass(frozen=True)
class LayerNoise:
    """What of one layer's update cannot be told from the rounding of its stored weights.

    Attributes
    ----------
    noise : RoundingNoise
        The noise, its edge, and whether its model applies.
    rank_above : tuple of int
        The number of singular values above the edge, where one side was rounded and where both were.
    variance_below : tuple of float
        The fraction of the update's variance in the others, for each of the two.
    """

    noise: RoundingNoise
    rank_above: tuple[int, int]
    variance_below: tuple[float, float]


def layer_noise(noise: RoundingNoise, spectrum: Spectrum) -> LayerNoise:
    """Compare the spectrum of two weights' difference with the noise of their rounding, for one side and for two."""
    one, two = noise.one_side, noise.two_sides
    return LayerNoise(
        noise=noise,
        rank_above=(one.rank(spectrum), two.rank(spectrum)),
        variance_below=(one.variance_below(spectrum), two.variance_below(spectrum)),
    )


@to_json.register(LayerNoise)
def noise_columns(layer: LayerNoise) -> dict[str, Any]:
    """Return the figures by the names of their columns."""
    noise = layer.noise
    columns: dict[str, Any] = {"rounding_applies": noise.applies, "unchanged": noise.unchanged}
    for index, (sides, side) in enumerate((("one_side", noise.one_side), ("two_sides", noise.two_sides))):
        columns |= {
            f"rounding_noise_{sides}": side.std,
            f"rounding_edge_{sides}": side.edge,
            f"rank_above_rounding_{sides}": layer.rank_above[index],
            f"variance_below_rounding_{sides}": layer.variance_below[index],
        }
    return columns
