"""What checkpoints and adapters are given as: paths, or what is in memory already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

__all__ = ["Model", "Opened", "Source", "is_path", "name_of", "names_of"]


class Model(Protocol):
    """A model that has its weights in memory, as a ``torch.nn.Module`` does."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the weights by name."""


class Opened(Protocol):
    """A checkpoint or an adapter that was opened before."""

    @property
    def path(self) -> Path:
        """Where it is, or what it is called."""


Source: TypeAlias = str | PathLike[str] | Mapping[str, Any] | Model | Opened
"""A path; a mapping of names to arrays or tensors; a model that has one; or what was opened before."""


def is_path(source: Source) -> TypeGuard[str | PathLike[str]]:
    """Whether a source is a path."""
    return isinstance(source, str | PathLike)


def name_of(source: Source) -> str:
    """Return what reports call a source: its path, or "state_dict", or the class of a model."""
    if isinstance(source, str | PathLike):
        return str(source)
    if isinstance(source, Mapping):
        return "state_dict"
    path = getattr(source, "path", None)
    return str(path) if isinstance(path, Path) else type(source).__name__


def names_of(sources: Iterable[Source]) -> list[str]:
    """Return what reports call each source; of several in memory with one name, those after the first have a number.

    Examples
    --------
    >>> names_of([{}, "style.safetensors", {}])
    ['state_dict', 'style.safetensors', 'state_dict (2)']
    """
    names: list[str] = []
    for source in sources:
        name = name_of(source)
        count = 1
        while not is_path(source) and name in names:
            count += 1
            name = f"{name_of(source)} ({count})"
        names.append(name)
    return names
