"""The files of a checkpoint that is written like another: shards, their index, and what is beside the weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_core.models.files.checkpoints import CONFIG, Checkpoint
from lowrank_core.models.files.folders import WEIGHTS
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import open_file

_SUFFIX, _INDEX = ".safetensors", ".safetensors.index.json"
# Of transformers: what a model is loaded in, under its old name and its new one, and how it was quantised.
_DTYPE_KEYS, _QUANTISATION = ("torch_dtype", "dtype"), "quantization_config"


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint to be written: the keys of each shard, the index, and what is copied beside them.

    `index` is empty where there is one shard alone. `skipped` says of files beside the weights why they are not copied.
    """

    shards: dict[str, list[str]]
    index: str
    copied: tuple[Path, ...]
    skipped: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files."""
        index = (self.index,) if self.index else ()
        return (*self.shards, *index, *(path.name for path in self.copied))


def files_like(base: Checkpoint, keys: Iterable[str]) -> CheckpointFiles:
    """Return the files of a checkpoint with the shards of its base; keys that the base does not have are in the last.

    Shards of PyTorch's and GGUF's containers become safetensors files.
    """
    shards: dict[str, list[str]] = {}
    for key, tensor in base.tensors.items():
        shards.setdefault(_shard_name(base, tensor.file), []).append(key)
    shards[max(shards)] += [key for key in keys if key not in base.tensors]
    index = ""
    if len(shards) > 1 or base.path.suffix == ".json":
        index = f"{_stem(Path(base.path.name.removesuffix('.index.json')))}{_INDEX}"
    folder = base.folder
    beside = sorted(folder.iterdir()) if folder is not None and (folder / CONFIG).is_file() else []
    skipped = {path.name: _why_skipped(path) for path in beside if not _is_part(path, base)}
    copied = tuple(path for path in beside if skipped.get(path.name) == "")
    return CheckpointFiles(dict(sorted(shards.items())), index, copied, {k: why for k, why in skipped.items() if why})


def metadata_of(base: Checkpoint, shard: str) -> dict[str, str]:
    """Return the metadata of a shard that is written like one of the base's."""
    files = (tensor.file for tensor in base.tensors.values() if tensor.memory is None)
    own = next((file for file in files if file.name == shard), None)
    # transformers refuses a file whose metadata has no format.
    return {"format": "pt"} | (open_file(own)[1] if own else {})


def write_index(path: Path, base: Checkpoint, weight_map: Mapping[str, str], total_size: int) -> None:
    """Write the index of shards, with what the base's index says of the model."""
    metadata: dict[str, Any] = {}
    if base.path.suffix == ".json":
        given = read_json(base.path).get("metadata")
        metadata = dict(given) if isinstance(given, dict) else {}
    content = {"metadata": metadata | {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_beside(files: CheckpointFiles, folder: Path, *, dtype: str | None, dequantised: bool) -> None:
    """Copy the files beside the weights; config.json with the dtype that the model is to be loaded in."""
    for path in files.copied:
        shutil.copyfile(path, folder / path.name)
    config = folder / CONFIG
    if config.is_file() and (dtype or dequantised):
        content = read_json(config)
        if dtype:
            content |= {key: dtype for key in _DTYPE_KEYS if key in content}
        if dequantised:
            content.pop(_QUANTISATION, None)
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shard_name(base: Checkpoint, file: Path) -> str:
    """Return what a shard of the base is called in safetensors."""
    stem = "model" if base.folder is None or file.suffix == ".gguf" else _stem(file)
    return f"{stem}{_SUFFIX}"


def _stem(file: Path) -> str:
    """Return the name of a file without its suffix, and "model" for the "pytorch_model" of transformers."""
    return re.sub(r"^pytorch_model(?=[-.]|$)", "model", file.stem)


def _is_part(path: Path, base: Checkpoint) -> bool:
    return path == base.path or any(path == tensor.file for tensor in base.tensors.values())


def _why_skipped(path: Path) -> str:
    if not path.is_file():
        return "a folder" if path.is_dir() else "neither a file nor a folder"
    if path.name.endswith(WEIGHTS):
        return "weights, or their index, that are not part of the checkpoint"
    return "a hidden file" if path.name.startswith(".") else ""
