"""Safetensors files, read one tensor at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS, INTEGERS
from lowrank_core.models.norms import frobenius_norm

FLOATING = {name.upper().replace("FLOAT", "F"): name for name in FLOATS}
"""The stored types of weights: safetensors' own name, and NumPy's."""

INTEGER = {name.upper().replace("INT", "I").replace("UI", "U"): name for name in INTEGERS}
"""The stored types of counters, masks and quantised weights."""

PLAIN_WEIGHTS = f"plain weights are {', '.join(FLOATS)}; a quantised model has to be dequantised first"
"""What to tell the owner of any other type."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, not yet read.

    A plain value that can be sent to another process: it has a path and a key, never an open file. `dtype` is NumPy's
    name ("float32", "bfloat16", "int64") where it has one, else safetensors' own.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the type is one of weights: float64, float32, float16 or bfloat16."""
        return self.dtype in FLOATING.values()

    @property
    def is_readable(self) -> bool:
        """Whether NumPy has the type: the floating ones, integers and bool, but no 8-bit floats."""
        return self.is_floating or self.dtype in INTEGER.values()

    def read(self) -> NDArray[Any]:
        """Read the tensor in its stored dtype, as a copy."""
        return read_tensors([self])[0]


def open_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read the header of a safetensors file: its tensors by name, in alphabetical order, and its metadata."""
    refuse_pickle(path)
    if not path.is_file():
        reason = ": it is a link to nothing, or to itself" if path.is_symlink() else ""
        raise FileNotFoundError(f"no file {str(path)!r}{reason}")
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {}
            for key in sorted(file.keys()):
                view = file.get_slice(key)
                dtype = str(view.get_dtype())
                tensors[key] = StoredTensor(path, key, tuple(view.get_shape()), (FLOATING | INTEGER).get(dtype, dtype))
            metadata = dict(file.metadata() or {})
        # Of an entry named twice, safetensors takes the last and other readers the first.
        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            json.loads(content.read(length), object_pairs_hook=_check_named_once)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _invalid_file(path, error) from error
    return tensors, metadata


def read_tensors(tensors: Iterable[StoredTensor]) -> list[NDArray[Any]]:
    """Read tensors in the order given, opening each file once.

    No file is kept open: pages of a mapped file count into the process's memory for as long as it is mapped.
    """
    wanted = list(tensors)
    for tensor in wanted:
        if not tensor.is_readable:
            raise ValueError(f"{tensor.key!r} is stored as {tensor.dtype}: {PLAIN_WEIGHTS}")
    safetensors = _safetensors()
    arrays: dict[StoredTensor, NDArray[Any]] = {}
    for path in dict.fromkeys(tensor.file for tensor in wanted):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                arrays.update({tensor: file.get_tensor(tensor.key) for tensor in wanted if tensor.file == path})
        except (safetensors.SafetensorError, OSError) as error:
            raise _invalid_file(path, error) from error
    return [arrays[tensor] for tensor in wanted]


def refuse_pickle(path: Path) -> None:
    """Refuse a file whose suffix is one that PyTorch gives to pickles."""
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{str(path)!r} is a pickle, and reading a pickle runs whatever code is in it: only safetensors files are "
            "read. Load it where you trust it and save it again with safetensors "
            "(save_pretrained(..., safe_serialization=True))"
        )


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a weight as a matrix: (out, in), or (out, in·kh·kw) for a convolution."""
    return shape[0], math.prod(shape[1:])


def describe_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, "64 × 32"; that of a number is "scalar"."""
    return " × ".join(map(str, shape)) if shape else "scalar"


def describe(tensor: StoredTensor, scaling: float = 1.0) -> str:
    """Read a tensor and return a description of its multiple, "64 × 32, bfloat16, norm 1.234"."""
    norm = f", norm {abs(scaling) * frobenius_norm(tensor.read()):.4g}" if tensor.is_floating else ""
    return f"{describe_shape(tensor.shape)}, {tensor.dtype}{norm}"


def _check_named_once(entries: list[tuple[str, Any]]) -> None:
    if len(dict(entries)) < len(entries):
        name, _ = Counter(name for name, _ in entries).most_common(1)[0]
        raise ValueError(f"its header names {name!r} twice")


def _invalid_file(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not a valid safetensors file ({error}): it may be cut short, damaged or of another format; "
        "fetch or save it again"
    )


def _safetensors() -> ModuleType:
    try:
        import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs to return it
        import safetensors
    except ImportError as error:
        raise ImportError(
            f'reading model files needs {error.name}, which is not installed: pip install "lowrank_core[models]"'
        ) from error
    return safetensors
