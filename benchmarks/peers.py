"""The time of a peer over ours, in one run on the same input, both answers checked.

``python -m benchmarks.compare`` prints this at full size; the sizes here are those that can be repeated over commits.
A class for each contest: asv draws one line for a benchmark, the geometric mean over its parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks import cases, sweep_cases
from benchmarks.timing import contest


class _Ratio:
    """The peer's time over ours, at the better of one BLAS thread and the peer's default."""

    version = "1"
    unit = "times"
    timeout = 600.0  # both sides, several times each, on a machine that may be busy
    # A function that returns a case, its arguments, and the peer's name.
    question: ClassVar[tuple[Any, tuple[Any, ...], str]]

    def setup(self) -> None:
        build, arguments, peer = self.question
        self.case = build(*arguments).against(peer)
        if self.case.missing():
            # Which asv reads as: not applicable here.
            raise NotImplementedError(f"not installed: {', '.join(self.case.missing())}")

    def track_ratio(self) -> float:
        outcome = contest(self.case, rounds=2, least=0.05)
        if not outcome.right:
            raise RuntimeError(f"{self.case.name}: our answer errs by {outcome.ours.error:.3g} {outcome.unit}")
        return outcome.ratio


class Stack8(_Ratio):
    question = cases.stack, (2_000, 8, "float64"), "numpy"


class Stack16(_Ratio):
    question = cases.stack, (1_000, 16, "float64"), "numpy"


class Stack32(_Ratio):
    question = cases.stack, (400, 32, "float64"), "numpy"


class Stack64(_Ratio):
    question = cases.stack, (200, 64, "float64"), "numpy"


class Stack128(_Ratio):
    question = cases.stack, (32, 128, "float32"), "numpy"


class Stack256(_Ratio):
    question = cases.stack, (8, 256, "float32"), "numpy"


class Stack512(_Ratio):
    question = cases.stack, (4, 512, "float32"), "numpy"


class Large1024Numpy(_Ratio):
    question = cases.large, (1024,), "numpy"


class Large1024Scipy(_Ratio):
    question = cases.large, (1024,), "scipy"


class Large1024Torch(_Ratio):
    question = cases.large, (1024,), "torch"


class LeadingTorch2(_Ratio):
    question = cases.leading, (2048, 1.0, 64, True), "torch q=64 niter=2"


class LeadingTorch4(_Ratio):
    question = cases.leading, (2048, 1.0, 64, True), "torch q=74 niter=4"


class LeadingTorch8(_Ratio):
    question = cases.leading, (2048, 1.0, 64, True), "torch q=74 niter=8"


class LeadingSlowTorch(_Ratio):
    """Values that fall as 1/√i."""

    question = cases.leading, (2048, 0.5, 64, True), "torch q=74 niter=8"


class LeadingSklearn(_Ratio):
    question = cases.leading, (2048, 1.0, 64, True), "sklearn n_iter=auto"


class Truncate16(_Ratio):
    question = cases.truncation, (1_000, 16, "float64", 4), "numpy"


class Truncate128(_Ratio):
    question = cases.truncation, (32, 128, "float32", 16), "numpy"


class Factors16(_Ratio):
    question = cases.factors, (4096, 16), "numpy QR and core"


class Factors64(_Ratio):
    question = cases.factors, (4096, 64), "numpy QR and core"


class Factors256(_Ratio):
    question = cases.factors, (4096, 256), "numpy QR and core"


class ErrorSweep(_Ratio):
    question = sweep_cases.sweep, (100, 4_096, 256), "numpy, two cumulative sums"


class Learning(_Ratio):
    question = sweep_cases.learning, ((8, 64), 2), "a plain NumPy loop"


class Article(_Ratio):
    question = sweep_cases.article, (), "the article's way"


class ManyUpdates(_Ratio):
    question = sweep_cases.many_updates, (1_000, True), "the article's way, in part"


class Demo(_Ratio):
    question = sweep_cases.demo, (), "import numpy, numba, matplotlib"


class Import(_Ratio):
    question = sweep_cases.import_time, (), "import numpy"


class TwoWorkers(_Ratio):
    question = cases.two_workers, (400, 64, "float64"), "1 worker"
