"""GGUF files, written by the gguf package, which keeps tensors in a temporary file until the header is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.files.atomic import naming_full_disk
from lowrank_core.models.files.gguf_file import gguf_package
from lowrank_core.models.files.streams import named_twice

_ARCHITECTURE = "general.architecture"
_NUMBERS = ("adapter.lora.alpha",)
# Of metadata that is read as text, these are known to be text in the file too.
_TEXTS = ("general.", "adapter.")
# Numbers that describe the file which another one replaces.
_DROPPED = ("general.file_type", "general.quantization_version", "general.alignment", "general.base_model.count")


class GGUFStream:
    """A GGUF file that is being written; entries may be added to `metadata` until it is closed."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.metadata = dict(metadata)
        self._gguf = gguf_package()
        self._names: set[str] = set()
        self.size = 0
        self._writer = self._gguf.GGUFWriter(path, self.metadata.get(_ARCHITECTURE, "llama"), use_temp_file=True)

    def add(self, key: str, tensor: NDArray[Any]) -> None:
        """Append a tensor."""
        if key in self._names:
            raise ValueError(named_twice(key))
        self._names.add(key)
        content = np.ascontiguousarray(tensor)
        self.size += content.nbytes
        if content.dtype.name == "bfloat16":
            raw = self._gguf.GGMLQuantizationType.BF16
            self._writer.add_tensor(key, content.view(np.uint8), raw_dtype=raw)
        else:
            self._writer.add_tensor(key, content)

    def close(self) -> None:
        """Write the header and all tensors."""
        for key, value in sorted(self.metadata.items()):
            if key in _NUMBERS:
                self._writer.add_float32(key, float(value))
            elif key.startswith(_TEXTS) and key not in (_ARCHITECTURE, *_DROPPED):
                self._writer.add_string(key, value)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def release(self) -> None:
        """Close a file that could not be written."""
        with suppress(OSError):
            self._writer.close()


@contextmanager
def stream_gguf(path: Path, _keys: Iterable[str], metadata: Mapping[str, str]) -> Iterator[GGUFStream]:
    """Yield a stream to a new file; at the end, write it."""
    stream = GGUFStream(path, metadata)
    try:
        yield stream
        with naming_full_disk(path, stream.size):
            stream.close()
    finally:
        stream.release()
