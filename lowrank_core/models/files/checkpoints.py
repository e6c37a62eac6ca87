"""Model checkpoints: which weights there are, and in which files; none of them read yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from lowrank_core.models.files.hub_cache import find_snapshot
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.quantised import join_quantised
from lowrank_core.models.files.tensors import StoredTensor, open_file

_INDEX = ".index.json"
_MODELS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
# What a trainer saves beside the weights.
_OF_TRAINING = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)\.(bin|pt)|rng_state\S*\.pth")


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights on disk, single or sharded, none of them read yet.

    Attributes
    ----------
    path : Path
        The file, or the index of a sharded checkpoint.
    tensors : dict of str to StoredTensor
        Every tensor by name. Weights that the model ties together appear once, under the name they were stored by. A
        quantised weight is one tensor, which is dequantised as it is read; its scales are not tensors of their own.
    """

    path: Path
    tensors: dict[str, StoredTensor]


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Open a model's weights: read which tensors there are, but no weight yet.

    Parameters
    ----------
    path : path-like
        A safetensors, GGUF or PyTorch file, the index of a sharded checkpoint ("model.safetensors.index.json"), or a
        folder with one of these.

    Returns
    -------
    Checkpoint
        Its tensors by name.

    Raises
    ------
    FileNotFoundError
        If the path, or a shard that the index names, is missing.
    ValueError
        If it is damaged or ambiguous, a pickle of more than tensors, or a shard's name is more than a plain file name.

    See Also
    --------
    lowrank_core.models.pair_checkpoints : Match the weights of two checkpoints.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.files.checkpoints import open_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"layer.weight": np.ones((2, 3), np.float32)}, pathlib.Path(folder, "model.safetensors"))
    ...     open_checkpoint(folder).tensors["layer.weight"].shape
    (2, 3)
    """
    location = find_snapshot(Path(path))
    if location.is_dir():
        location = _find_weights(location)
    tensors = _open_shards(location) if location.suffix == ".json" else open_file(location)[0]
    return Checkpoint(location, join_quantised(tensors, _block_shape(location.parent / "config.json")))


def module_name(key: str) -> str:
    """Return the name of the module that a weight belongs to: the key without a final ".weight"."""
    return key.removesuffix(".weight")


def _block_shape(config: Path) -> tuple[int, ...] | None:
    """Return the shape of the blocks of scales that a model's configuration names, None where there is none."""
    if not config.is_file():
        return None
    quantisation = read_json(config).get("quantization_config")
    shape = quantisation.get("weight_block_size") if isinstance(quantisation, dict) else None
    if not isinstance(shape, list) or not all(type(length) is int and length > 0 for length in shape):
        return None
    return tuple(shape)


def _find_weights(folder: Path) -> Path:
    for name in (f"{stem}{ending}" for stem, suffix in _MODELS for ending in (suffix, suffix + _INDEX)):
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.is_file() and not _OF_TRAINING.fullmatch(file.name))
    for endings in ((".safetensors" + _INDEX,), (".safetensors",), (".bin" + _INDEX,), _OTHER_SUFFIXES):
        candidates = [file for file in files if file.name.endswith(endings)]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(file.name for file in candidates)
            raise ValueError(f"{str(folder)!r} has several checkpoints ({names}): give the path of one of them")
    raise FileNotFoundError(
        f"no model.safetensors and no model.safetensors{_INDEX} in {str(folder)!r}, nor any other weights: give a "
        "safetensors, GGUF or PyTorch file, the index of a sharded checkpoint, or the folder of one of these"
    )


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{str(index)!r} has no weight_map from tensor names to shards: it is not an index of shards")
    shards = {shard: _open_shard(index, shard) for shard in dict.fromkeys(map(str, weight_map.values()))}
    tensors = {}
    for key, shard in sorted(weight_map.items()):
        if key not in shards[str(shard)]:
            raise ValueError(
                f"{str(index)!r} says that {key!r} is in {shard!r}, but it is not: index and shards are not of one save"
            )
        tensors[key] = shards[str(shard)][key]
    return tensors


def _open_shard(index: Path, shard: str) -> dict[str, StoredTensor]:
    # A name with a path in it could make the index read any file of the reader's.
    if shard in ("", ".", "..") or any(mark in shard for mark in "/\\:\0"):
        raise ValueError(
            f"{str(index)!r} names the shard {shard!r}: a shard is a plain file name beside its index, and anything "
            "with a path in it is refused"
        )
    # Compared with the names of the folder: a path too long for the file system would be an error of its own.
    if shard not in {file.name for file in index.parent.iterdir()}:
        raise FileNotFoundError(
            f"{str(index)!r} names the shard {shard!r}, which is not beside it: the download is incomplete"
        )
    return open_file(index.parent / shard)[0]
