"""Time from matrices to their singular values and factors."""

from __future__ import annotations

from typing import ClassVar

from benchmarks import cases

# Matrices of each size in a stack, of about a tenth of a second of work.
COUNTS = {8: 5_000, 16: 2_000, 32: 1_000, 64: 400, 128: 100, 256: 16, 512: 4}


class Stack:
    """All singular values of a stack."""

    version = "1"
    param_names: ClassVar = ["n", "dtype"]
    params: ClassVar = [list(COUNTS), ["float64", "float32"]]

    def setup(self, n: int, dtype: str) -> None:
        self.case = cases.checked(cases.stack, COUNTS[n], n, dtype)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class Large:
    """All singular values of one large matrix."""

    version = "1"
    param_names: ClassVar = ["n", "dtype"]
    params: ClassVar = [[1024, 2048], ["float32"]]

    def setup(self, n: int, dtype: str) -> None:
        self.case = cases.checked(cases.large, n, dtype)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class Leading:
    """The leading 64 of one large float32 matrix whose values fall as i^-power."""

    version = "1"
    param_names: ClassVar = ["n", "power", "wanted"]
    params: ClassVar = [[2048], [0.5, 1.0], ["values", "factors"]]

    def setup(self, n: int, power: float, wanted: str) -> None:
        self.case = cases.checked(cases.leading, n, power, 64, wanted == "factors")

    def time_leading(self, *_: object) -> None:
        self.case.ours.call()


class Truncate:
    """The best factors of rank 8 of every matrix of a stack."""

    version = "1"
    param_names: ClassVar = ["n", "dtype"]
    params: ClassVar = [[16, 64, 256], ["float64", "float32"]]

    def setup(self, n: int, dtype: str) -> None:
        self.case = cases.checked(cases.truncation, COUNTS[n], n, dtype, 8)

    def time_truncate(self, *_: object) -> None:
        self.case.ours.call()


class Factors:
    """All singular values of a float32 product of two factors, from the factors."""

    version = "1"
    param_names: ClassVar = ["size", "rank", "count"]
    params: ClassVar = [[4096], [16, 64, 256], [1]]

    def setup(self, size: int, rank: int, count: int) -> None:
        self.case = cases.checked(cases.factors, size, rank, count)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class ManyFactors(Factors):
    """A stack of such products, as a whole model's adapter is."""

    params: ClassVar = [[1024], [16], [32]]


class Kronecker:
    """All singular values of a Kronecker product, from its two sides: those of a 4096 × 4096 LoKr for n = 64."""

    version = "1"
    param_names: ClassVar = ["n", "dtype"]
    params: ClassVar = [[32, 64], ["float64", "float32"]]

    def setup(self, n: int, dtype: str) -> None:
        self.case = cases.checked(cases.kronecker, n, dtype)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()
