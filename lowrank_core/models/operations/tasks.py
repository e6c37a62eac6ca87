"""What is to be done: a layer to be compressed, and what is to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lowrank_core.models.files.tensors import Weight, as_matrix, weight_norm
from lowrank_core.models.formats import Format, OtherTensor, Placement
from lowrank_core.models.formats.adapter import AdapterLayer
from lowrank_core.models.formats.format import Kept
from lowrank_core.models.norms import Update
from lowrank_core.models.operations.factoring import FactorEncoding
from lowrank_core.models.operations.rank_choice import Rank
from lowrank_core.rounding_noise import RoundingNoise


def no_base_norm() -> float:
    """Refuse: nothing is known of the weights that an adapter was trained from."""
    raise ValueError(
        "it is a layer of an adapter, and no weight of its name and shape is known: give the base that it was trained "
        "from, or take another objective"
    )


def base_norm_of(layer: AdapterLayer) -> Callable[[], float]:
    """Return what reads the norm of the weight that a layer's update is added to, where that is known."""
    weight = layer.weight
    if weight is None or not weight.is_floating:
        return no_base_norm
    shape = as_matrix(weight.shape)
    return partial(weight_norm, weight) if layer.shape in (shape, shape[::-1]) else no_base_norm


@dataclass(frozen=True, slots=True)
class Task:
    """One layer to be compressed; picklable, because it may run in another process.

    `shape`, `dtype` and `tensors` describe what is compressed. `update` reads it, as the transpose of its module's map
    where `transposed`, and `base_norm` the norm of the weight before training, where that is known. Of two stored
    weights, which are to be read once, `update_and_base_norm` reads both of these, and `base_update_and_noise` the
    weight before training, the update and its rounding noise. `biases` are multiplied with the layer's scale by
    readers, and are divided by it here.
    `alpha` is the layer's own, where not all have the same. `tolerance` is that of a truncation to a rank.
    """

    placement: Placement
    shape: tuple[int, int]
    dtype: str
    tensors: tuple[Weight, ...]
    update: Callable[[], Update]
    transposed: bool = False
    biases: tuple[OtherTensor, ...] = ()
    min_rank: int = 0
    tolerance: float | None = None
    alpha: float | None = None
    update_and_base_norm: Callable[[], tuple[NDArray[Any], float]] | None = None
    base_update_and_noise: Callable[[], tuple[NDArray[Any], NDArray[Any], RoundingNoise]] | None = None
    base_norm: Callable[[], float] = no_base_norm

    def read(self) -> tuple[Update, float | None]:
        """Read the update, and the norm of the weight before training where that is known."""
        if self.update_and_base_norm is not None:
            return self.update_and_base_norm()
        return self.update(), None if self.base_norm is no_base_norm else self.base_norm()

    @property
    def name(self) -> str:
        """The layer's name in reports."""
        return self.placement.name


@dataclass(frozen=True)
class Destination:
    """What is to be written, and how.

    `ranks` has a path for each adapter, and its rank; None writes factors as they are. `kept` is what an adapter takes
    over from the inputs; `copied` are tensors to copy as they are. `in_memory` says that the paths are but names.
    """

    ranks: Mapping[Path, Rank | None]
    format: Format
    encoding: FactorEncoding
    dry_run: bool
    kept: Kept
    copied: tuple[OtherTensor, ...] = ()
    in_memory: bool = False
