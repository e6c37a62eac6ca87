"""A file format of adapters as one value: how its files are recognised, read and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, scaling_rule
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.streams import Stream, stream_tensors
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.adapter import Adapter, Placement
from lowrank_core.models.formats.experts import experts_last

SINGLE_FILE = ".safetensors"
"""How the name of most adapters ends that are one file."""

SUFFIXES = (SINGLE_FILE, ".gguf")
"""How names of single files end; any other name of an output is that of a folder."""


class AdapterFile(NamedTuple):
    """A file whose header has been read: its path, its tensors by name, and its metadata.

    Of one in memory, the path is what it is called, and `given_config` its configuration, which may be empty.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: dict[str, str]
    given_config: dict[str, Any] | None = None

    @property
    def in_memory(self) -> bool:
        """Whether there is no file."""
        return self.given_config is not None

    def has_config(self, name: str) -> bool:
        """Whether there is a configuration of this name beside the tensors."""
        return bool(self.given_config) if self.in_memory else self.path.with_name(name).is_file()

    def read_config(self, name: str) -> dict[str, Any]:
        """Read the configuration of this name beside the tensors; nothing where there is none."""
        if self.in_memory or not self.has_config(name):
            return self.given_config or {}
        return read_json(self.path.with_name(name))


class StoredScale(NamedTuple):
    """What a file says of one layer: the rank of its stored factors, its alpha, and the scale that a reader applies."""

    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True)
