"""Time from spectra to errors, and from a spectrum to what is learnt."""

from __future__ import annotations

from typing import ClassVar

from benchmarks import cases, sweep_cases


class _ErrorSweep:
    """Errors of a thousand spectra in hand, at 256 ranks under eight scalings."""

    version = "1"
    values: int

    def setup(self) -> None:
        self.case = cases.checked(sweep_cases.sweep, 1_000, self.values, 256)

    def time_error_sweep(self) -> None:
        self.case.ours.call()


class ErrorSweep1024(_ErrorSweep):
    values = 1_024


class ErrorSweep4096(_ErrorSweep):
    values = 4_096


class Article:
    """The article's sweep of one update of 64 × 64, from the matrix to the errors."""

    version = "1"

    def setup(self) -> None:
        self.case = cases.checked(sweep_cases.article)

    def time_sweep(self) -> None:
        self.case.ours.call()


class LoneCalls:
    """Calls with next to no arithmetic: what each costs a user with many small layers beside it."""

    version = "1"
    param_names: ClassVar = ["question"]
    params: ClassVar = [["spectrum", "factors", "error_sweep", "reconstruction_error"]]

    def setup(self, question: str) -> None:
        self.case = cases.checked(sweep_cases.lone_call, question)

    def time_call(self, *_: object) -> None:
        self.case.ours.call()


class _ManyUpdates:
    """A thousand updates of 64 × 64 at 64 ranks under three rules."""

    version = "1"
    decompositions: bool

    def setup(self) -> None:
        self.case = cases.checked(sweep_cases.many_updates, 1_000, self.decompositions)

    def time_sweep(self) -> None:
        self.case.ours.call()


class FromSpectra(_ManyUpdates):
    decompositions = False


class FromUpdates(_ManyUpdates):
    """From the updates, each of which is decomposed."""

    decompositions = True


class Learning:
    """The article's learning experiment, 300 steps."""

    version = "1"
    param_names: ClassVar = ["optimizer", "ranks", "repeats"]
    params: ClassVar = [["sgd", "adam"], [(8, 64)], [3]]

    def setup(self, optimizer: str, ranks: tuple[int, ...], repeats: int) -> None:
        self.case = cases.checked(sweep_cases.learning, ranks, repeats, optimizer)

    def time_learning_sweep(self, *_: object) -> None:
        self.case.ours.call()
