"""Largest errors, each in the unit that its case states, against answers known exactly (or to float64, for float32)."""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks import cases, drawn, sweep_cases


def _error(build: Any, *arguments: Any) -> float:
    case: cases.Case = build(*arguments)
    return case.error(case.ours.call())


class Values:
    """Singular values of updates with exactly known ones, by the route that "auto" takes."""

    version = "1"
    unit = "eps·σ₁"
    param_names: ClassVar = ["n", "dtype", "spectrum"]
    params: ClassVar = [[16, 64, 512], ["float64", "float32"], ["graded", "deficient"]]

    def track_error(self, n: int, dtype: str, spectrum: str) -> float:
        return _error(cases.large, n, dtype, spectrum)


class Drawn:
    """Singular values of all kinds of drawn updates, against mpmath, by route and dtype; each route has its unit."""

    version = "3"
    unit = "eps·σ₁"
    timeout = 600
    param_names: ClassVar = ["route", "dtype"]
    params: ClassVar = [list(drawn.ROUTES), list(drawn.DTYPES)]

    def track_error(self, route: str, dtype: str) -> float:
        return drawn.worst(route, dtype, 20) if dtype in drawn.tried(route) else float("nan")


class Shortfall:
    """Energy that krylov misses on drawn updates, over its tolerance."""

    version = "1"
    unit = "of the tolerance"
    timeout = 600
    param_names: ClassVar = ["dtype"]
    params: ClassVar = [list(drawn.DTYPES)]

    def track_shortfall(self, dtype: str) -> float:
        return drawn.shortfall(dtype, 20)


class Leading:
    """The leading 64 of a float32 matrix whose values fall as i^-power: excess over the best possible error."""

    version = "1"
    unit = "excess"
    param_names: ClassVar = ["power", "wanted"]
    params: ClassVar = [[0.5, 1.0], ["values", "factors"]]

    def track_error(self, power: float, wanted: str) -> float:
        return _error(cases.leading, 1024, power, 64, wanted == "factors")


class Factors:
    """Singular values of a float32 product, against float64."""

    version = "1"
    unit = "eps·σ₁"
    param_names: ClassVar = ["rank"]
    params: ClassVar = [[16, 256]]

    def track_error(self, rank: int) -> float:
        return _error(cases.factors, 1024, rank)


class Kronecker:
    """Singular values of a Kronecker product of two matrices with exactly known ones."""

    version = "1"
    unit = "eps·σ₁"
    param_names: ClassVar = ["n", "dtype"]
    # Sides of 128 are beyond the kernel for small matrices: those in float32 go by their Gram matrices.
    params: ClassVar = [[16, 64, 128], ["float64", "float32"]]

    def track_error(self, n: int, dtype: str) -> float:
        return _error(cases.kronecker, n, dtype)


class Sweep:
    """Errors of whole-number spectra, whose energies have no rounding."""

    version = "1"
    unit = "eps, relative"

    def track_error(self) -> float:
        return _error(sweep_cases.sweep, 100, 4_096, 64)


class Learning:
    """The article's learning figures, against a plain NumPy loop."""

    version = "1"
    unit = "relative"
    param_names: ClassVar = ["optimizer"]
    params: ClassVar = [["sgd", "adam"]]

    def track_error(self, optimizer: str) -> float:
        return _error(sweep_cases.learning, (8, 64), 1, optimizer)
