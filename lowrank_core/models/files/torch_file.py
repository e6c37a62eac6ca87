"""Files of torch.save: the tensors in them alone, read without running the code that a pickle can have.

By torch's own restricted reader (``weights_only=True``), which builds tensors and plain containers and refuses every
other class; and by a tensor's place in the file once that is known.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import as_dtype
from lowrank_core.models.files.container import Container, Entry, invalid_file
from lowrank_core.models.files.torch_archive import ARCHIVE_MAGIC, open_archive

__all__ = ["TORCH"]

_NAME = "PyTorch"
_PICKLE, _PROTOCOL = 0x80, 2
_WRAPPERS = ("state_dict", "model", "module")
# What trainers save beside a model under these: states of optimisers, schedules and random numbers.
_OF_TRAINING = re.compile(
    r"opt|.*optim.*|.*sched.*|(grad_|amp_)?scaler|amp|.*rng_?states?|random_states?", re.IGNORECASE
)
# Before 2.6 and 2.10, a file could run code or corrupt memory despite weights_only: CVE-2025-32434, CVE-2026-24747.
_OLDEST_SAFE = (2, 10)
# Magic number, protocol, system, content and the names of storages, whose numbers follow.
_LEGACY_PICKLES = 5
# What torch builds with as many bytes as a few bytes ask for.
_OF_ANY_SIZE = ("builtins bytearray", "__builtin__ bytearray")
_DEEPEST = 16
# A pickle of a few bytes can have one container under any number of names.
_MOST_NAMES = 1_000_000
_REFUSED_CLASS = re.compile(r"GLOBAL (\S+)")
_REASON = re.compile(r"WeightsUnpickler error:\s+(.+)")


def _recognises(first: bytes) -> bool:
    return first.startswith(ARCHIVE_MAGIC) or (
        len(first) > 1 and first[0] == _PICKLE and first[1] in range(2, pickle.HIGHEST_PROTOCOL + 1)
    )


def _open(path: Path) -> tuple[list[Entry], dict[str, str]]:
    torch = _torch(path)
    archive = open_archive(path)
    with path.open("rb") if archive is None else BytesIO(archive.pickle) as content:
        _check_pickle(path, content)
    is_mapped = archive is not None and _can_be_mapped(path)
    records = {} if archive is None else archive.records
    # On the meta device tensors have a place in the file, and no numbers: of a big-endian archive, which has no records
    # here, torch would swap the bytes of those that are not there, and end the process.
    tensors = _load(path, torch, device="meta" if is_mapped and records else "cpu", mmap=is_mapped)
    return [
        Entry(key, tuple(tensor.shape), _dtype(tensor), offset=_offset(tensor, records))
        for key, tensor in tensors.items()
    ], {}


def _offset(tensor: Any, records: Mapping[int, int]) -> int:
    """Return where a tensor's numbers begin in its file, 0 where they are not there one behind the other."""
    if "strided" not in str(tensor.layout) or tensor.is_quantized or not tensor.is_contiguous():
        return 0
    # Since torch 2.10, and checked against the archive's own list.
    record = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    begin = tensor.storage_offset() * tensor.element_size()
    fits = begin + tensor.numel() * tensor.element_size() <= records.get(record or 0, -1)
    return int(record + begin) if fits else 0


def _read(path: Path, entries: Sequence[Entry]) -> list[NDArray[Any]]:
    """Return tensors by their place in the file where that is known: torch takes 0.1 s to list 700 tensors."""
    others: dict[str, Any] = {}
    if not all(entry.offset for entry in entries):
        is_mapped = open_archive(path) is not None and _can_be_mapped(path)
        others = _load(path, _torch(path), device="cpu", mmap=is_mapped)
    missing = [entry.key for entry in entries if not (entry.offset or entry.key in others)]
    if missing:
        raise invalid_file(path, _NAME, f"{missing[0]!r} is no longer in it")
    size = path.stat().st_size
    return [
        _read_numbers(path, entry) if entry.offset else _as_array(entry, others[entry.key], size) for entry in entries
    ]


