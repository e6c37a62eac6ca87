"""A budget for all layers of a model together: their spectra first, then a rank for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, RankAllocation, Spectrum, allocate_ranks, spectrum
from lowrank_core.models.layerwise import Named, Progress, collect_layers


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

    def allocate(self, spectra: Mapping[str, Spectrum]) -> RankAllocation:
        """Return the rank of each layer, as :func:`lowrank_core.allocate_ranks` allocates it."""
        return allocate_ranks(spectra, **asdict(self))


class Readable(Named, Protocol):
    """What has a name and an update, as a layer does; picklable where it goes to another process."""

    def update(self) -> NDArray[Any] | LowRankUpdate:
        """Read the update."""


def layer_spectra(
    layers: Sequence[Readable], *, executor: Executor | None = None, progress: Progress | None = None
) -> tuple[dict[str, Spectrum], dict[str, str]]:
    """Return the spectra of layers by name, with one layer in memory at a time, and why others could not be read."""
    spectra, failures = collect_layers(_spectrum, layers, executor, progress)
    return dict(spectra), failures


def _spectrum(layer: Readable) -> Spectrum:
    return spectrum(layer.update())
