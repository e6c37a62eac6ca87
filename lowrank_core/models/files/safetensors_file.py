"""Safetensors files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS, INTEGERS, as_dtype
from lowrank_core.models.files.container import Container, Entry, invalid_file

__all__ = ["SAFETENSORS", "STORED_NAMES"]

_NAME = "safetensors"
_FLOAT8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_OF_ML_DTYPES = {"bfloat16", *_FLOAT8}
_LENGTH_BYTES = 8
# What the safetensors library reads at the most.
_MAX_HEADER = 100_000_000

STORED_NAMES = {
    **{name: _FLOAT8.get(name, name.upper().replace("FLOAT", "F")) for name in FLOATS},
    **{name: name.upper().replace("INT", "I").replace("UI", "U") for name in INTEGERS},
}
"""Safetensors' own name of each dtype."""

_DTYPES = {stored: name for name, stored in STORED_NAMES.items()}


def _recognises(first: bytes) -> bool:
    return first[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and _header_length(first) <= _MAX_HEADER


def _open(path: Path) -> tuple[list[Entry], dict[str, str]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            views = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - the file is not a mapping
            described = {key: (tuple(view.get_shape()), str(view.get_dtype())) for key, view in views.items()}
            metadata = dict(file.metadata() or {})
        # Of an entry named twice, safetensors takes the last and other readers the first.
        with path.open("rb") as content:
            length = _header_length(content.read(_LENGTH_BYTES))
            header = json.loads(content.read(length), object_pairs_hook=_named_once)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise invalid_file(path, _NAME, error) from error
    begin = _LENGTH_BYTES + length
    entries = [
        Entry(key, shape, _DTYPES.get(dtype, dtype), offset=begin + header[key]["data_offsets"][0])
        for key, (shape, dtype) in described.items()
    ]
    # Now, and not for each layer that is read, is it said that something is missing.
    _safetensors(entries)
    return entries, metadata


def _read(path: Path, entries: Sequence[Entry]) -> list[NDArray[Any]]:
    safetensors = _safetensors(entries)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return [
                _read_float8(path, entry) if entry.dtype in _FLOAT8 else file.get_tensor(entry.key) for entry in entries
            ]
    except (safetensors.SafetensorError, OSError) as error:
        raise invalid_file(path, _NAME, error) from error


def _read_float8(path: Path, entry: Entry) -> NDArray[Any]:
    """Return a tensor of 8-bit floats, which safetensors' own reader for NumPy does not know."""
    values = np.fromfile(path, np.uint8, int(np.prod(entry.shape)), offset=entry.offset)
    return values.view(as_dtype(entry.dtype)).reshape(entry.shape)


def _header_length(first: bytes) -> int:
    return int.from_bytes(first[:_LENGTH_BYTES], "little")


def _named_once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(entries)
    if len(named) < len(entries):
        name, _ = Counter(name for name, _ in entries).most_common(1)[0]
        raise ValueError(f"its header names {name!r} twice")
    return named


def _safetensors(entries: Sequence[Entry] = ()) -> ModuleType:
    """Return the package, and register bfloat16 and float8 with NumPy where an entry is of one of them."""
    try:
        import safetensors

        if any(entry.dtype in _OF_ML_DTYPES for entry in entries):
            import ml_dtypes  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'reading model files needs {error.name}, which is not installed: pip install "lowrank_core[models]"'
        ) from error
    return safetensors


SAFETENSORS = Container(_NAME, _recognises, _open, _read)
