"""The machine code of kernels, taken from what Numba compiled and written for later processes."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from llvmlite import binding

from lowrank_core._linalg.object_files import MachineCode, c_types, cache_folders, file_name, pack

__all__ = ["write_machine_code"]

_DEFINITION = re.compile(r"^define [^\n]*?@\"?([\w.$]+)\"?\(.*?^}\n", re.MULTILINE | re.DOTALL)
# The header of Numba's memory: its count of references, a destructor and what that takes, the data's address, its size.
_HEADER = "{i64, i8*, i8*, i8*, i64}"
# What kernels call of Numba's runtime, so that they do without: memory with a header, powers of two, arrays as one row.
_RUNTIME = """
declare i8* @malloc(i64)
declare void @free(i8*)
declare double @frexp(double, i32*)
declare double @ldexp(double, i32)

define i8* @NRT_MemInfo_alloc_aligned(i64 %size, i32 %alignment) {
  %step = zext i32 %alignment to i64
  %extra = add i64 %step, 64
  %total = add i64 %size, %extra
  %header = call i8* @malloc(i64 %total)
  %failed = icmp eq i8* %header, null
  br i1 %failed, label %end, label %fill
fill:
  %address = ptrtoint i8* %header to i64
  %after = add i64 %address, %extra
  %rest = urem i64 %after, %step
  %data = sub i64 %after, %rest
  %count_at = bitcast i8* %header to i64*
  store i64 1, i64* %count_at
  %data_field = getelementptr i8, i8* %header, i64 24
  %data_at = bitcast i8* %data_field to i64*
  store i64 %data, i64* %data_at
  br label %end
end:
  ret i8* %header
}

define void @NRT_MemInfo_call_dtor(i8* %header) {
  call void @free(i8* %header)
  ret void
}

define double @numba_frexp(double %x, i32* %exponent) {
  %fraction = call double @frexp(double %x, i32* %exponent)
  ret double %fraction
}

define double @numba_ldexp(double %x, i32 %exponent) {
  %product = call double @ldexp(double %x, i32 %exponent)
  ret double %product
}

define i32 @numba_attempt_nocopy_reshape(i64 %nd, i64* %shape, i64* %strides, i64 %new_nd, i64* %new_shape,
                                         i64* %new_strides, i64 %item_size, i32 %fortran) {
  %one_axis = icmp eq i64 %new_nd, 1
  br i1 %one_axis, label %flat, label %other
flat:
  store i64 %item_size, i64* %new_strides
  ret i32 1
other:
  ret i32 0
}
"""
_RUNTIME_FUNCTIONS = re.findall(r"^define .*@(\w+)", _RUNTIME, re.MULTILINE)
# What they may call besides is in C's library.
_C_FUNCTIONS = {"hypot", "sqrt"}
_LLVM_TYPES = {ctypes.c_void_p: "ptr", ctypes.c_int64: "i64", ctypes.c_double: "double", ctypes.c_uint8: "i8"}


def write_machine_code(function: Any, module: str, name: str) -> Path | None:
    """Write a compiled kernel's machine code, and return its file; None where it cannot be taken or written."""
    try:
        code = _machine_code(function)
    except Exception:  # this looks into Numba, which may change: its own cache then serves alone
        return None
    return None if code is None else _write(code, file_name(module, name))


def _machine_code(function: Any) -> MachineCode | None:
    """Return the machine code of a kernel, or None where it calls more of Numba than the runtime has."""
    from numba.core.runtime import nrtdynmod

    (overload,) = function.overloads.values()
    entry, library = overload.fndesc.llvm_func_name, overload.library
    text = str(library._get_module_for_linking())  # noqa: SLF001
    # What unpacks Python's objects for the kernel, and calls most of Numba's runtime.
    wrapper = overload.fndesc.llvm_cpython_wrapper_name
    kept = _DEFINITION.sub(lambda match: "" if match[1] == wrapper else match[0], text)
    bodies = "".join(match[0] for match in _DEFINITION.finditer(kept))
    compiled = binding.parse_assembly(kept)
    declared = {each.name for each in compiled.functions if each.is_declaration and not each.name.startswith("llvm.")}
    called = {each for each in declared if f"@{each}(" in bodies}
    arguments = tuple(_described(kind) for kind in overload.signature.args)
    expected = ["ptr", "ptr", *(_LLVM_TYPES[each] for argument in arguments for each in c_types(argument))]
    found = [_llvm_type(each) for each in compiled.get_function(entry).arguments]
    header = str(nrtdynmod._meminfo_struct_type)  # noqa: SLF001
    if not called <= {*_RUNTIME_FUNCTIONS, *_C_FUNCTIONS} or found != expected or header != _HEADER:
        return None
    compiled.link_in(binding.parse_assembly(_RUNTIME))
    for each in _RUNTIME_FUNCTIONS:
        compiled.get_function(each).linkage = "internal"
    compiled.get_function(entry).linkage = "external"
    content = library.codegen._tm.emit_object(compiled)  # noqa: SLF001
    return MachineCode(entry, arguments, str(overload.signature.return_type), content)


def _described(kind: Any) -> str:
    """Return a type of Numba's as `MachineCode` has it."""
    if not hasattr(kind, "ndim"):
        return str(kind)
    if kind.layout != "C":
        raise ValueError(f"machine code takes arrays in C order, and was compiled for {kind}")
    return f"{kind.dtype}[{kind.ndim}]"


def _llvm_type(value: Any) -> str:
    """Return the type of an argument; LLVM before 17 says what a pointer points to."""
    kind = str(value.type)
    return "ptr" if kind.endswith("*") else kind


def _write(code: MachineCode, file: str) -> Path | None:
    """Write machine code to the first folder that can be written, whole or not at all; return its file."""
    for folder in cache_folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f"{file}.{os.getpid()}"
            temporary.write_bytes(pack(code))
            return temporary.replace(folder / file)
    return None
