"""The rank that keeps what is above the rounding noise of two checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lowrank_core import Spectrum
from lowrank_core.rounding_noise import NoiseLevel, RoundingNoise


@dataclass(frozen=True)
class AboveNoise:
    """Keep the components of each layer that are above the rounding noise of its stored weights.

    Attributes
    ----------
    sides : int
        1: the tuning started from the base as it is stored. 2: from a finer copy, so that both sides were rounded.
    max_rank : int or None
        The largest rank of any layer.

    Raises
    ------
    ValueError
        If the number of sides is not 1 or 2.

    See Also
    --------
    lowrank_core.rounding_noise.rounding_noise : The noise, and where its singular values end.
    """

    sides: int = 1
    max_rank: int | None = None

    def __post_init__(self) -> None:
        if self.sides not in {1, 2}:
            raise ValueError(f"one side was rounded, the tuned one, or two, both of them; got {self.sides!r}")

    def rule(self, noise: RoundingNoise) -> Callable[[Spectrum], int]:
        """Return the function of a layer's spectrum that chooses its rank, under the layer's own noise."""
        return partial(_rank_above, noise.one_side if self.sides == 1 else noise.two_sides, self.max_rank)


def _rank_above(level: NoiseLevel, max_rank: int | None, spectrum: Spectrum) -> int:
    rank = level.rank(spectrum)
    return rank if max_rank is None else min(rank, max_rank)