def _read_numbers(path: Path, entry: Entry) -> NDArray[Any]:
    dtype = as_dtype(entry.dtype)
    count = math.prod(entry.shape) * dtype.itemsize
    content = np.fromfile(path, np.uint8, count, offset=entry.offset)
    if len(content) < count:
        raise invalid_file(path, _NAME, f"{entry.key!r} is beyond its end")
    return content.view(dtype).reshape(entry.shape)


def _load(path: Path, torch: ModuleType, *, device: str, mmap: bool) -> dict[str, Any]:
    """Return the tensors of a file by name, mapped and not yet read where that is possible."""
    with path.open("rb") as file:
        try:
            content = torch.load(str(path) if mmap else file, map_location=device, weights_only=True, mmap=mmap)
        except Exception as error:  # a damaged pickle raises whatever its instructions run into
            raise _refused(path, error) from error
    return _state(path, content)


def _can_be_mapped(path: Path) -> bool:
    """Whether torch.load maps an archive: it takes each path of this ending for a safetensors file."""
    return not path.name.endswith(".safetensors")


def _check_pickle(path: Path, content: BinaryIO) -> None:
    """Check, without running them, that the instructions of a pickle are of the kind that torch.save writes."""
    beginning = content.read(2)
    content.seek(0)
    if len(beginning) < 2 or beginning[0] != _PICKLE:
        raise invalid_file(path, _NAME, "it does not begin with a pickle")
    if beginning[1] != _PROTOCOL:
        raise ValueError(
            f"{str(path)!r} is a pickle of protocol {beginning[1]}; only those of protocol {_PROTOCOL}, which is "
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
            content = content if _has_weights_beside(wrapper, content) else content[wrapper]
    named = list(islice(_tensors(content, (), (), set()), _MOST_NAMES))
    if len(named) == _MOST_NAMES:
        raise ValueError(f"{str(path)!r} has {_MOST_NAMES:,} names of tensors or more: save the state dict alone")
    tensors = dict(named)
    if "" in tensors:
        raise ValueError(f"{str(path)!r} is one tensor without a name: a state dict, of names and tensors, is needed")
    if len(tensors) < len(named):
        raise invalid_file(path, _NAME, "two of its tensors have one name")
    return tensors


def _has_weights_beside(wrapper: str, content: Mapping[Any, Any]) -> bool:
    """Whether there are tensors beside a model that may be weights too; numbers, as losses, are not."""
    beside = {key: value for key, value in content.items() if key != wrapper and not _OF_TRAINING.fullmatch(str(key))}
    return any(tensor.dim() for _, tensor in _tensors(beside, (), (), set()))


def _tensors(content: Any, keys: tuple[str, ...], outer: tuple[int, ...], empty: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors of a container, but of none that it is in: a pickle can have one within itself.

    `empty` are those without tensors that were met, so that each is read once, under however many names it is.
    """
    if _is_tensor(content):
        yield ".".join(keys), content
    elif isinstance(content, Mapping | list | tuple) and id(content) not in outer and id(content) not in empty:
        if len(keys) > _DEEPEST:
            raise ValueError(f"{'.'.join(keys)!r} is nested deeper than a state dict is: save the state dict alone")
        is_empty = True
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            for named in _tensors(value, (*keys, str(key)), (*outer, id(content)), empty):
                is_empty = False
                yield named
        if is_empty:
            empty.add(id(content))


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
    # Names are quoted: they come from strangers, and the command is for a shell.
    names = f"{shlex.quote(path.name)} {shlex.quote(path.stem + '.safetensors')}"
    convert = (
        'python -c "import sys, torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() for k, v in '
        f"torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}}, sys.argv[2])\" {names}"
    )
    advice = (
        f"pip install 'torch>={needed}', or convert the file where it is installed: {convert}. Any other way of "
        "loading a pickle runs the code in it"
    )
    try:
        import ml_dtypes  # noqa: F401 - of bfloat16 and 8-bit floats

        torch = import_module("torch")
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
