"""Models of PEFT's in memory: the tensors of an adapter, as PEFT saves them, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["as_config", "peft_state"]


def peft_state(model: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the tensors of a model's active adapter by name, as PEFT saves them, and its configuration."""
    adapter = _active_adapter(model)
    peft: Any = import_module("peft")
    return peft.get_peft_model_state_dict(model, adapter_name=adapter), as_config(model.peft_config[adapter])


def as_config(config: Any) -> dict[str, Any]:
    """Return a configuration of PEFT's, or the content of its file, as that file has it."""
    content = config if isinstance(config, Mapping) else config.to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(dict(content), default=_plain))
    return plain


def _active_adapter(model: Any) -> str:
    """Return the name of the one adapter that is active."""
    names = list(model.peft_config)
    if len(names) == 1:
        return str(names[0])
    # A model of transformers has a method of this name, and one of PEFT's a property.
    active = getattr(model, "active_adapters", ())
    active = list(active() if callable(active) else active)
    if len(active) != 1:
        raise ValueError(
            f"{type(model).__name__} has the adapters {', '.join(map(repr, names))}, of which {len(active)} are "
            "active: activate the one that is meant, with model.set_adapter(name)"
        )
    return str(active[0])


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
