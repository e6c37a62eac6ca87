"""Folders of Hugging Face's cache, which have a model's files one level further down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["find_snapshot"]

_MODELS, _SNAPSHOTS = "models--*", "snapshots"


def find_snapshot(path: Path) -> Path:
    """Return the one snapshot in the cache folder of a model, and any other path as it is."""
    if path.is_dir() and any(path.glob(_MODELS)):
        raise ValueError(
            f"{str(path)!r} is the cache of Hugging Face, with several models in it: give the folder of one of them, "
            f"as {_example(path.glob(_MODELS))}"
        )
    folder = path if path.name == _SNAPSHOTS else path / _SNAPSHOTS
    if not (folder.is_dir() and folder.parent.match(_MODELS)):
        return path
    snapshots = sorted(child for child in folder.iterdir() if child.is_dir())
    if len(snapshots) == 1:
        return snapshots[0]
    found = f"{len(snapshots)} snapshots" if snapshots else "no snapshot: the download is incomplete"
    advice = f"; give the folder of one of them, as {_example(snapshots)}" if snapshots else ""
    raise ValueError(f"{str(path)!r} is a model in the cache of Hugging Face, with {found}{advice}")


def _example(folders: Iterable[Path]) -> str:
    return repr(str(min(folders)))
