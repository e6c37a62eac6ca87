"""What a user of written factors should know: that they are too large, too coarse, or of rounding alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from lowrank_core._dtypes import FLOATS
from lowrank_core.models.operations.compression import LayerCompression
from lowrank_core.models.operations.factoring import Factored, FactorEncoding, wider_than
from lowrank_core.models.operations.rank_choice import AboveNoise, Rank
from lowrank_core.models.operations.tasks import Task


class Stored(Protocol):
    """A layer, and the number of entries of its factors."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of its update."""

    @property
    def parameters(self) -> int:
        """How many entries its factors have: r·(m + n)."""


def size_warnings(layers: Sequence[Stored]) -> Iterator[str]:
    """Yield a warning where factors are larger than the matrices that they stand for."""
    larger = [layer for layer in layers if layer.parameters > math.prod(layer.shape)]
    if larger:
        worst = max(larger, key=lambda layer: layer.parameters / math.prod(layer.shape))
        (m, n), entries = worst.shape, math.prod(worst.shape)
        most = entries // (m + n)
        advice = f"Up to rank {most} they are smaller; or leave" if most else "Leave"
        yield (
            f"the factors of {len(larger)} of {len(layers)} layers are larger than the matrices whose update they are, "
            f"r·(m + n) > m·n: those of {worst.name!r} have rank {worst.parameters // (m + n)} and "
            f"{worst.parameters / entries:.3g} times its {m} × {n} entries. {advice} such layers out (--exclude)"
        )


def storage_warnings(layers: Sequence[LayerCompression], encoding: FactorEncoding) -> Iterator[str]:
    """Yield a warning where the stored dtype loses more than its rounding: numbers too small for it."""
    # Rounding each entry within u = eps/2 moves the product by 2u·√(σ₁·Σσ) at most, which is within
    # eps·r^¼·‖Δ_r‖. More than that is a factor with entries below the smallest normal number of its dtype.
    # Twice that, and no less than what the float64 of the measurement itself loses.
    bound = 2 * max(FLOATS[encoding.dtype].eps, 1e-14)
    narrow = [layer for layer in layers if layer.storage_error > bound * layer.rank**0.25]
    if narrow:
        worst = max(narrow, key=lambda layer: layer.storage_error)
        yield (
            f"{encoding.dtype} is too narrow for the factors of {len(narrow)} of {len(layers)} layers: of "
            f"{worst.name!r} it loses {worst.storage_error:.2g} of the norm to numbers too small for it. Store them in "
            f"{wider_than(encoding.dtype)}"
        )


def noise_warnings(layers: Sequence[tuple[Task, Factored]], rank: Rank | None) -> Iterator[str]:
    """Yield warnings where what is kept may be the rounding of the weights that were subtracted."""
    vague = [(task, factored.noise) for task, factored in layers if factored.noise and not factored.noise.applies]
    if vague:
        task, noise = max(vague, key=lambda pair: pair[1].unchanged)
        yield (
            f"rounding and update cannot be told apart in {len(vague)} of {len(layers)} layers: most entries of them "
            f"changed by less than a step of the stored numbers ({noise.unchanged:.0%} of {task.name!r} not at "
            "all), so that what is kept of them may be neither. Take weights stored in float32, or a rank of your own"
        )
    coarse = [task for task, factored in layers if factored.noise and factored.noise.base_is_coarser]
    if coarse and isinstance(rank, AboveNoise) and rank.sides == 1:
        yield (
            f"the base is stored more coarsely than the tuned checkpoint in {len(coarse)} of {len(layers)} layers, as "
            f"{coarse[0].name!r} ({coarse[0].dtype}): if the tuning started from a finer copy of the base, what is "
            "kept is mostly the base's rounding. Say then that both sides were rounded (--sides 2)"
        )
