"""Hugging Face's cache on this machine: folders that have a model's files one level further down, and ids of models."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lowrank_core.models.files.recognition import hub_id

__all__ = ["find_snapshot"]

_MODELS, _SNAPSHOTS, _MAIN = "models--*", "snapshots", "refs/main"


def find_snapshot(path: Path) -> Path:
    """Return the snapshot of a cached model, given its folder or its id, and any other path as it is."""
    name = hub_id(path)
    if name is not None:
        cached = _cache_folder() / f"models--{name.replace('/', '--')}"
        path = cached if cached.is_dir() else path
    if path.is_dir() and any(path.glob(_MODELS)):
        raise ValueError(
            f"{str(path)!r} is the cache of Hugging Face, with several models in it: give the folder of one of them, "
            f"as {_example(path.glob(_MODELS))}"
        )
    folder = path if path.name == _SNAPSHOTS else path / _SNAPSHOTS
    if not (folder.is_dir() and folder.parent.match(_MODELS)):
        return path
    snapshots = sorted(child for child in folder.iterdir() if child.is_dir())
    main = folder.parent / _MAIN
    current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    chosen = [snapshot for snapshot in snapshots if len(snapshots) == 1 or snapshot.name == current]
    if chosen:
        return chosen[0]
    found = f"{len(snapshots)} snapshots" if snapshots else "no snapshot: the download is incomplete"
    advice = f"; give the folder of one of them, as {_example(snapshots)}" if snapshots else ""
    raise ValueError(f"{str(path)!r} is a model in the cache of Hugging Face, with {found}{advice}")


def _cache_folder() -> Path:
    """Return the folder of cached models, as huggingface_hub finds it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _example(folders: Iterable[Path]) -> str:
    return repr(str(min(folders)))
