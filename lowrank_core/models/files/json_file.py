"""JSON: objects read from files, and results as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        message = f"{str(path)!r} holds a JSON {type(content).__name__}, but an object {{...}} is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    return content


def to_plain(value: Any) -> Any:
    """Convert dataclasses, mappings, tuples and arrays, nested in any way, to dicts with text keys and lists."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else f"{key:g}": to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value
