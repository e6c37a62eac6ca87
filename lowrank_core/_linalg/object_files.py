"""The object files of kernels: where they are, what they are valid for, and how they become functions.

A file is a line that describes a function, and the object file that it is in. It is valid for one source of the
kernels, one processor, and one version of Numba and of llvmlite.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec, source_hash
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import __version__, binding

__all__ = ["MachineCode", "c_types", "cache_folders", "file_name", "is_writable", "load", "pack"]

_FOLDER = Path(__file__).parent / "kernels"
_SCALARS = {"int64": ctypes.c_int64, "float64": ctypes.c_double, "bool": ctypes.c_uint8}


class MachineCode(NamedTuple):
    """The object file of a kernel: the function in it, and the types of its arguments and of what it returns.

    A type is "int64", "float64" or "bool", or that of a C-contiguous array, as "float64[2]" with two axes.
    """

    function: str
    arguments: tuple[str, ...]
    result: str
    content: bytes


def file_name(module: str, name: str) -> str:
    """Return the name of the file of a kernel's machine code on this processor, with these versions."""
    return f"{module}.{name}-{_environment()}.o"


def cache_folders() -> tuple[Path, ...]:
    """Return the folders where object files may be, the preferred one first: chosen as Numba chooses its own."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return (Path(chosen, "lowrank_core"),)
    user = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return _FOLDER / "__pycache__", Path(user, "lowrank_core")


def is_writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is made where it is absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@cache
def _source() -> str:
    """Return a digest of the source of all kernels: of its content, because images and wheels change its times."""
    return _digest(b"".join(path.read_bytes() for path in sorted(_FOLDER.glob("*.py"))))


@cache
def _environment() -> str:
    """Return a digest of all that machine code depends on but the source: versions, processor, Numba's settings."""
    numba = find_spec("numba")
    origin = "" if numba is None else numba.origin or ""
    parts = (
        # Without an import of Numba, which would tell its version.
        Path(origin).with_name("_version.py").read_text(encoding="utf-8"),
        __version__,
        sys.implementation.cache_tag,
        binding.get_process_triple(),
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
        sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] != "NUMBA_CACHE_DIR"),
    )
    return _digest(repr(parts).encode())


def _digest(content: bytes) -> str:
    # Python's own, for its compiled files: hashlib would load OpenSSL.
    return source_hash(content).hex()


def load(module: str, name: str) -> Callable[..., Any] | None:
    """Return a kernel as machine code from disk, or None where there is none for this source, processor or system."""
    # Elsewhere they are Mach-O or COFF, and LLVM ends the process at one that it cannot link.
    if sys.platform != "linux" or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return None
    try:
        return next((_linked(code) for code in _stored(file_name(module, name))), None)
    except (RuntimeError, OSError):  # llvmlite does not know the processor, or the source cannot be read
        return None


def _stored(file: str) -> Iterator[MachineCode]:
    """Yield the machine code in files of a name that are whole and of this source."""
    for folder in cache_folders():
        try:
            header, _, content = (folder / file).read_bytes().partition(b"\n")
            function, arguments, result, *digests = header.decode().split()
        except (OSError, ValueError):
            continue
        # LLVM would end the process at a damaged object file.
        if digests == [_source(), _digest(content)]:
            yield MachineCode(function, tuple(arguments.split(",")), result, content)


def pack(code: MachineCode) -> bytes:
    """Return machine code as the content of a file: a line that describes it, and the object file."""
    header = (code.function, ",".join(code.arguments), code.result, _source(), _digest(code.content))
    return " ".join(header).encode() + b"\n" + code.content


@cache
def _engine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def _linked(code: MachineCode) -> Callable[..., Any]:
    """Return machine code as a function of arrays and numbers; it releases the GIL."""
    engine = _engine()
    engine.add_object_file(binding.ObjectFileRef.from_data(code.content))
    engine.finalize_object()
    result: Any = _SCALARS.get(code.result, ctypes.c_void_p)
    types = [each for argument in code.arguments for each in c_types(argument)]
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)(
        engine.get_function_address(code.function)
    )

    def call(*arguments: Any) -> Any:
        returned, error = result(), ctypes.c_void_p()
        numbers = (_numbers(given, kind) for given, kind in zip(arguments, code.arguments, strict=True))
        status = function(ctypes.addressof(returned), ctypes.addressof(error), *chain.from_iterable(numbers))
        if status:
            raise RuntimeError(f"the kernel {code.function} ended with status {status}")
        return returned.value

    return call


def c_types(argument: str) -> Sequence[Any]:
    """Return the C types that an argument is passed as; of an array: owners, size, item size, data, shape, strides."""
    if argument in _SCALARS:
        return (_SCALARS[argument],)
    axes = int(argument[argument.index("[") + 1 : -1])
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    return (pointer, pointer, size, size, pointer, *[size] * (2 * axes))


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, which NumPy makes anew in the time of a small kernel."""
    return dtype.name


def _numbers(given: Any, kind: str) -> Sequence[Any]:
    if not isinstance(given, np.ndarray):
        return (given,)
    if f"{_name(given.dtype)}[{given.ndim}]" != kind or not given.flags.c_contiguous:
        raise TypeError(f"a kernel takes {kind} in C order, and was given {given.dtype.name}[{given.ndim}]")
    return (None, None, given.size, given.itemsize, given.__array_interface__["data"][0], *given.shape, *given.strides)
