"""Files of torch.save: the tensors in them alone, read without running the code that a pickle can have.

By torch's own restricted reader (``weights_only=True``), which builds tensors and plain containers and refuses every
other class. Files are mapped: a tensor is read from the disk when it is used.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import as_dtype
from lowrank_core.models.files.container import Container, Entry, invalid_file

__all__ = ["TORCH"]

_NAME = "PyTorch"
_ZIP, _PICKLE, _PROTOCOL = b"PK\x03\x04", 0x80, 2
_WRAPPERS = ("state_dict", "model", "module")
# Before 2.6 and 2.10, a file could run code or corrupt memory despite weights_only: CVE-2025-32434, CVE-2026-24747.
_OLDEST_SAFE = (2, 10)
# Magic number, protocol, system, content and the names of storages, whose numbers follow.
_LEGACY_PICKLES = 5
# What torch builds with as many bytes as a few bytes ask for.
_OF_ANY_SIZE = ("builtins bytearray", "__builtin__ bytearray")
_PICKLE_NAME = "data.pkl"
_DEEPEST = 16
_REFUSED_CLASS = re.compile(r"GLOBAL (\S+)")
_REASON = re.compile(r"WeightsUnpickler error:\s+(.+)")


def _recognises(first: bytes) -> bool:
    return first.startswith(_ZIP) or (
        len(first) > 1 and first[0] == _PICKLE and first[1] in range(2, pickle.HIGHEST_PROTOCOL + 1)
    )


def _open(path: Path) -> tuple[list[Entry], dict[str, str]]:
    _torch(path)
    with BytesIO(_pickle_of_archive(path)) if _is_archive(path) else path.open("rb") as content:
        _check_pickle(path, content)
    return [Entry(key, tuple(tensor.shape), _dtype(tensor)) for key, tensor in _load(path).items()], {}


def _read(path: Path, entries: Sequence[Entry]) -> list[NDArray[Any]]:
    tensors, size = _load(path), path.stat().st_size
    missing = [entry.key for entry in entries if entry.key not in tensors]
    if missing:
        raise invalid_file(path, _NAME, f"{missing[0]!r} is no longer in it")
    return [_as_array(entry, tensors[entry.key], size) for entry in entries]


def _load(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name, on the CPU; those of a zip archive are mapped, not read."""
    torch = _torch(path)
    # torch.load takes a path of this ending for a safetensors file, whatever is in it, and maps no open file.
    mapped = _is_archive(path) and not path.name.endswith(".safetensors")
    with path.open("rb") as file:
        try:
            content = torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a damaged pickle raises whatever its instructions run into
            raise _refused(path, error) from error
    return _state(path, content)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _pickle_of_archive(path: Path) -> bytes:
    """Return the pickle in a zip archive of torch.save, which has to expand to no more than its own size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save compresses nothing, so that it can be mapped.
            is_plain = sum(entry.file_size for entry in entries) <= path.stat().st_size
            names = [entry.filename.rpartition("/")[2] for entry in entries]
            named = [entry for entry, name in zip(entries, names, strict=True) if name == _PICKLE_NAME]
            pickles = [archive.read(entry) for entry in named] if is_plain else []
    except Exception as error:  # a damaged archive raises whatever its fields run into
        raise invalid_file(path, _NAME, error) from error
    if not named:
        raise ValueError(
            f"{str(path)!r} is a zip archive that torch.save did not write: unpack it, and give the weights in it"
        )
    if "constants.pkl" in names:
        raise ValueError(
            f"{str(path)!r} is a TorchScript archive, which has a program beside its weights: save the model's "
            "state_dict() with safetensors"
        )
    if not is_plain:
        raise invalid_file(path, _NAME, "its entries expand to more than the file's own size")
    if len(pickles) > 1:
        raise invalid_file(path, _NAME, f"it has {_PICKLE_NAME} twice")
    return pickles[0]


def _check_pickle(path: Path, content: BinaryIO) -> None:
    """Check, without running them, that the instructions of a pickle are of the kind that torch.save writes."""
    protocol = content.read(2)[1:]
    content.seek(0)
    if protocol != bytes([_PROTOCOL]):
        raise ValueError(
            f"{str(path)!r} is a pickle of protocol {ord(protocol)}; only those of protocol {_PROTOCOL}, which is "
            "torch.save's own, can be read without running code. Where you trust it, load it and save its tensors with "
            "safetensors"
        )
    try:
        classes = set(_classes_asked_for(content))
    except ValueError as error:
        raise invalid_file(path, _NAME, error) from error
    if not classes.isdisjoint(_OF_ANY_SIZE):
        raise _not_a_tensor(path, "bytearray")


def _classes_asked_for(content: BinaryIO) -> Iterator[str]:
    """Yield the names of the classes in the pickles that a file begins with: several in a legacy file."""
    for _ in range(_LEGACY_PICKLES):
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "GLOBAL":
                yield str(argument)
        place = content.tell()
        if not content.read(1):
            return
        content.seek(place)


def _state(path: Path, content: Any) -> dict[str, Any]:
    """Return the tensors of a state dict by name; those of nested containers have the names of both, with a dot."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = dict(_tensors(content, (), set()))
    if "" in tensors:
        raise ValueError(f"{str(path)!r} is one tensor without a name: a state dict, of names and tensors, is needed")
    return tensors


