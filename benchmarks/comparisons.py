"""Time of comparing adapters, and of the rows that follow a training run: a class for each size, as in spectra.py."""

from __future__ import annotations

from typing import ClassVar

from benchmarks import cases, comparison_cases


class _Compare:
    """Eight layers of 4096² of two adapters, unrelated or a step of training apart: of the latter angles are small."""

    version = "1"
    rank: int
    param_names: ClassVar = ["near"]
    params: ClassVar = [[False, True]]

    def setup(self, near: bool) -> None:
        self.case = cases.checked(comparison_cases.pairs, 8, 4096, self.rank, near)

    def time_compare(self, *_: object) -> None:
        self.case.ours.call()


class Compare16(_Compare):
    rank = 16


class Compare64(_Compare):
    rank = 64


class _TrainingStep:
    """The rows that the callback writes of one step of layers of 512², without the copies of factors from torch."""

    version = "1"
    layers: int

    def setup(self) -> None:
        self.case = cases.checked(comparison_cases.training_step, self.layers, 512, 16)

    def time_rows(self) -> None:
        self.case.ours.call()


class TrainingStep16(_TrainingStep):
    layers = 16


class TrainingStep112(_TrainingStep):
    layers = 112
