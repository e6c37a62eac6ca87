"""Import time, and the peak memory of a process that asks one question."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from benchmarks import inputs
from lowrank_core import Spectrum, error_sweep, spectrum, truncate


class Import:
    """Imports in a process of their own."""

    version = "1"
    repeat = 5
    number = 1

    def timeraw_lowrank_core(self) -> str:
        return "import lowrank_core"

    def timeraw_numpy(self) -> str:
        return "import numpy"


def _check_energy(leading: Spectrum, energy: float) -> None:
    # Σσ² = ‖Δ‖_F² is checked without further memory.
    if not abs(float(leading.norm) ** 2 - energy) <= 1e-10 * energy:
        raise RuntimeError(f"the squared norm is {float(leading.norm) ** 2}, and should be {energy}.")


class LargeMatrix:
    """One float32 matrix of rank 64: 16 MiB at 2048."""

    version = "1"
    param_names: ClassVar = ["n"]
    params: ClassVar = [[2048]]

    def setup(self, n: int) -> None:
        B, A = inputs.factors(n, 64)
        self.matrix = B @ A
        self.energy = float(np.einsum("ij,ij->", self.matrix, self.matrix, dtype=np.float64))

    def peakmem_input_alone(self, *_: object) -> None:
        """What the input, NumPy and the package take: to be subtracted from the others."""

    def peakmem_spectrum(self, *_: object) -> None:
        _check_energy(spectrum(self.matrix), self.energy)

    def peakmem_leading(self, *_: object) -> None:
        _check_energy(spectrum(self.matrix, rank=64), self.energy)

    def peakmem_truncate(self, n: int) -> None:
        update = truncate(self.matrix, 64)
        if update.shape != (n, n):
            raise RuntimeError(f"the truncation has shape {update.shape}.")


class _Sweep:
    """Errors of spectra in hand: 32 MiB of values at a thousand, and 16 MiB of errors."""

    version = "1"
    count: int

    def setup(self) -> None:
        values = np.broadcast_to(np.arange(4_096, 0, -1.0), (self.count, 4_096))
        self.spectra = Spectrum(values, np.linalg.norm(values, axis=-1), (4_096, 4_096), complete=True)
        self.ranks = np.arange(16, 4_097, 16)

    def peakmem_input_alone(self) -> None:
        """What the input, NumPy and the package take: to be subtracted from the other."""

    def peakmem_error_sweep(self) -> None:
        errors = error_sweep(self.spectra, self.ranks, alpha=[4.0, 8.0, 16.0, 32.0]).errors
        if errors.shape != (self.count, 2, 4, 256):
            raise RuntimeError(f"the errors have shape {errors.shape}.")


class Sweep100(_Sweep):
    count = 100


class Sweep1000(_Sweep):
    count = 1_000
