"""The factors of one layer's update as they are stored, in their dtype and under their scale, and what they lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, Spectrum, reconstruction_error, scaling_rule, spectrum, truncate
from lowrank_core import variance_captured as captured_at
from lowrank_core._dtypes import FLOATS, WRITTEN_FLOATS, as_dtype
from lowrank_core._linalg import best_factors_and_values
from lowrank_core._validation import as_workers
from lowrank_core.models.files.tensors import Weight
from lowrank_core.models.formats.format import StoredScale, scale_by_rule
from lowrank_core.models.norms import Update, product_norm, residual_norm
from lowrank_core.models.operations.rank_choice import LayerRank, as_count, keep_all
from lowrank_core.models.rounding import rounded
from lowrank_core.rounding_noise import RoundingNoise

RULES = ("rslora", "standard")
DEFAULT_ALPHA = 16.0


@dataclass(frozen=True)
class FactorEncoding:
    """How factors are stored, beside their rank.

    `uniform`: all layers will be padded to one rank r with α = r, so that the scale is 1. `scale` is the format's.
    """

    dtype: str = "float32"
    alpha: float | None = None
    rule: str = "standard"
    uniform: bool = False
    scale: Callable[[float, str, int, np.dtype[Any]], StoredScale] = scale_by_rule

    def __post_init__(self) -> None:
        if self.dtype not in WRITTEN_FLOATS:
            raise ValueError(f"unsupported dtype {self.dtype!r}: {', '.join(WRITTEN_FLOATS)} are written")
        if self.rule not in RULES:
            raise ValueError(f"unsupported rule {self.rule!r}: an adapter can name {', '.join(RULES)} (α/√r and α/r)")
        if self.uniform and (self.alpha is not None or self.rule != "standard"):
            raise ValueError("uniform sets alpha to the one rank and the rule to 'standard': leave both out")
        scaling_rule(self.rule)(self._alpha, 1)

    @property
    def _alpha(self) -> float:
        return DEFAULT_ALPHA if self.alpha is None else self.alpha

    def stored_scale(self, rank: int) -> StoredScale:
        """Return the alpha that is stored for a layer of this rank, at least 1, and the scale that readers apply."""
        if self.uniform:
            return StoredScale(rank, float(rank), 1.0)
        return self.scale(self._alpha, self.rule, rank, as_dtype(self.dtype))

    def uniform_rank(self, least: int) -> int:
        """Return the smallest sufficient rank that a stored alpha can equal: bfloat16 has no 257."""
        rank = least
        while self.scale(float(rank), "standard", rank, as_dtype(self.dtype)).alpha != rank:
            rank += 1
        return rank


@dataclass(frozen=True, eq=False, slots=True)
class Factored:
    """One update as factors in their stored dtype, and what they lose of it.

    `update` is None at rank 0. `requested_rank` is not clamped to the layer's own. `error` is that of the stored
    factors, ‖Δ − γBA‖ / ‖Δ‖, and `storage_error` what their rounding moved, ‖γBA − Δ_r‖ / ‖Δ‖, with Δ_r the best
    update of this rank. `missed` bounds the energy that Δ_r lacks, as in a Spectrum. `noise` is that of the stored
    weights, where the rank was chosen by it, and `base_norm` the norm of the weight before training, where it is known.
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
    missed: float = 0.0
    noise: RoundingNoise | None = None
    base_norm: float | None = None


def factor(
    update: Update, rank: LayerRank, encoding: FactorEncoding, *, min_rank: int = 0, tolerance: float | None = None
) -> Factored:
    """Return the best factors of a rank, as :func:`factor_each` does."""
    return factor_each(update, [rank], encoding, min_rank=min_rank, tolerance=tolerance)[0]


def factor_each(
    update: Update,
    ranks: Sequence[LayerRank],
    encoding: FactorEncoding,
    *,
    min_rank: int = 0,
    tolerance: float | None = None,
) -> list[Factored]:
    r"""Return the best factors of each rank, rounded to their stored dtype, and what is lost; of one decomposition.

    The error of the factors is measured against Δ itself, in float64 and after rounding: in blocks of rows, or for a
    product through the QR factors of :math:`[\gamma' B', -\gamma B]` and :math:`[A'; A]`. Where only the leading
    singular values are known (large layers at a fixed small rank, and all in float32) the best error is
    :math:`\sqrt{N^2 - H_r}/N`: nothing under about 3e-8 can be distinguished from zero, and the figure may be too large
    by half of what is missed, relative to itself.
    """
    best, spectrum, kept = _truncated(update, ranks, min_rank, tolerance)
    return [
        _encoded(update, LowRankUpdate(best.B[:, :rank], best.A[:rank]), spectrum, requested, encoding)
        for requested, rank in kept
    ]


def _encoded(
    update: Update, best: LowRankUpdate, spectrum: Spectrum, requested: int, encoding: FactorEncoding
) -> Factored:
    """Return the best factors of an update as they are stored, and what they lose of it."""
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
        missed=float(spectrum.missed),
    )


