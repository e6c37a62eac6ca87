"""How time grows with each size alone, the others fixed: linear work should take linear time."""

from __future__ import annotations

from typing import ClassVar

from benchmarks import cases, sweep_cases


class Batch:
    """All singular values of more and more matrices of 32 × 32."""

    version = "1"
    param_names: ClassVar = ["count"]
    params: ClassVar = [[10, 100, 1_000]]

    def setup(self, count: int) -> None:
        self.case = cases.checked(cases.stack, count, 32, "float64")

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class Ranks:
    """Errors of 100 spectra of 4,096 values at more and more ranks."""

    version = "1"
    param_names: ClassVar = ["ranks"]
    params: ClassVar = [[1, 64, 4_096]]

    def setup(self, ranks: int) -> None:
        self.case = cases.checked(sweep_cases.sweep, 100, 4_096, ranks)

    def time_error_sweep(self, *_: object) -> None:
        self.case.ours.call()


class Layers:
    """Products of more and more pairs of factors."""

    version = "1"
    param_names: ClassVar = ["layers"]
    params: ClassVar = [[1, 8, 64]]

    def setup(self, layers: int) -> None:
        self.case = cases.checked(cases.factors, 512, 16, layers)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class Workers:
    """A stack on one worker and on two."""

    version = "1"
    param_names: ClassVar = ["n", "workers"]
    params: ClassVar = [[16, 64, 256], [1, 2]]

    def setup(self, n: int, workers: int) -> None:
        count, dtype = {16: (4_000, "float64"), 64: (400, "float64"), 256: (16, "float32")}[n]
        self.case = cases.checked(cases.stack, count, n, dtype, workers)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()
