"""LoRA adapters as files, PEFT's and kohya's: which of them it is, and where its parts are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_core.models.files.tensors import open_file, refuse_pickle
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, OtherTensor
from lowrank_core.models.formats.kohya import is_kohya, open_kohya, other_kind
from lowrank_core.models.formats.peft import PEFT_CONFIG, PEFT_WEIGHTS, is_peft, open_peft, read_peft_config

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Adapter", "AdapterLayer", "OtherTensor", "open_adapter"]


def open_adapter(path: str | PathLike[str]) -> Adapter:
    """
    Open a LoRA adapter: read its configuration and what its file holds, but no factor yet.

    Parameters
    ----------
    path : path-like
        A PEFT adapter's folder (or the folder above, if it holds one adapter alone), its adapter_model.safetensors,
        or a kohya safetensors file. Which of them it is, is recognised from the content.

    Returns
    -------
    Adapter
        Its layers with their effective scales.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the adapter is of an unknown type, or damaged: a factor without its partner, ranks that disagree, an invalid
        configuration, a pickle.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.formats import open_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     factors = {"base_model.model.proj.lora_A.weight": np.ones((2, 6), np.float32),
    ...                "base_model.model.proj.lora_B.weight": np.ones((4, 2), np.float32)}
    ...     save_file(factors, pathlib.Path(folder, "adapter_model.safetensors"))
    ...     config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 8}'
    ...     _ = pathlib.Path(folder, "adapter_config.json").write_text(config)
    ...     layer = open_adapter(folder).layers[0]
    >>> layer.name, layer.shape, layer.scaling, layer.scaling_source
    ('proj', (4, 6), 4.0, 'alpha 8 (lora_alpha) / rank 2 (lora_A)')
    """
    where = Path(path)
    if where.name == PEFT_CONFIG:
        where = where.parent
    if where.is_dir():
        where = _find_adapter(where)
    config = where.parent / PEFT_CONFIG
    # The configuration first: an adapter of another type should be told from its configuration, not from its tensors.
    settings = read_peft_config(config) if config.is_file() else None
    tensors, _ = open_file(where)
    if is_kohya(tensors):
        return open_kohya(where, tensors)
    if settings is not None:
        return open_peft(where, tensors, settings)
    if is_peft(tensors):
        raise FileNotFoundError(
            f"no {PEFT_CONFIG} beside {str(where)!r}: alpha and the scaling rule are in it, and without them the scale "
            "of the update is unknown"
        )
    other = other_kind(tensors)
    if other is not None:
        raise ValueError(
            f"{str(where)!r} is a LyCORIS adapter of another kind than LoRA ({other!r}): its update is no product of "
            "two factors"
        )
    example = f"its first tensor is {next(iter(tensors))!r}" if tensors else "it is empty"
    raise ValueError(
        f"{str(where)!r} holds no LoRA factors ({example}): neither PEFT's lora_A and lora_B nor kohya's lora_down and "
        "lora_up. To inspect a checkpoint, give the one that it was tuned from as its base"
    )


def _find_adapter(folder: Path) -> Path:
    if (folder / PEFT_CONFIG).is_file() or (folder / PEFT_WEIGHTS).is_file():
        return _peft_weights(folder)
    held = sorted(file.parent.name for file in folder.glob(f"*/{PEFT_CONFIG}"))
    if len(held) == 1:
        return _peft_weights(folder / held[0])
    if held:
        raise ValueError(f"{str(folder)!r} holds several adapters ({', '.join(held)}): give the folder of one of them")
    if (folder / "model.safetensors").is_file() or any(folder.glob("*.safetensors.index.json")):
        raise ValueError(
            f"{str(folder)!r} is a model checkpoint, not an adapter: its update is its difference from the checkpoint "
            "that it was tuned from, so give that one as its base"
        )
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{str(folder)!r} holds several files ({names}): give one of them")
    if files:
        return files[0]
    for file in sorted(folder.iterdir()):
        refuse_pickle(file)
    raise FileNotFoundError(f"no adapter in {str(folder)!r}: it has neither {PEFT_CONFIG} nor any safetensors file")


def _peft_weights(folder: Path) -> Path:
    weights, pickled = folder / PEFT_WEIGHTS, folder / "adapter_model.bin"
    if not weights.is_file() and pickled.is_file():
        refuse_pickle(pickled)
    return weights