class Headers:
    """What a file says of all its layers: its configuration, more metadata, and what a user of it should know."""

    config: dict[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Kept(NamedTuple):
    """What a file keeps of those that it is made from: settings, metadata, and all known modules of the base."""

    settings: Mapping[str, Any] = {}
    metadata: Mapping[str, str] = {}
    modules: Collection[str] = ()


class Documented(NamedTuple):
    """What the documentation says of a format: who writes it, its layout, a layer's scale, and where that is from."""

    writers: str
    layout: str
    scale: str
    source: str


class LossyNames(NamedTuple):
    """How a format's names for modules, where they are not the base model's own, are turned into these.

    `applies` says of which modules, as the file names them, that is so, and `reason` what was lost, as "have
    underscores for dots". `modules` takes names and the base's modules, and returns the modules that names stand for;
    names without one are left out.
    """

    reason: str
    applies: Callable[[str], bool]
    modules: Callable[[Collection[str], Collection[str]], dict[str, str]]


def as_factors(update: LowRankUpdate, placement: Placement, alpha: float) -> Sequence[NDArray[Any]]:
    """Return A and B in the shapes of files, (r, in[, kh, kw]) and (out, r[, 1, 1]), and alpha where it has a name."""
    if placement.experts:
        return experts_last(update)
    A, B, kernel = update.A, update.B, placement.dims[1:]
    factors = A.reshape(A.shape[0], *kernel), B.reshape(*B.shape, *(1 for _ in kernel[1:]))
    return factors if len(placement.keys) == 2 else (*factors, np.array(alpha, B.dtype))


def scale_by_rule(alpha: float, rule: str, rank: int, _dtype: np.dtype[Any]) -> StoredScale:
    """Return the scale of a file whose readers know the exact alpha and the rule."""
    return StoredScale(rank, alpha, float(scaling_rule(rule)(alpha, rank)))


def applied_scale(alpha: float, rule: str, rank: int) -> float:
    """Return the scale that readers apply under a stored alpha, which may be 0 or negative."""
    return math.copysign(float(scaling_rule(rule)(abs(alpha), rank)), alpha) if alpha else 0.0


def their_own_names(placements: Iterable[Placement]) -> dict[Placement, Placement]:
    """Return each placement as it is, whatever else is in the file."""
    return {placement: placement for placement in placements}


def any_ranks(_: object) -> bool:
    """Return that layers may have ranks of their own."""
    return False


def no_headers(*_: object) -> Headers:
    """Return the headers of a format whose files consist of factors alone: none."""
    return Headers()


def as_they_are(kept: Kept) -> dict[str, str]:
    """Return the metadata of the file that another one replaces."""
    return dict(kept.metadata)


@dataclass(frozen=True)
class Format:
    """A file format of adapters: how its files are recognised and read, and how they are written.

    Attributes
    ----------
    name, title, factors : str
        What reports call it, as "peft"; what messages call it, as "PEFT's format", and its tensors.
    documented : Documented or None
        What the list of formats in the documentation says of it; without it, it is not in the list.
    recognises, read : callable
        Whether an :class:`AdapterFile` has layers of this format; and the
        :class:`~lowrank_core.models.formats.adapter.Adapter` that they are, none of whose factors are read yet.
    files : tuple of str
        The files in an adapter's folder, the tensors first and then the configuration. Empty for a single file.
    suffix : str
        How the name of a single file ends.
    lossy_names : LossyNames or None
        How names of layers become the base model's; None where they always are.
    place : callable or None
        ``place(name, dims, prefix, embedding)`` returns the
        :class:`~lowrank_core.models.formats.adapter.Placement` of a module; a user's prefix may be None. Without it,
        only layers that were read in this format are written.
    place_parameter : callable or None
        ``place_parameter(key, dims, prefix, expert, experts)`` returns the placement of a parameter that is targeted by
        this name, or of one of the `experts` matrices of a stack. Without it, the format does not have stacks.
    names_components : bool
        Whether names begin with the component of a pipeline that has the module, as "transformer".
    embeddings : bool
        Whether it can store updates of embeddings.
    one_rank : callable
        Whether layers at these placements have one rank and one scale, so that factors are padded.
    beside : callable
        ``beside(placements)`` returns each as it is in a file with the others, where names of tensors depend on them.
    arrange : callable
        ``arrange(update, placement, alpha)`` returns the tensors of a placement, from an update in the stored dtype;
        of a placement with experts, from a batch of their updates.
    rules : tuple of str
        The scaling rules that its readers know; the first is taken for any other.
    scale : callable
        ``scale(alpha, rule, rank, dtype)`` returns the :class:`StoredScale` that is nearest to this request.
    headers : callable
        ``headers(stored, rule, kept)`` returns the :class:`Headers` of a file from its layers' scales by placement and
        what is :class:`Kept`.
    metadata : callable
        Returns the metadata that a file is opened with from what is :class:`Kept`.
    stream : callable
        ``stream(path, keys, metadata)`` is the context in which tensors of these names are written.
    """

    name: str
    title: str
    factors: str
    recognises: Callable[[AdapterFile], bool]
    read: Callable[[AdapterFile], Adapter]
    documented: Documented | None = None
    files: tuple[str, ...] = ()
    suffix: str = SINGLE_FILE
    lossy_names: LossyNames | None = None
    place: Callable[[str, tuple[int, ...], str | None, bool], Placement] | None = None
    place_parameter: Callable[[str, tuple[int, ...], str | None, int, int], Placement] | None = None
    names_components: bool = False
    embeddings: bool = False
    one_rank: Callable[[Iterable[Placement]], bool] = any_ranks
    beside: Callable[[Iterable[Placement]], dict[Placement, Placement]] = their_own_names
    arrange: Callable[[LowRankUpdate, Placement, float], Sequence[NDArray[Any]]] = as_factors
    rules: tuple[str, ...] = ("standard", "rslora")
    scale: Callable[[float, str, int, np.dtype[Any]], StoredScale] = scale_by_rule
    headers: Callable[[Mapping[Placement, StoredScale], str, Kept], Headers] = no_headers
    metadata: Callable[[Kept], dict[str, str]] = as_they_are
    stream: Callable[[Path, Iterable[str], Mapping[str, str]], AbstractContextManager[Stream]] = stream_tensors

    def names_a(self, path: Path) -> bool:
        """Whether a path is named as an adapter of this format: a folder, or a file with its suffix."""
        return path.suffix not in SUFFIXES if self.files else path.suffix == self.suffix

    def placement(self, name: str, dims: tuple[int, ...], prefix: str | None, embedding: bool) -> Placement:
        """Return where a module is stored, as `place` does; an error where the format takes no other's layers."""
        if self.place is None:
            raise ValueError(f"{self.title} is written for layers that were read from it, and not for others")
        return self.place(name, dims, prefix, embedding)

    def is_lossy(self, placement: Placement) -> bool:
        """Whether the name of a layer is not the base model's own."""
        return self.lossy_names is not None and self.lossy_names.applies(placement.module)

    @property
    def output(self) -> str:
        """What messages call an output of this format, and the name that asks for it."""
        return f"{self.title} ({'a folder' if self.files else f'a name that ends in {self.suffix}'})"
