"""A budget for all layers of a model together: their spectra first, then a rank for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lowrank_core import RankAllocation, Spectrum, allocate_ranks, spectrum
from lowrank_core.models.layerwise import Progress, collect_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from typing import Any

    from numpy.typing import NDArray

    from lowrank_core import LowRankUpdate


@dataclass(frozen=True)
class Budget:
    """
    What all layers together may cost, or have to keep; a rank for each follows from their spectra.

    Attributes
    ----------
    parameters : int or None
        At most so many entries in all factors together. A layer that may not be left out, because other tensors of its
        adapter need it, gets rank 1 beside the budget where it would get none.
    variance : float or None
        Instead: the share of the variance to keep, with as few parameters as possible.
    max_rank : int or None
        The largest rank of any layer.
    objective : str
        "relative": every layer's own share counts alike. "absolute": large updates count more.

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
        """
        Share the budget among layers.

        Parameters
        ----------
        spectra : mapping of str to Spectrum
            Those of all layers.

        Returns
        -------
        RankAllocation
            As :func:`lowrank_core.allocate_ranks` gives it.

        Raises
        ------
        ValueError
            If the budget cannot be met.
        """
        return allocate_ranks(
            spectra,
            parameters=self.parameters,
            variance=self.variance,
            max_rank=self.max_rank,
            objective=self.objective,
        )


class Source(NamedTuple):
    """A layer's name, and what reads its update; picklable."""

    name: str
    update: Callable[[], NDArray[Any] | LowRankUpdate]


def layer_spectra(
    sources: Sequence[Source],
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Spectrum], dict[str, str]]:
    """
    Find the spectrum of every layer, with one of them in memory at a time.

    Parameters
    ----------
    sources : sequence of Source
        The layers.
    executor : concurrent.futures.Executor, optional
        Where they are read and decomposed. None: here.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each.

    Returns
    -------
    spectra : dict of str to Spectrum
        Of the layers that could be read, in their order.
    failures : dict of str to str
        Those that could not, and why.
    """
    spectra, failures = collect_layers(_spectrum, sources, executor, progress)
    return dict(spectra), failures


def _spectrum(source: Source) -> Spectrum:
    return spectrum(source.update())
