"""How long one large call waits for the BLAS threads that small calls of other threads use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from benchmarks import inputs
from lowrank_core import spectrum


def checked(m: int, n: int) -> Callable[[], None]:
    """Return a call for all singular values of one float64 matrix, which checks that Σσ² = ‖Δ‖_F²."""
    update = inputs.generator(m, n).standard_normal((m, n))
    energy = float(np.vdot(update, update))

    def call() -> None:
        values = spectrum(update, workers=1).values
        if not abs(float(np.vdot(values, values)) - energy) <= 1e-12 * energy:
            raise RuntimeError(f"the squared values sum to {np.vdot(values, values)}, and should to {energy}.")

    return call


class LargeAmongSmall:
    """One large matrix, on BLAS's own threads, while other threads decompose small ones, on one BLAS thread each."""

    version = "1"
    timeout = 600
    param_names: ClassVar = ["threads"]
    params: ClassVar = [[0, 1, 4]]

    def setup(self, threads: int) -> None:
        self.small, self.large = checked(500, 480), checked(600, 560)
        self.small()
        self.large()
        self.calls = [0] * threads
        self.stop = threading.Event()
        self.others = [threading.Thread(target=self._repeat, args=(i,)) for i in range(threads)]
        for other in self.others:
            other.start()

    def teardown(self, *_: object) -> None:
        self.stop.set()
        for other in self.others:
            other.join()

    def _repeat(self, i: int) -> None:
        while not self.stop.is_set():
            self.small()
            self.calls[i] += 1

    def time_spectrum(self, *_: object) -> None:
        self.large()

    def track_small_calls_meanwhile(self, *_: object) -> int:
        """The most small calls of one thread that end from just before a large call to its end; in turn, 1 or 2."""
        most = 0
        for _ in range(5):
            time.sleep(0.1)
            before = list(self.calls)
            self.large()
            most = max([most, *(after - first for after, first in zip(self.calls, before, strict=True))])
        return most

    track_small_calls_meanwhile.unit = "calls"  # type: ignore[attr-defined]
