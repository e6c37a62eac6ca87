"""Time from matrices to their singular values and factors.

A class for each size: asv draws one line for a benchmark, the geometric mean over its parameters.
"""

from __future__ import annotations

from typing import ClassVar

from benchmarks import cases

# Matrices of each size in a stack, of about a tenth of a second of work.
COUNTS = {8: 5_000, 16: 2_000, 32: 1_000, 64: 400, 128: 100, 256: 16, 512: 4}


class _Stack:
    """All singular values of a stack of n × n."""

    version = "1"
    n: int
    param_names: ClassVar = ["dtype"]
    params: ClassVar = [["float64", "float32"]]

    def setup(self, dtype: str) -> None:
        self.case = cases.checked(cases.stack, COUNTS[self.n], self.n, dtype)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class Stack8(_Stack):
    n = 8


class Stack16(_Stack):
    n = 16


class Stack32(_Stack):
    n = 32


class Stack64(_Stack):
    n = 64


class Stack128(_Stack):
    n = 128


class Stack256(_Stack):
    n = 256


class Stack512(_Stack):
    n = 512


class _Large:
    """All singular values of one large float32 matrix."""

    version = "1"
    n: int

    def setup(self) -> None:
        self.case = cases.checked(cases.large, self.n, "float32")

    def time_spectrum(self) -> None:
        self.case.ours.call()


class Large1024(_Large):
    n = 1024


class Large2048(_Large):
    n = 2048


class Leading:
    """The leading 64 of one large float32 matrix whose values fall as i^-power."""

    version = "1"
    param_names: ClassVar = ["n", "power", "wanted"]
    params: ClassVar = [[2048], [0.5, 1.0], ["values", "factors"]]

    def setup(self, n: int, power: float, wanted: str) -> None:
        self.case = cases.checked(cases.leading, n, power, 64, wanted == "factors")

    def time_leading(self, *_: object) -> None:
        self.case.ours.call()


class _Truncate:
    """The best factors of rank 8 of every matrix of a stack of n × n."""

    version = "1"
    n: int
    param_names: ClassVar = ["dtype"]
    params: ClassVar = [["float64", "float32"]]

    def setup(self, dtype: str) -> None:
        self.case = cases.checked(cases.truncation, COUNTS[self.n], self.n, dtype, 8)

    def time_truncate(self, *_: object) -> None:
        self.case.ours.call()


class Truncate16(_Truncate):
    n = 16


class Truncate64(_Truncate):
    n = 64


class Truncate256(_Truncate):
    n = 256


class _Factors:
    """All singular values of a float32 product of two factors, from the factors."""

    version = "1"
    size = 4096
    rank: int
    count = 1

    def setup(self) -> None:
        self.case = cases.checked(cases.factors, self.size, self.rank, self.count)

    def time_spectrum(self) -> None:
        self.case.ours.call()


class Factors16(_Factors):
    rank = 16


class Factors64(_Factors):
    rank = 64


class Factors256(_Factors):
    rank = 256


class ManyFactors(_Factors):
    """A stack of such products, as a whole model's adapter is."""

    size = 1024
    rank = 16
    count = 32


class _Kronecker:
    """All singular values of a Kronecker product, from its two sides: those of a 4096 × 4096 LoKr for n = 64."""

    version = "1"
    n: int
    param_names: ClassVar = ["dtype"]
    params: ClassVar = [["float64", "float32"]]

    def setup(self, dtype: str) -> None:
        self.case = cases.checked(cases.kronecker, self.n, dtype)

    def time_spectrum(self, *_: object) -> None:
        self.case.ours.call()


class Kronecker32(_Kronecker):
    n = 32


class Kronecker64(_Kronecker):
    n = 64
