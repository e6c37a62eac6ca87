"""A file format of adapters as one value: how its files are recognised, read and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, scaling_rule
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.adapter import Adapter, Placement

SINGLE_FILE = ".safetensors"
"""How the name of an adapter ends that is one file."""


class AdapterFile(NamedTuple):
    """A safetensors file whose header has been read: its path, its tensors by name, and its metadata."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


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


class LossyNames(NamedTuple):
    """How a format's names for modules, which are not the base model's own, are turned into these.

    `reason` says what was lost, as "have underscores for dots". `modules` takes names and the base's modules, and
    returns the modules that names stand for; names without one are left out.
    """

    reason: str
    modules: Callable[[Iterable[str], Iterable[str]], dict[str, str]]


def read_only(name: str, *_: object) -> NoReturn:
    """Raise an error: the `place` of a format that is read and not written."""
    raise ValueError(f"{name!r} cannot be written in a format that is only read")


def as_factors(update: LowRankUpdate, dims: tuple[int, ...], _alpha: float) -> Sequence[NDArray[Any]]:
    """Return A and B in the shapes of files: (r, in[, kh, kw]) and (out, r[, 1, 1])."""
    A, B, kernel = update.A, update.B, dims[1:]
    return A.reshape(A.shape[0], *kernel), B.reshape(*B.shape, *(1 for _ in kernel[1:]))


def scale_by_rule(alpha: float, rule: str, rank: int, _dtype: np.dtype[Any]) -> StoredScale:
    """Return the scale of a file whose readers know the exact alpha and the rule."""
    return StoredScale(rank, alpha, float(scaling_rule(rule)(alpha, rank)))


def no_headers(*_: object) -> Headers:
    """Return the headers of a format whose files consist of factors alone: none."""
    return Headers()


@dataclass(frozen=True)
class Format:
    """A file format of adapters: how its files are recognised and read, and how they are written.

    Attributes
    ----------
    name, title, factors : str
        What reports call it, as "peft"; what messages call it, as "PEFT's format", and its tensors.
    recognises, read : callable
        Whether an :class:`AdapterFile` is of this format; and the
        :class:`~lowrank_core.models.formats.adapter.Adapter` that it is, none of whose factors are read yet.
    files : tuple of str
        The files in an adapter's folder, the tensors first and then the configuration. Empty for a single file.
    lossy_names : LossyNames or None
        How names of layers become the base model's; None where they are the same.
    place : callable
        ``place(name, dims, prefix, embedding)`` returns the
        :class:`~lowrank_core.models.formats.adapter.Placement` of a module; a user's prefix may be None.
    embeddings : bool
        Whether it can store updates of embeddings.
    arrange : callable
        ``arrange(update, dims, alpha)`` returns the tensors of a placement, from an update in the stored dtype.
    rules : tuple of str
        The scaling rules that its readers know; the first is taken for any other.
    scale : callable
        ``scale(alpha, rule, rank, dtype)`` returns the :class:`StoredScale` that is nearest to this request.
    headers : callable
        ``headers(stored, rule, settings, modules)`` returns the :class:`Headers` of a file from its layers' scales by
        placement, the settings to keep, and all known modules of the base.
    metadata : callable
        Returns the metadata that a file is opened with from that of the file it replaces.
    """

    name: str
    title: str
    factors: str
    recognises: Callable[[AdapterFile], bool]
    read: Callable[[AdapterFile], Adapter]
    files: tuple[str, ...] = ()
    lossy_names: LossyNames | None = None
    place: Callable[[str, tuple[int, ...], str | None, bool], Placement] = read_only
    embeddings: bool = False
    arrange: Callable[[LowRankUpdate, tuple[int, ...], float], Sequence[NDArray[Any]]] = as_factors
    rules: tuple[str, ...] = ("standard", "rslora")
    scale: Callable[[float, str, int, np.dtype[Any]], StoredScale] = scale_by_rule
    headers: Callable[[Mapping[Placement, StoredScale], str, Mapping[str, Any], Collection[str]], Headers] = no_headers
    metadata: Callable[[Mapping[str, str]], dict[str, str]] = dict

    @property
    def is_written(self) -> bool:
        """Whether adapters can be written in this format."""
        return self.place is not read_only

    @property
    def output(self) -> str:
        """What messages call an output of this format, and the name that asks for it."""
        return f"{self.title} ({'a folder' if self.files else f'a name that ends in {SINGLE_FILE}'})"
