"""The factors of one layer's update in their stored dtype, and what they lose of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, Spectrum, reconstruction_error, truncate
from lowrank_core import variance_captured as captured_at
from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core.models.files.blocks import frobenius_norm
from lowrank_core.models.operations.above_noise import AboveNoise
from lowrank_core.models.operations.budgets import Budget
from lowrank_core.models.operations.encoding import FactorEncoding, wider_than
from lowrank_core.models.operations.norms import product_norm, residual_norm
from lowrank_core.rounding_noise import RoundingNoise

LayerRank: TypeAlias = int | Callable[[Spectrum], Any]
"""How many components of a layer to keep: a number, or a function of the layer's spectrum."""

Rank: TypeAlias = LayerRank | Mapping[str, int] | Budget | AboveNoise
"""The same for all layers; a number for each by its name; a budget for all together; or what is above rounding."""


@dataclass(frozen=True, eq=False, slots=True)
class Factored:
    """One update as factors in their stored dtype, and what they lose of it.

    `update` is None at rank 0. `requested_rank` is not clamped to the layer's own. `error` is that of the stored
    factors, ‖Δ − γBA‖ / ‖Δ‖, and `storage_error` what their rounding moved, ‖γBA − Δ_r‖ / ‖Δ‖, with Δ_r the best
    update of this rank. `noise` is that of the stored weights, where the rank was chosen by it.
    """

    update: LowRankUpdate | None
    scaling: float
    rank: int
    requested_rank: int
    norm: float
    singular_values: NDArray[np.float64]
    variance_captured: float
    best_error: float
    error: float
    storage_error: float
    noise: RoundingNoise | None = None


def factor(
    update: NDArray[Any] | LowRankUpdate, rank: LayerRank, encoding: FactorEncoding, *, min_rank: int = 0
) -> Factored:
    r"""Return the best factors of a rank, rounded to their stored dtype, and what is lost; of one decomposition.

    The error of the factors is measured against Δ itself, in float64 and after rounding: in blocks of rows, or for a
    product through the QR factors of :math:`[\gamma' B', -\gamma B]` and :math:`[A'; A]`. Where only the leading
    singular values are known (large float32 layers at a fixed small rank) the best error is :math:`\sqrt{N^2 - H_r}/N`:
    nothing under about 3e-8 can be distinguished from zero, and the figure may be too large by a relative 5e-5.
    """
    best, spectrum, requested = _truncated(update, rank, min_rank)
    norm = float(spectrum.norm)
    stored = None
    error, storage_error = (1.0 if norm else 0.0), 0.0
    if best.rank:
        unrounded = _unrounded(best, encoding.stored_scale(best.rank).scaling)
        stored = _rounded(unrounded, encoding.dtype)
        error = residual_norm(update, stored) / (norm or 1.0)
        storage_error = product_norm(_moved(stored, unrounded)) / (norm or 1.0)
    return Factored(
        update=stored,
        scaling=0.0 if stored is None else stored.scaling,
        rank=best.rank,
        requested_rank=requested,
        norm=norm,
        singular_values=spectrum.values,
        variance_captured=float(captured_at(spectrum, best.rank)),
        best_error=float(reconstruction_error(spectrum, best.rank)),
        error=error,
        storage_error=storage_error,
    )


def check_rank(rank: Rank, names: Iterable[str]) -> None:
    """Check, before any layer is read, that a number is a rank and that a mapping has one for each layer.

    What else a mapping names does not matter: a budget may have been allocated over more layers than are written.
    """
    if isinstance(rank, Mapping):
        missing = [name for name in names if name not in rank]
        if missing:
            raise ValueError(
                f"the ranks given have none for {len(missing)} of the layers, as {missing[0]!r}: give one for each; 0 "
                "leaves a layer out"
            )
        for count in rank.values():
            _as_count(count)
    elif not (callable(rank) or isinstance(rank, Budget | AboveNoise)):
        _as_count(rank)


def rank_of(rank: LayerRank | Mapping[str, int] | AboveNoise, name: str) -> LayerRank | AboveNoise:
    """Return the rank of one layer: its entry in a mapping, else `rank` itself."""
    return rank[name] if isinstance(rank, Mapping) else rank


