"""Whole models as files, small: time and peak memory of extracting and of resizing an adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from benchmarks import cases
from benchmarks.model_cases import extraction, make_adapter, make_checkpoints, resizing
from benchmarks.model_memory import peak

RANK = 16
NAME = "model.layers.00.self_attn.q_proj"


class _Files:
    """Files in a folder that is deleted after the benchmark, and a case made of them."""

    def setup(self, *_: object) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.case = self.build(Path(self.folder.name))
        cases.check(self.case, self.case.ours.call())

    def teardown(self, *_: object) -> None:
        self.folder.cleanup()

    def build(self, folder: Path) -> cases.Case:
        raise NotImplementedError


class Extract(_Files):
    """An adapter of rank 16 from two float32 checkpoints of two layers of 1024 × 1024."""

    version = "1"
    shapes: ClassVar = ((1024, 1024), (1024, 1024))

    def build(self, folder: Path) -> cases.Case:
        paths = make_checkpoints(folder, 1, shapes=self.shapes, dtype="float32", power=1.0)
        return extraction(folder, paths, RANK, checked=[NAME])

    def time_extract(self) -> None:
        self.case.ours.call()


class ExtractMemory:
    """Peak memory of extracting from such layers, above that of the process before."""

    version = "1"
    unit = "times the largest layer in float32"

    def track_peak(self) -> float:
        return peak(1, Extract.shapes, RANK)


class Resize(_Files):
    """An adapter of rank 16 from one of rank 64, of eight layers of 1024 × 1024."""

    version = "1"
    shapes: ClassVar = ((1024, 1024), (1024, 1024))

    def build(self, folder: Path) -> cases.Case:
        return resizing(folder, make_adapter(folder / "adapter", 4, shapes=self.shapes), RANK, checked=[NAME])

    def time_resize(self) -> None:
        self.case.ours.call()
