"""Choices of rank: a number, a function of the spectrum, a budget for all layers together, or what is above noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from lowrank_core import RankAllocation, Spectrum, allocate_ranks, spectrum
from lowrank_core._dtypes import FLOATS
from lowrank_core.models.executors import Named, Progress, collect_layers
from lowrank_core.models.norms import Update
from lowrank_core.rounding_noise import RoundingNoise


@dataclass(frozen=True)
class Budget:
    """What all layers together may cost, or have to keep; a rank for each follows from their spectra.

    Attributes
    ----------
    parameters : int or None
        At most so many entries in all factors together. A layer that may not be left out, because other tensors of its
        adapter need it, gets rank 1 beside the budget where it would get none.
    variance : float or None
        Instead: the fraction of the variance to keep, with as few parameters as possible.
    max_rank : int or None
        The largest rank of any layer.
    objective : str
        "relative": the fraction of every layer's own variance counts alike. "absolute": large updates count more.
        "base": those that are large beside the weight that they are added to, as ‖Δ‖²/‖W‖²; for two checkpoints.
    megabytes : float or None
        Instead of `parameters`: the largest size of the adapter's file, in 10⁶ bytes; not for a plan.

    See Also
    --------
    lowrank_core.allocate_ranks : How the budget is divided.

    Notes
    -----
    Which rank a layer gets depends on every other layer's singular values, and the factors of all layers at their
    largest ranks need not fit into memory. So each layer is read twice: once for its singular values alone, which cost
    less than factors, and once to be truncated at the rank that is then known.
    """

    parameters: int | None = None
    variance: float | None = None
    max_rank: int | None = None
    objective: str = "relative"
    megabytes: float | None = None

    def allocate(self, spectra: Mapping[str, Spectrum]) -> RankAllocation:
        """Return the rank of each layer, as :func:`lowrank_core.allocate_ranks` allocates it.

        For the objective "base", the spectra are those over the norms of the base's weights.
        """
        objective = "absolute" if self.objective == "base" else self.objective
        return allocate_ranks(
            spectra, parameters=self.parameters, variance=self.variance, max_rank=self.max_rank, objective=objective
        )

    def in_parameters(self, item_size: int, other_bytes: int) -> Budget:
        """Return the same budget in parameters of so many bytes, in a file that has other bytes beside them."""
        if self.megabytes is None:
            return self
        if not (self.parameters is None and self.variance is None and 0 < self.megabytes < math.inf):
            raise ValueError(f"a budget has one of parameters, variance and a positive number of megabytes; got {self}")
        parameters = (int(self.megabytes * 1e6) - other_bytes) // item_size
        if parameters < 1:
            raise ValueError(
                f"{self.megabytes:g} megabytes are too small for any rank: what the file has beside factors takes up "
                f"to {other_bytes:,} bytes"
            )
        return replace(self, parameters=parameters, megabytes=None)


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

    def rank(self, noise: RoundingNoise, spectrum: Spectrum) -> int:
        """Return the rank of a layer with this spectrum, under the layer's own noise."""
        rank = (noise.one_side if self.sides == 1 else noise.two_sides).rank(spectrum)
        return rank if self.max_rank is None else min(rank, self.max_rank)


LayerRank: TypeAlias = int | Callable[[Spectrum], Any]
"""How many components of a layer to keep: a number, or a function of the layer's spectrum."""

Rank: TypeAlias = LayerRank | Mapping[str, int] | Budget | AboveNoise
"""The same for all layers; a number for each by its name; a budget for all together; or what is above rounding."""


def check_rank(rank: Rank | None, names: Iterable[str]) -> None:
    """Check, before any layer is read, that a number is a rank and that a mapping has one for each layer.

    What else a mapping names does not matter: a budget may have been allocated over more layers than are written.
    """
    if isinstance(rank, Mapping):
        missing = [name for name in names if name not in rank]
        if missing:
            raise ValueError(
                f"the ranks given have none for {len(missing)} of the layers, as {missing[0]!r}: give one for each; 0 "
                "leaves a layer out"
            )
        for count in rank.values():
            as_count(count)
    elif not (rank is None or callable(rank) or isinstance(rank, Budget | AboveNoise)):
        as_count(rank)


def rank_of(rank: LayerRank | Mapping[str, int] | AboveNoise | None, name: str) -> LayerRank | AboveNoise | None:
    """Return the rank of one layer: its entry in a mapping, else `rank` itself."""
    return rank[name] if isinstance(rank, Mapping) else rank


def keep_all(spectrum: Spectrum) -> int:
    """Return the number of components of an update, without those that are only rounding, padding or repetition."""
    largest = np.max(spectrum.values, initial=0.0)
    return int(np.count_nonzero(spectrum.values > max(spectrum.shape) * FLOATS["float64"].eps * largest))


def as_count(rank: Any) -> int:
    """Check that a number is a rank, and return it as an int."""
    count = int(rank)
    if count != rank or count < 0 or isinstance(rank, bool):
        raise ValueError(f"a rank is a whole number of at least 0; got {rank!r}")
    return count


class Readable(Named, Protocol):
    """What has a name and an update, as a layer does; picklable where it goes to another process."""

    def update(self) -> Update:
        """Read the update."""


def layer_spectra(
    layers: Sequence[Readable], *, executor: Executor | None = None, progress: Progress | None = None
) -> tuple[dict[str, Spectrum], dict[str, str]]:
    """Return the spectra of layers by name, with one layer in memory at a time, and why others could not be read."""
    spectra, failures = collect_layers(_spectrum, layers, executor, progress)
    return dict(spectra), failures


def _spectrum(layer: Readable) -> Spectrum:
    return spectrum(layer.update())


class HasBase(Named, Protocol):
    """What has a name and a weight before training, as a layer of two checkpoints does; picklable as a layer is."""

    def base_norm(self) -> float:
        """Read the weight, and return its Frobenius norm."""


def over_base(
    spectra: Mapping[str, Spectrum], layers: Sequence[HasBase], executor: Executor | None
) -> dict[str, Spectrum]:
    """Return spectra of layers, each over the norm of the layer's weight before training."""
    read = [layer for layer in layers if layer.name in spectra]
    norms, failures = collect_layers(_base_norm, read, executor)
    for name, reason in failures.items():
        raise ValueError(f"the objective 'base' needs the norm of the base's weight, and {name!r}: {reason}")
    return {
        name: replace(spectra[name], values=spectra[name].values / norm, norm=spectra[name].norm / norm)
        for name, norm in norms
    }


def _base_norm(layer: HasBase) -> float:
    norm = layer.base_norm()
    if norm == 0:
        raise ValueError("its weight in the base is zero: exclude it, or take another objective")
    return norm
