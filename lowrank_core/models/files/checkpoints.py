"""Model checkpoints: which weights there are, and in which files; none of them read yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowrank_core._results import count
from lowrank_core.models.files.folders import PIPELINE, component_folder, find_components, find_weights, is_pipeline
from lowrank_core.models.files.hub_cache import find_snapshot
from lowrank_core.models.files.in_memory import config_of, state_of, tensors_of
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.quantised import combine_quantised
from lowrank_core.models.files.scaled_bytes import SCALED_DTYPES
from lowrank_core.models.files.tensors import StoredTensor, open_file
from lowrank_core.models.sources import Source, is_path, name_of

CONFIG = "config.json"
"""What a folder has in which transformers saved a model."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights on disk, single or sharded, none of them read yet; or in memory.

    Attributes
    ----------
    path : Path
        The file, or the index of a sharded checkpoint or of a pipeline; of weights in memory, what they are called.
    tensors : dict of str to StoredTensor
        Every tensor by name. Weights that the model ties together appear once, under the name they were stored by. A
        quantised weight is one tensor, which is dequantised as it is read; its scales are not tensors of their own.
    components : tuple of str
        Of a pipeline: what names begin with.
    given_config : dict or None
        Of weights in memory: what the config.json of their model would say, as far as it is known. None for files.
    """

    path: Path
    tensors: dict[str, StoredTensor] = field(repr=False)
    components: tuple[str, ...] = ()
    given_config: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        """The folder that the files are in; None for weights in memory."""
        return self.path.parent if self.given_config is None else None

    def read_config(self) -> dict[str, Any]:
        """Read what config.json says of the model; nothing where there is none."""
        if self.folder is None:
            return self.given_config or {}
        path = self.folder / CONFIG
        return read_json(path) if path.is_file() else {}


def open_checkpoint(source: Source, *, component: str | None = None) -> Checkpoint:
    """Open a model's weights: read which tensors there are, but no weight yet.

    Parameters
    ----------
    source : path-like, mapping, model or Checkpoint
        A safetensors, GGUF or PyTorch file, the index of a sharded checkpoint ("model.safetensors.index.json"), a
        folder with one of these, a pipeline of diffusers, a model's folder in the cache of Hugging Face, or the id of
        a model that is there, as "org/name". Or weights in memory: a mapping of names to NumPy arrays or PyTorch
        tensors, as ``model.state_dict()`` returns it, or the model itself; of one that PEFT has wrapped, the base's
        weights. They are neither copied nor modified.
    component : str, optional
        The component of a pipeline, as "transformer". None: all of them, with its name before that of each tensor.

    Returns
    -------
    Checkpoint
        Its tensors by name.

    Raises
    ------
    FileNotFoundError
        If the path, or a shard that the index names, is missing.
    ValueError
        If it is damaged or ambiguous, a pickle of more than tensors, or a shard's name is more than a plain file name;
        if an index does not list all tensors of its shards; if a tensor in memory is sparse, masked, on meta or on an
        accelerator.

    See Also
    --------
    lowrank_core.models.pair_checkpoints : Match the weights of two checkpoints.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import open_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"layer.weight": np.ones((2, 3), np.float32)}, pathlib.Path(folder, "model.safetensors"))
    ...     open_checkpoint(folder).tensors["layer.weight"].shape
    (2, 3)
    >>> open_checkpoint({"layer.weight": np.ones((2, 3))}).tensors["layer.weight"].dtype
    'float64'
    """
    if not is_path(source):
        return _in_memory(source, component)
    location = find_snapshot(Path(source))
    if component is not None:
        location = component_folder(location, component)
    if is_pipeline(location):
        return _open_pipeline(location)
    if location.is_dir():
        location = find_weights(location)
    tensors = _open_shards(location) if location.suffix == ".json" else open_file(location)[0]
    return _combined(Checkpoint(location, tensors))


def _in_memory(source: Source, component: str | None) -> Checkpoint:
    """Return weights in memory as a checkpoint."""
    if component is not None:
        raise ValueError(
            f"a component (--component) is one of the models in the folder of a pipeline, and {name_of(source)} is in "
            "memory: give the component itself"
        )
    if isinstance(source, Checkpoint):
        return source
    name = name_of(source)
    tensors = tensors_of(state_of(source), name)
    if not tensors:
        raise ValueError(f"{name} has no weights: give a mapping of names to arrays or tensors, or a model with some")
    return _combined(Checkpoint(Path(name), tensors, given_config=config_of(source)))


def _combined(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with each quantised weight as one tensor."""
    has_scales = any(tensor.dtype in SCALED_DTYPES for tensor in checkpoint.tensors.values())
    block = _block_shape(checkpoint.read_config()) if has_scales else None
    return replace(checkpoint, tensors=combine_quantised(checkpoint.tensors, block))


def _open_pipeline(folder: Path) -> Checkpoint:
    """Open all components of a pipeline as one checkpoint, with the name of its component before that of a tensor."""
    components = {name: open_checkpoint(weights) for name, weights in find_components(folder).items()}
    tensors = {f"{name}.{key}": tensor for name, each in components.items() for key, tensor in each.tensors.items()}
    return Checkpoint(folder / PIPELINE, tensors, tuple(components))


def module_name(key: str) -> str:
    """Return the name of the module that a weight belongs to: the key without a final ".weight"."""
    return key.removesuffix(".weight")


def _block_shape(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the shape of the blocks of scales that a model's configuration names, None where there is none."""
    quantisation = config.get("quantization_config")
    shape = quantisation.get("weight_block_size") if isinstance(quantisation, dict) else None
    if not isinstance(shape, list) or not all(type(length) is int and length > 0 for length in shape):
        return None
    return tuple(shape)


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
    # A loader takes all of a shard, so that the model is not that of the index alone.
    unlisted = [key for shard in shards.values() for key in shard if key not in weight_map]
    if unlisted:
        raise ValueError(
            f"{str(index)!r} does not list {count(len(unlisted), 'tensor')} of its shards, as {unlisted[0]!r}: index "
            "and shards are not of one save"
        )
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
