"""The time of a peer over ours, in one run on the same input, both answers checked.

``python -m benchmarks.compare`` prints this at full size; the sizes here are those that can be repeated over commits.
"""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks import cases, sweep_cases
from benchmarks.timing import contest

# (case, its arguments, the peer's name), by what asv shows.
CONTESTS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "stack of 8², numpy": (cases.stack, (2_000, 8, "float64"), "numpy"),
    "stack of 16², numpy": (cases.stack, (1_000, 16, "float64"), "numpy"),
    "stack of 32², numpy": (cases.stack, (400, 32, "float64"), "numpy"),
    "stack of 64², numpy": (cases.stack, (200, 64, "float64"), "numpy"),
    "stack of 128² float32, numpy": (cases.stack, (32, 128, "float32"), "numpy"),
    "stack of 256² float32, numpy": (cases.stack, (8, 256, "float32"), "numpy"),
    "stack of 512² float32, numpy": (cases.stack, (4, 512, "float32"), "numpy"),
    "1024² float32, numpy": (cases.large, (1024,), "numpy"),
    "1024² float32, scipy": (cases.large, (1024,), "scipy"),
    "1024² float32, torch": (cases.large, (1024,), "torch"),
    "leading 64 of 2048², torch niter=2": (cases.leading, (2048, 1.0, 64, True), "torch q=64 niter=2"),
    "leading 64 of 2048², torch niter=4": (cases.leading, (2048, 1.0, 64, True), "torch q=74 niter=4"),
    "leading 64 of 2048², torch niter=8": (cases.leading, (2048, 1.0, 64, True), "torch q=74 niter=8"),
    "leading 64 of 2048² falling as 1/√i, torch": (cases.leading, (2048, 0.5, 64, True), "torch q=74 niter=8"),
    "leading 64 of 2048², sklearn": (cases.leading, (2048, 1.0, 64, True), "sklearn n_iter=auto"),
    "truncation of 16², numpy": (cases.truncation, (1_000, 16, "float64", 4), "numpy"),
    "truncation of 128² float32, numpy": (cases.truncation, (32, 128, "float32", 16), "numpy"),
    "factors of rank 16, numpy": (cases.factors, (4096, 16), "numpy QR and core"),
    "factors of rank 64, numpy": (cases.factors, (4096, 64), "numpy QR and core"),
    "factors of rank 256, numpy": (cases.factors, (4096, 256), "numpy QR and core"),
    "error sweep, numpy": (sweep_cases.sweep, (100, 4_096, 256), "numpy, two cumulative sums"),
    "learning sweep, numpy": (sweep_cases.learning, ((8, 64), 2), "a plain NumPy loop"),
    "article, its own way": (sweep_cases.article, (), "the article's way"),
    "1,000 updates, the article's way": (sweep_cases.many_updates, (1_000, True), "the article's way, in part"),
    "demo, its imports": (sweep_cases.demo, (), "import numpy, numba, matplotlib"),
    "import, numpy": (sweep_cases.import_time, (), "import numpy"),
    "two workers, one": (cases.two_workers, (400, 64, "float64"), "1 worker"),
}


class Ratio:
    """The peer's time over ours, at the better of one BLAS thread and the peer's default."""

    version = "1"
    unit = "times"
    timeout = 600.0  # both sides, several times each, on a machine that may be busy
    param_names: ClassVar = ["contest"]
    params: ClassVar = [list(CONTESTS)]

    def setup(self, name: str) -> None:
        build, arguments, peer = CONTESTS[name]
        self.case = build(*arguments).against(peer)
        if self.case.missing():
            # Which asv reads as: not applicable here.
            raise NotImplementedError(f"not installed: {', '.join(self.case.missing())}")

    def track_ratio(self, name: str) -> float:
        outcome = contest(self.case, rounds=2, least=0.05)
        if not outcome.right:
            raise RuntimeError(f"{name}: our answer errs by {outcome.ours.error:.3g} {outcome.unit}")
        return outcome.ratio