def keep_all(spectrum: Spectrum) -> int:
    """Return the number of components of an update, without those that are only rounding, padding or repetition."""
    largest = np.max(spectrum.values, initial=0.0)
    return int(np.count_nonzero(spectrum.values > max(spectrum.shape) * FLOATS["float64"].eps * largest))


def _moved(stored: LowRankUpdate, unrounded: LowRankUpdate) -> LowRankUpdate:
    r"""Return what rounding moved as a product in which nothing cancels.

    With B + E and A + F stored for B and A, it is :math:`\gamma [E, B]\,[A + F; F]`.
    """
    B, A = (np.asarray(factor, dtype=np.float64) for factor in (stored.B, stored.A))
    left, below = np.hstack([B - unrounded.B, unrounded.B]), np.vstack([A, A - unrounded.A])
    return LowRankUpdate(left, below, stored.scaling)


def _truncated(
    update: NDArray[Any] | LowRankUpdate, rank: LayerRank, min_rank: int
) -> tuple[LowRankUpdate, Spectrum, int]:
    """Return the best update of a rank, the spectrum, and the rank that was requested."""
    own = min(update.shape)

    # Only float32 and below are ever decomposed in part: for all others the whole spectrum costs nothing more.
    if not (isinstance(update, LowRankUpdate) or callable(rank) or update.dtype == np.float64):
        requested, norm = _as_count(rank), frobenius_norm(update)
        best = truncate(update, max(min(requested, own) if norm else 0, min_rank))
        values = np.sort(np.linalg.norm(best.B, axis=0))[::-1]
        m, n = update.shape
        return best, Spectrum(values, np.asarray(norm), (m, n), best.rank == own, update.dtype), requested

    seen: list[tuple[Spectrum, int]] = []

    def choose(spectrum: Spectrum) -> int:
        requested = _as_count(rank(spectrum) if callable(rank) else rank)
        seen.append((spectrum, requested))
        rounding = _rounding_bound(update) if isinstance(update, LowRankUpdate) else 0.0
        return max(min(requested, own, int(np.count_nonzero(spectrum.values > rounding))), min_rank)

    best = truncate(update, choose)
    return best, *seen[0]


def _rounding_bound(update: LowRankUpdate) -> float:
    """Return a bound on what rounding in float64 makes of a product's zero singular values.

    QR errs within eps in each column, and the core within eps·Σ‖b_i‖‖a_i‖, however much of that cancels in the product
    itself, as it does in the difference of two adapters: such values are not components.
    """
    (B, B_exponent), (A, A_exponent) = _column_norms(update.B), _column_norms(update.A.T)
    size = float(np.dot(B, A)) * abs(update.scaling) * max(update.shape) * FLOATS["float64"].eps
    with np.errstate(over="ignore"):
        return float(np.ldexp(size, B_exponent + A_exponent))


def _column_norms(factor: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Return norms of columns over a power of two, and its exponent: squares of 1e200 overflow."""
    columns = factor.astype(np.float64)
    exponent = int(np.frexp(np.max(np.abs(columns), initial=0.0))[1])
    return np.linalg.norm(np.ldexp(columns, -exponent, out=columns), axis=0), exponent


def _as_count(rank: Any) -> int:
    count = int(rank)
    if count != rank or count < 0 or isinstance(rank, bool):
        raise ValueError(f"a rank is a whole number of at least 0; got {rank!r}")
    return count


def _unrounded(best: LowRankUpdate, scaling: float) -> LowRankUpdate:
    """Return factors that divide each component's size equally, √Σ in both, under a scale that is not their own."""
    balanced, divisor = best.balanced(), math.sqrt(scaling)
    return LowRankUpdate(balanced.B / divisor, balanced.A / divisor, scaling)


def _rounded(update: LowRankUpdate, dtype: str) -> LowRankUpdate:
    with np.errstate(over="ignore"):
        B, A = (factor.astype(as_dtype(dtype)) for factor in (update.B, update.A))
    if not (np.isfinite(B).all() and np.isfinite(A).all()):
        raise ValueError(f"its factors do not fit {dtype}: store them in {wider_than(dtype)}")
    return LowRankUpdate(B, A, update.scaling)