def unchanged(update: Update, encoding: FactorEncoding) -> Factored:
    """Return factors as they are, B but for the scale that the encoding lacks; what has no factors is factored in full.

    Only in another dtype, or under a scale that is not their own, do they lose anything, and that is rounding.
    """
    if not isinstance(update, LowRankUpdate):
        return factor(update, keep_all, encoding)
    scaling = encoding.stored_scale(update.rank).scaling
    missing = update.scaling / scaling
    stored = _rounded(LowRankUpdate(update.B * np.float64(missing), update.A, scaling), encoding.dtype)
    decomposed = spectrum(update)
    norm, rank = float(decomposed.norm), min(update.rank, *update.shape)
    is_same = missing == 1.0 and np.array_equal(stored.B, update.B) and np.array_equal(stored.A, update.A)
    error = 0.0 if is_same else residual_norm(update, stored) / (norm or 1.0)
    return Factored(
        update=stored,
        scaling=scaling,
        rank=update.rank,
        requested_rank=update.rank,
        norm=norm,
        singular_values=decomposed.values,
        variance_captured=float(captured_at(decomposed, rank)),
        best_error=float(reconstruction_error(decomposed, rank)),
        error=error,
        storage_error=error,
    )


def item_size(tensor: Weight) -> int:
    """Return the bytes of one entry of a tensor as it is read."""
    return as_dtype(tensor.array_dtype).itemsize


def wider_than(dtype: str) -> str:
    """Return what to store numbers in that are too large or too small for a dtype."""
    return "bfloat16 or float32" if dtype == "float16" else "float64"


def finest_dtype(tensors: Iterable[Weight]) -> str:
    """Return the finest dtype that factors are stored in, "float32" where there are none, at least bfloat16."""
    stored = {tensor.array_dtype for tensor in tensors} & FLOATS.keys()
    finest = min(stored, key=lambda name: FLOATS[name].eps, default="float32")
    return finest if finest in WRITTEN_FLOATS else WRITTEN_FLOATS[-1]


def _moved(stored: LowRankUpdate, unrounded: LowRankUpdate) -> LowRankUpdate:
    r"""Return what rounding moved as a product in which nothing cancels.

    With B + E and A + F stored for B and A, it is :math:`\gamma [E, B]\,[A + F; F]`.
    """
    B, A = (np.asarray(factor, dtype=np.float64) for factor in (stored.B, stored.A))
    left, below = np.hstack([B - unrounded.B, unrounded.B]), np.vstack([A, A - unrounded.A])
    return LowRankUpdate(left, below, stored.scaling)


def _truncated(
    update: Update, ranks: Sequence[LayerRank], min_rank: int, tolerance: float | None
) -> tuple[LowRankUpdate, Spectrum, list[tuple[int, int]]]:
    """Return the best update of the largest rank, the spectrum, and for each rank what was requested and is kept."""
    own = min(update.shape)
    counts = [rank for rank in ranks if not callable(rank)]

    if isinstance(update, np.ndarray) and len(counts) == len(ranks):
        requested = [as_count(rank) for rank in counts]
        best, leading = _leading_part(update, max(min(max(requested), own), min_rank), tolerance)
        largest = min(best.rank, int(np.count_nonzero(leading.values)))
        return best, leading, [(rank, max(min(rank, largest), min_rank)) for rank in requested]

    seen: list[tuple[Spectrum, list[tuple[int, int]]]] = []

    def choose(spectrum: Spectrum) -> int:
        rounding = _rounding_bound(update) if isinstance(update, LowRankUpdate) else 0.0
        largest = min(own, int(np.count_nonzero(spectrum.values > rounding)))
        requested = [as_count(rank(spectrum) if callable(rank) else rank) for rank in ranks]
        kept = [(rank, max(min(rank, largest), min_rank)) for rank in requested]
        seen.append((spectrum, kept))
        return max(rank for _, rank in kept)

    best = truncate(update, choose)
    return best, *seen[0]


def _leading_part(update: NDArray[Any], rank: int, tolerance: float | None) -> tuple[LowRankUpdate, Spectrum]:
    """Return the best update of a rank, from 0 to min(m, n), and what its decomposition shows of the spectrum."""
    m, n = update.shape
    dtype = update.dtype.name
    B, A, found = best_factors_and_values(update, dtype, rank, tolerance=tolerance, workers=as_workers(None))
    # By a Gram matrix the smallest values are rounding, of which no tail can be summed: the norms of columns are not.
    values = found.values if dtype == "float64" else np.sort(np.linalg.norm(B, axis=0))[::-1]
    return LowRankUpdate(B, A), Spectrum(values, found.norms, (m, n), len(values) == min(m, n), dtype, found.missed)


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


def _unrounded(best: LowRankUpdate, scaling: float) -> LowRankUpdate:
    """Return factors that divide each component's size equally, √Σ in both, under a scale that is not their own."""
    balanced, divisor = best.balanced(), math.sqrt(scaling)
    return LowRankUpdate(balanced.B / divisor, balanced.A / divisor, scaling)


def _rounded(update: LowRankUpdate, dtype: str) -> LowRankUpdate:
    B, A = (rounded(factor.astype(np.float64), dtype) for factor in (update.B, update.A))
    if not (np.isfinite(B).all() and np.isfinite(A).all()):
        raise ValueError(f"its factors do not fit {dtype}: store them in {wider_than(dtype)}")
    return LowRankUpdate(B, A, update.scaling)
