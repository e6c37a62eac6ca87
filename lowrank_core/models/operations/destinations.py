"""Where an adapter is written: to the files of its format, or to memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from lowrank_core.models.files.in_memory import tensors_of
from lowrank_core.models.files.streams import Stream, named_twice
from lowrank_core.models.formats import Adapter, Format, adapter_in_memory, open_adapter

IN_MEMORY = "in memory"
"""What a report says of an adapter that was written to memory, in place of its path."""


class Output(Protocol):
    """An adapter that is being written."""

    def stream(self, keys: Iterable[str], metadata: Mapping[str, str]) -> AbstractContextManager[Stream]:
        """Yield a stream for tensors of these names, which replace those that were written before."""

    def configure(self, config: dict[str, Any] | None) -> None:
        """Write the configuration, where the format has one."""

    def open(self) -> Adapter:
        """Open what was written."""


@dataclass(frozen=True)
class OutputFiles:
    """An adapter that is being written to a file, or to a folder that is there."""

    path: Path
    format: Format

    @contextmanager
    def stream(self, keys: Iterable[str], metadata: Mapping[str, str]) -> Iterator[Stream]:
        """Yield a stream to the file, or to a new one that then takes the place of the one before."""
        path = self.path / self.format.files[0] if self.format.files else self.path
        if not path.exists():
            with self.format.stream(path, keys, metadata) as stream:
                yield stream
            return
        padded = path.with_name(f"{path.name}.padded")
        try:
            with self.format.stream(padded, keys, metadata) as stream:
                yield stream
            padded.replace(path)
        finally:
            padded.unlink(missing_ok=True)

    def configure(self, config: dict[str, Any] | None) -> None:
        """Write the configuration beside the tensors."""
        if config is not None:
            text = json.dumps(config, indent=2) + "\n"
            (self.path / self.format.files[1]).write_text(text, encoding="utf-8")

    def open(self) -> Adapter:
        """Open the file or the folder."""
        return open_adapter(self.path)


class OutputInMemory:
    """An adapter that is being written to memory."""

    def __init__(self) -> None:
        self._tensors: dict[str, NDArray[Any]] = {}
        self._metadata: dict[str, str] = {}
        self._config: dict[str, Any] = {}

    @contextmanager
    def stream(self, keys: Iterable[str], metadata: Mapping[str, str]) -> Iterator[Stream]:  # noqa: ARG002 - a file's header has space for all names
        """Yield a stream to new arrays, which then take the place of those before."""
        stream = _MemoryStream(metadata)
        yield stream
        self._tensors, self._metadata = stream.tensors, stream.metadata

    def configure(self, config: dict[str, Any] | None) -> None:
        """Keep the configuration."""
        self._config = config or {}

    def open(self) -> Adapter:
        """Read the arrays in whatever format their names and the configuration are."""
        return adapter_in_memory(IN_MEMORY, tensors_of(self._tensors, IN_MEMORY), self._metadata, self._config)


class _MemoryStream:
    """Arrays by name, in memory."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self.metadata = dict(metadata)
        self.tensors: dict[str, NDArray[Any]] = {}

    def add(self, key: str, tensor: NDArray[Any]) -> None:
        """Add an array."""
        if key in self.tensors:
            raise ValueError(named_twice(key))
        self.tensors[key] = tensor
