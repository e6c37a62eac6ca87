"""Time of comparing adapters, and of the rows that follow a training run."""

from __future__ import annotations

from typing import ClassVar

from benchmarks import cases, comparison_cases


class Compare:
    """Layers of two adapters, unrelated or a step of training apart: of the latter all angles are small."""

    version = "1"
    param_names: ClassVar = ["layers", "size", "rank", "near"]
    params: ClassVar = [[8], [4096], [16, 64], [False, True]]

    def setup(self, layers: int, size: int, rank: int, near: bool) -> None:
        self.case = cases.checked(comparison_cases.pairs, layers, size, rank, near)

    def time_compare(self, *_: object) -> None:
        self.case.ours.call()


class TrainingStep:
    """The rows that the callback writes of one step, without the copies of factors from torch."""

    version = "1"
    param_names: ClassVar = ["layers", "size"]
    params: ClassVar = [[16, 112], [512]]

    def setup(self, layers: int, size: int) -> None:
        self.case = cases.checked(comparison_cases.training_step, layers, size, 16)

    def time_rows(self, *_: object) -> None:
        self.case.ours.call()
