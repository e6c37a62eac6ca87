"""Weights in memory as tensors of a checkpoint: of a mapping of names to arrays or tensors, or of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lowrank_core._arrays import as_stored_array
from lowrank_core.models.files.tensors import ArrayInMemory, StoredTensor
from lowrank_core.models.module_names import PEFT_PREFIX
from lowrank_core.models.sources import Source

_WRAPPED, _ORIGINAL, _TRAINED = ".base_layer.", ".original_module.", ".modules_to_save."


def state_of(source: Source) -> Mapping[str, Any]:
    """Return the weights of a mapping or of a model, by name."""
    if isinstance(source, Mapping):
        return source
    read = getattr(source, "state_dict", None)
    if not callable(read):
        message = (
            f"{type(source).__name__} is neither a path nor weights in memory: give a path, a mapping of names to "
            "arrays or tensors, or a model with state_dict()"
        )
        raise ValueError(message)  # noqa: TRY004 - as for any other input
    state: Mapping[str, Any] = read()
    return base_weights(state) if is_adapted(source) else state


def is_adapted(source: object) -> bool:
    """Whether a model has adapters of PEFT's in it."""
    configs = getattr(source, "peft_config", None)
    return isinstance(configs, Mapping) and bool(configs) and not isinstance(source, Mapping)


def base_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights that a model had before PEFT wrapped its modules, under their names then."""
    # Beside the module that it wraps, one of PEFT's has the tensors of its adapters, of whatever kind.
    wrapped = tuple({f"{key.partition(_WRAPPED)[0]}." for key in state if _WRAPPED in key})
    weights = {}
    for key, tensor in state.items():
        if _TRAINED in key or (_WRAPPED not in key and key.startswith(wrapped)):
            continue
        name = key.removeprefix(PEFT_PREFIX).replace(_WRAPPED, ".").replace(_ORIGINAL, ".")
        weights[name] = tensor
    return weights


def tensors_of(state: Mapping[Any, Any], name: str) -> dict[str, StoredTensor]:
    """Return weights as tensors by name, in alphabetical order; those that a model ties once, under the first name."""
    tensors: dict[str, StoredTensor] = {}
    taken: set[object] = set()
    for key, value in state.items():
        if not isinstance(key, str):
            message = f"the weights of {name} have the name {key!r}: names are texts, as those of model.state_dict()"
            raise ValueError(message)  # noqa: TRY004 - as for any other input
        array = _array_of(key, value)
        if _place(array) not in taken:
            tensors[key] = StoredTensor(Path(name), key, array.shape, array.dtype.name, memory=ArrayInMemory(array))
        if array.size:
            taken.add(_place(array))
    return dict(sorted(tensors.items()))


def config_of(source: object) -> dict[str, Any]:
    """Return what the config.json of a model of transformers would say; nothing of any other source."""
    config = getattr(source, "config", None)
    if not callable(getattr(config, "to_dict", None)):
        return {}
    config = dict(config.to_dict())  # type: ignore[union-attr]  # its method was looked for
    # As transformers sets it where it saves a model.
    return config if config.get("architectures") else config | {"architectures": [type(source).__name__]}


def _array_of(key: str, value: Any) -> NDArray[Any]:
    if isinstance(value, Mapping) or not (hasattr(value, "dtype") and hasattr(value, "shape")):
        nested = f": give that mapping itself, state_dict[{key!r}]" if isinstance(value, Mapping) else ""
        raise ValueError(
            f"{key!r} is of type {type(value).__name__}, where an array or a tensor is needed{nested}. A mapping of "
            "names to weights is what model.state_dict() returns"
        )
    return as_stored_array(value, f"state_dict[{key!r}]")


def _place(array: NDArray[Any]) -> object:
    """Return where an array is in memory: of two alike, one is the other."""
    interface = array.__array_interface__
    return interface["data"][0], array.strides, array.shape, array.dtype.name
