"""Safetensors and JSON files: what they hold, read one tensor at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from numpy.typing import NDArray

FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The stored types that hold weights: safetensors' own name, and NumPy's."""

INTEGER = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}
"""The stored types of counters, masks and quantised weights."""

PLAIN_WEIGHTS = (
    "float64, float32, float16 and bfloat16 hold plain weights; a quantised model has to be dequantised first"
)
"""What to tell the owner of any other type."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class StoredTensor:
    """
    One tensor in a safetensors file, not yet read.

    A plain value that can be sent to another process: it holds a path and a key, never an open file.

    Attributes
    ----------
    file : Path
        The safetensors file.
    key : str
        The tensor's name in it.
    shape : tuple of int
        Its shape.
    dtype : str
        What it is stored in: NumPy's name ("float32", "bfloat16", "int64") where it has one, else safetensors' own.
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
        """Whether this is a type that holds weights: float64, float32, float16 or bfloat16."""
        return self.dtype in FLOATING.values()

    @property
    def is_readable(self) -> bool:
        """Whether NumPy has this type: the floating ones, integers and bool, but no 8-bit floats."""
        return self.is_floating or self.dtype in INTEGER.values()

    def read(self) -> NDArray[Any]:
        """
        Read the tensor, in its stored dtype.

        The file is opened for this tensor alone and closed again: pages of a mapped file count into the process's
        memory for as long as the mapping lives.

        Returns
        -------
        ndarray
            A copy of its own, of the stored shape and dtype.

        Raises
        ------
        ValueError
            If the file cannot be read, or NumPy has no such type.
        """
        return read_tensors([self])[0]


def open_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """
    Read the header of a safetensors file: what it holds, and its metadata.

    Parameters
    ----------
    path : Path
        A safetensors file.

    Returns
    -------
    tensors : dict of str to StoredTensor
        Every tensor by name, in alphabetical order.
    metadata : dict of str to str
        The file's own remarks about itself.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is a pickle, or not a sound safetensors file.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {}
            for key in sorted(file.keys()):
                view = file.get_slice(key)
                dtype = str(view.get_dtype())
                tensors[key] = StoredTensor(path, key, tuple(view.get_shape()), (FLOATING | INTEGER).get(dtype, dtype))
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise _unsound(path, error) from error


def read_tensors(tensors: Iterable[StoredTensor]) -> list[NDArray[Any]]:
    """
    Read several tensors, opening each file once.

    Parameters
    ----------
    tensors : iterable of StoredTensor
        What to read; all of it is in memory at the end.

    Returns
    -------
    list of ndarray
        In the order given, each in its stored dtype.

    Raises
    ------
    ValueError
        If a file cannot be read, or NumPy has no such type.
    """
    wanted = list(tensors)
    for tensor in wanted:
        if not tensor.is_readable:
            raise ValueError(f"{tensor.key!r} is stored as {tensor.dtype}: {PLAIN_WEIGHTS}")
    safetensors = _safetensors()
    found: dict[StoredTensor, NDArray[Any]] = {}
    for path in dict.fromkeys(tensor.file for tensor in wanted):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                found.update({tensor: file.get_tensor(tensor.key) for tensor in wanted if tensor.file == path})
        except (safetensors.SafetensorError, OSError) as error:
            raise _unsound(path, error) from error
    return [found[tensor] for tensor in wanted]


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a JSON file that holds an object.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        The object, its keys in the file's own order.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not JSON, or its top level is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        message = f"{str(path)!r} holds a JSON {type(content).__name__}, but an object {{...}} is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    return content


def refuse_pickle(path: Path) -> None:
    """
    Refuse a file whose name says that it is a pickle.

    Parameters
    ----------
    path : Path
        Any path.

    Raises
    ------
    ValueError
        If its suffix is one that PyTorch gives to pickles.
    """
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{str(path)!r} is a pickle, and reading a pickle runs whatever code is in it: only safetensors files are "
            "read. Load it where you trust it and save it again with safetensors "
            "(save_pretrained(..., safe_serialization=True))"
        )


def frobenius_norm(array: NDArray[Any]) -> float:
    """
    Frobenius norm of an array of any shape, taken in float64, safe from overflow and underflow.

    Parameters
    ----------
    array : ndarray
        Any shape, any dtype that holds weights.

    Returns
    -------
    float
        √Σ|x|²; NaN or infinity where the array holds them.
    """
    rows = np.atleast_1d(array)
    with np.errstate(invalid="ignore"):  # the conversion of a signalling NaN warns; the norm is NaN, which says it
        return math.hypot(*(_vector_norm(rows[block].astype(np.float64).ravel()) for block in row_blocks(rows.shape)))


def row_blocks(shape: tuple[int, ...], entries: int = 1 << 17) -> list[slice]:
    """
    Cut the first axis of an array into blocks of a bounded number of entries.

    Parameters
    ----------
    shape : tuple of int
        The array's shape, at least one axis.
    entries : int
        About how many entries a block may hold; a single row may hold more. As float64 a megabyte of them stays in a
        core's own cache, whatever is done with it next.

    Returns
    -------
    list of slice
        Consecutive, and together the whole first axis.
    """
    rows = max(1, entries // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """
    Give the shape of a weight as the matrix it acts as: (out, in), or (out, in·kh·kw) for a convolution.

    Parameters
    ----------
    shape : tuple of int
        Two axes or more.

    Returns
    -------
    tuple of int
        The first axis, and the product of all others.
    """
    return shape[0], math.prod(shape[1:])


def describe_shape(shape: tuple[int, ...]) -> str:
    """
    Write a shape as a reader expects it, "64 × 32"; a number has the shape "scalar".

    Parameters
    ----------
    shape : tuple of int
        Any shape.

    Returns
    -------
    str
        The text.
    """
    return " × ".join(map(str, shape)) if shape else "scalar"


def describe(tensor: StoredTensor) -> str:
    """
    Describe a tensor in plain words, with its norm where it has one; reads it.

    Parameters
    ----------
    tensor : StoredTensor
        Any tensor.

    Returns
    -------
    str
        "64 × 32, bfloat16, norm 1.234".
    """
    size = f", norm {frobenius_norm(tensor.read()):.4g}" if tensor.is_floating else ""
    return f"{describe_shape(tensor.shape)}, {tensor.dtype}{size}"


def _vector_norm(vector: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(np.dot(vector, vector))
    # Between these, no square that matters to the sum has overflowed or underflowed.
    if 1e-200 < energy < 1e200:
        return math.sqrt(energy)
    largest = float(np.max(np.abs(vector), initial=0.0))
    if not 0.0 < largest < math.inf:
        return largest
    # ldexp rather than a division: the reciprocal of a subnormal number is infinite.
    exponent = math.frexp(largest)[1]
    return math.ldexp(float(np.linalg.norm(np.ldexp(vector, -exponent))), exponent)


def _unsound(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not a sound safetensors file ({error}): it may be cut short, damaged or of another format; "
        "fetch or save it again"
    )


def _safetensors() -> ModuleType:
    try:
        import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, without which safetensors cannot give it
        import safetensors
    except ImportError as error:
        raise ImportError(
            f'reading model files needs {error.name}, which is not installed: pip install "lowrank_core[models]"'
        ) from error
    return safetensors