def _tensors(content: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors of a container, each container once: a pickle can have one within itself."""
    if _is_tensor(content):
        yield ".".join(keys), content
    elif isinstance(content, Mapping | list | tuple) and id(content) not in seen:
        if len(keys) > _DEEPEST:
            raise ValueError(f"{'.'.join(keys)!r} is nested deeper than a state dict is: save the state dict alone")
        seen.add(id(content))
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _tensors(value, (*keys, str(key)), seen)


def _is_tensor(content: Any) -> bool:
    return hasattr(content, "untyped_storage")


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _as_array(entry: Entry, tensor: Any, file_size: int) -> NDArray[Any]:
    """Return a tensor as an array of its own dtype, copied from the mapped file."""
    import torch

    if tensor.device.type == "meta":
        raise ValueError(
            f"{entry.key!r} is a tensor on the meta device: it has a shape but no values, because the model was saved "
            "before its weights were loaded; save it again with them"
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError(f"{entry.key!r} is a sparse or quantised tensor: save it dense, for example by .to_dense()")
    # A tensor that repeats its entries (stride 0) can claim any size.
    if math.prod(entry.shape) * tensor.element_size() > file_size:
        raise ValueError(f"{entry.key!r} repeats its entries and is larger than its file: save it by .contiguous()")
    # As bytes: NumPy alone has neither bfloat16 nor 8-bit floats.
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    content: NDArray[Any] = np.array(flat.numpy())
    return content.view(as_dtype(entry.dtype)).reshape(entry.shape)


def _refused(path: Path, error: Exception) -> ValueError:
    text = str(error)
    refused, reason = _REFUSED_CLASS.search(text), _REASON.search(text)
    if refused:
        return _not_a_tensor(path, refused[1])
    lines = [reason[1]] if reason else text.strip().splitlines()
    return invalid_file(path, _NAME, lines[0] if lines else type(error).__name__)


def _not_a_tensor(path: Path, name: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is a pickle that asks for {name}, which is not a tensor: loading it could run code, and "
        "nothing of it was loaded. Where you trust it, load it and save its state dict alone"
    )


def _torch(path: Path) -> ModuleType:
    needed = ".".join(map(str, _OLDEST_SAFE))
    convert = (
        'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() for k, v in '
        f"torch.load('{path.name}', map_location='cpu', weights_only=True).items()}}, "
        f"'{path.stem}.safetensors')\""
    )
    advice = (
        f"pip install 'torch>={needed}', or convert the file where it is installed: {convert}. Any other way of "
        "loading a pickle runs the code in it"
    )
    try:
        import ml_dtypes  # noqa: F401 - of bfloat16 and 8-bit floats
        import torch
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r} is a pickle, of which the tensors alone can be read without running code in it. That needs "
            f"{error.name}, which is not installed: {advice}"
        ) from error
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < _OLDEST_SAFE:
        raise ImportError(
            f"{str(path)!r} is a pickle, which torch {torch.__version__} cannot read without a risk of running code in "
            f"it (CVE-2025-32434, CVE-2026-24747): {advice}"
        )
    return torch


TORCH = Container(_NAME, _recognises, _open, _read)
