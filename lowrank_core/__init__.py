"""Numerical core for low-rank weight updates: spectra, truncations, errors, scaling rules, learning, ranks."""

import typing as _typing

from lowrank_core.allocation import RankAllocation, allocate_ranks
from lowrank_core.comparison import Comparison, compare
from lowrank_core.kronecker_updates import KroneckerUpdate
from lowrank_core.learning import LearningSweep, learning_sweep
from lowrank_core.ranks import (
    effective_rank,
    numerical_rank,
    rank_above_noise,
    rank_for_error,
    rank_for_ratio,
    rank_for_variance,
    stable_rank,
)
from lowrank_core.scaling import (
    equivalent_alpha,
    learning_gain,
    power_rule,
    rslora,
    scaling_rule,
    standard,
    unscaled,
)
from lowrank_core.space_overlap import SpaceOverlap
from lowrank_core.spectra import Spectrum, spectrum
from lowrank_core.structured import low_rank_hadamard, low_rank_tucker
from lowrank_core.sweeps import ErrorSweep, error_sweep, reconstruction_error, variance_captured
from lowrank_core.synthetic import facts_update, style_update, update_with_spectrum
from lowrank_core.truncation import truncate
from lowrank_core.updates import LowRankUpdate, low_rank_sum

__all__ = [
    "Comparison",
    "ErrorSweep",
    "KroneckerUpdate",
    "LearningSweep",
    "LowRankUpdate",
    "RankAllocation",
    "SpaceOverlap",
    "Spectrum",
    "__version__",
    "allocate_ranks",
    "compare",
    "effective_rank",
    "equivalent_alpha",
    "error_sweep",
    "facts_update",
    "learning_gain",
    "learning_sweep",
    "low_rank_hadamard",
    "low_rank_sum",
    "low_rank_tucker",
    "numerical_rank",
    "power_rule",
    "rank_above_noise",
    "rank_for_error",
    "rank_for_ratio",
    "rank_for_variance",
    "reconstruction_error",
    "rslora",
    "scaling_rule",
    "spectrum",
    "stable_rank",
    "standard",
    "style_update",
    "truncate",
    "unscaled",
    "update_with_spectrum",
    "variance_captured",
]

if _typing.TYPE_CHECKING:
    __version__: str
else:  # a function that type checkers saw would make every name of the package a known one

    def __getattr__(name):
        """Return the version, or the package for whole models: at its first use, because both take time to import."""
        if name == "models":
            from importlib import import_module

            return import_module("lowrank_core.models")
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("lowrank_core")
