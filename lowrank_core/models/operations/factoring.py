"""One layer's update becomes the factors that a file will hold, and what was lost on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lowrank_core import LowRankUpdate, Spectrum, reconstruction_error, scaling_rule, truncate
from lowrank_core import variance_captured as captured_at
from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core.models.files.blocks import frobenius_norm
from lowrank_core.models.operations.above_noise import AboveNoise
from lowrank_core.models.operations.budgets import Budget
from lowrank_core.models.operations.norms import product_norm, residual_norm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from lowrank_core.models.files.tensors import StoredTensor
    from lowrank_core.rounding_noise import RoundingNoise

LayerRank: TypeAlias = int | Callable[[Spectrum], Any]
"""How many components of a layer to keep: a number, or a function that gives it from the layer's spectrum."""

Rank: TypeAlias = LayerRank | Mapping[str, int] | Budget | AboveNoise
"""The same for all layers; a number for each by its name; a budget for all together; or what stands above rounding."""

PEFT_RULES = ("rslora", "standard")
DEFAULT_ALPHA = 16.0


@dataclass(frozen=True)
class Form:
    """
    How factors are stored, beside their rank.

    Attributes
    ----------
    dtype : str
        "float64", "float32", "float16" or "bfloat16".
    alpha : float
        The alpha of every layer, where the scale is not 1.
    rule : str
        "standard" (α/r) or "rslora" (α/√r).
    uniform : bool
        Whether all layers will be padded to one rank r with α = r: the scale is then 1.
    kohya : bool
        Whether alpha is stored as a tensor of the factors' dtype and read as α/r.

    Raises
    ------
    ValueError
        If the dtype, the rule or the alpha is not one, or `uniform` is given with another rule or an alpha.
    """

    dtype: str = "float32"
    alpha: float | None = None
    rule: str = "standard"
    uniform: bool = False
    kohya: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in FLOATS:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(FLOATS)}")
        if self.rule not in PEFT_RULES:
            raise ValueError(
                f"rule {self.rule!r} is none that an adapter can name: {', '.join(PEFT_RULES)} (α/√r and α/r) are"
            )
        if self.uniform and (self.alpha is not None or self.rule != "standard"):
            raise ValueError("uniform sets alpha to the one rank and the rule to 'standard': leave both out")
        scaling_rule(self.rule)(self._alpha, 1)

    @property
    def _alpha(self) -> float:
        return DEFAULT_ALPHA if self.alpha is None else self.alpha

    def alpha_at(self, rank: int) -> float:
        """
        Give the alpha that a file will hold for a layer.

        Parameters
        ----------
        rank : int
            At least 1.

        Returns
        -------
        float
            Where it is a tensor of low precision, the nearest that can be stored: the factors then take up the rest.
        """
        if self.uniform:
            return float(rank)
        if not self.kohya:
            return self._alpha
        # Readers of kohya's format know α/r alone, so that α√r stands in for the other rule.
        standing = self._alpha * (math.sqrt(rank) if self.rule == "rslora" else 1.0)
        return float(np.asarray(standing, dtype=as_dtype(self.dtype)))

    def scaling_at(self, rank: int) -> float:
        """
        Give the scale that a reader of the file will apply to a layer.

        Parameters
        ----------
        rank : int
            At least 1.

        Returns
        -------
        float
            γ.
        """
        rule = "standard" if self.kohya else self.rule
        return float(scaling_rule(rule)(self.alpha_at(rank), rank))


@dataclass(frozen=True, eq=False, slots=True)
class Factored:
    """
    One update as the factors that a file will hold, checked against the update.

    Attributes
    ----------
    update : LowRankUpdate or None
        The factors in their stored dtype, and the scale that a reader applies; None at rank 0.
    scaling : float
        The scale γ that a reader applies; 0 at rank 0.
    rank : int
        Number of components kept.
    asked : int
        The rank asked for, before it was clamped to the layer's own.
    norm : float
        Frobenius norm of the update.
    singular_values : ndarray
        Those found, descending: all that are not zero for certain, or the leading ones that were asked for.
    variance_captured, best_error : float
        What the best update of this rank holds, and its relative error.
    error : float
        Relative error of what is stored, measured after rounding: ‖Δ − γBA‖ / ‖Δ‖.
    storage_error : float
        What rounding moved: ‖γBA − Δ_r‖ / ‖Δ‖, with Δ_r the best update of this rank before it was rounded.
    noise : RoundingNoise or None
        What the rounding of the stored weights had added to the update, where the rank was chosen by it.
    """

    update: LowRankUpdate | None
    scaling: float
    rank: int
    asked: int
    norm: float
    singular_values: NDArray[np.float64]
    variance_captured: float
    best_error: float
    error: float
    storage_error: float
    noise: RoundingNoise | None = None


def factor(update: NDArray[Any] | LowRankUpdate, rank: LayerRank, form: Form, *, at_least: int = 0) -> Factored:
    r"""
    Truncate an update, round its factors to their stored dtype, and measure what is lost.

    Parameters
    ----------
    update : ndarray or LowRankUpdate, shape (m, n)
        Δ; of a LowRankUpdate the product is never formed.
    rank : int or callable
        How many components to keep, clamped to what the update has.
    form : Form
        How the factors are stored.
    at_least : int
        The least rank, where a layer may not be left out.

    Returns
    -------
    Factored
        One decomposition was made.

    Raises
    ------
    ValueError
        If the update is not finite, the rank is not one, or the factors do not fit their stored dtype.

    Notes
    -----
    The error of the factors is measured against Δ itself, in float64 and after rounding: in blocks of rows, or for a
    product through the QR factors of :math:`[\gamma' B', -\gamma B]` and :math:`[A'; A]`. Where only the leading
    singular values are known (large float32 layers at a fixed small rank) the best error is :math:`\sqrt{N^2 - H_r}/N`:
    nothing under about 3e-8 can be told from zero by it, and it may lie above the truth by a relative 5e-5.
    """
    best, found, asked = _truncated(update, rank, at_least)
    norm = float(found.norm)
    stored = None
    error, storage_error = (1.0 if norm else 0.0), 0.0
    if best.rank:
        unrounded = _unrounded(best, form.scaling_at(best.rank))
        stored = _rounded(unrounded, form.dtype)
        error = residual_norm(update, stored) / (norm or 1.0)
        storage_error = product_norm(_moved(stored, unrounded)) / (norm or 1.0)
    return Factored(
        update=stored,
        scaling=0.0 if stored is None else stored.scaling,
        rank=best.rank,
        asked=asked,
        norm=norm,
        singular_values=found.values,
        variance_captured=float(captured_at(found, best.rank)),
        best_error=float(reconstruction_error(found, best.rank)),
        error=error,
        storage_error=storage_error,
    )


def check_rank(rank: Rank, names: Iterable[str]) -> None:
    """
    Refuse a rank that is none, before any layer is read.

    Parameters
    ----------
    rank : int, callable, mapping, Budget or AboveNoise
        As in :data:`Rank`.
    names : iterable of str
        The layers.

    Raises
    ------
    ValueError
        If a number is no rank, or a mapping has none for a layer. What else a mapping names does not matter: a budget
        may have been allocated over more layers than are written.
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
    """
    Give the rank of one layer.

    Parameters
    ----------
    rank : int, callable, mapping or AboveNoise
        As in :data:`Rank`, with a budget shared already.
    name : str
        The layer.

    Returns
    -------
    int, callable or AboveNoise
        The layer's entry of a mapping; else `rank` itself.
    """
    return rank[name] if isinstance(rank, Mapping) else rank


def everything(found: Spectrum) -> int:
    """
    Keep every component of an update: a rank as :data:`Rank` takes it.

    Parameters
    ----------
    found : Spectrum
        The layer's.

    Returns
    -------
    int
        The number of its values that are more than the rounding of the float64 they were found in: padding with zeros
        and repeated components are no components.
    """
    largest = np.max(found.values, initial=0.0)
    return int(np.count_nonzero(found.values > max(found.shape) * FLOATS["float64"].eps * largest))


def wider_than(dtype: str) -> str:
    """
    Name what to store numbers in that are too large or too small for a dtype.

    Parameters
    ----------
    dtype : str
        One of the table's.

    Returns
    -------
    str
        Those of a wider range.
    """
    return "bfloat16 or float32" if dtype == "float16" else "float64"


def stored_bytes(tensors: Iterable[StoredTensor]) -> int:
    """
    Add up what tensors take in their files.

    Parameters
    ----------
    tensors : iterable of StoredTensor
        Of types that hold weights.

    Returns
    -------
    int
        Bytes.
    """
    return sum(tensor.size * as_dtype(tensor.dtype).itemsize for tensor in tensors)


def _moved(stored: LowRankUpdate, unrounded: LowRankUpdate) -> LowRankUpdate:
    r"""
    Give what rounding moved as a product in which nothing cancels.

    With B + E and A + F stored for B and A, it is :math:`\gamma [E, B]\,[A + F; F]`.
    """
    B, A = (np.asarray(factor, dtype=np.float64) for factor in (stored.B, stored.A))
    left, below = np.hstack([B - unrounded.B, unrounded.B]), np.vstack([A, A - unrounded.A])
    return LowRankUpdate(left, below, stored.scaling)


def _truncated(
    update: NDArray[Any] | LowRankUpdate, rank: LayerRank, at_least: int
) -> tuple[LowRankUpdate, Spectrum, int]:
    """Give the best update of that rank, the spectrum, and the rank asked for."""
    own = min(update.shape)

    # Only float32 and below are ever decomposed in part: for all others the whole spectrum comes at no cost.
    if not (isinstance(update, LowRankUpdate) or callable(rank) or update.dtype == np.float64):
        asked, norm = _as_count(rank), frobenius_norm(update)
        best = truncate(update, max(min(asked, own) if norm else 0, at_least))
        values = np.sort(np.linalg.norm(best.B, axis=0))[::-1]
        m, n = update.shape
        found = Spectrum(values, np.asarray(norm), (m, n), best.rank == own, update.dtype)
        return best, found, asked

    seen: list[tuple[Spectrum, int]] = []

    def choose(found: Spectrum) -> int:
        asked = _as_count(rank(found) if callable(rank) else rank)
        seen.append((found, asked))
        floor = _rounding(update) if isinstance(update, LowRankUpdate) else 0.0
        return max(min(asked, own, int(np.count_nonzero(found.values > floor))), at_least)

    best = truncate(update, choose)
    return best, *seen[0]


def _rounding(update: LowRankUpdate) -> float:
    """
    Bound what rounding in float64 puts in the place of a product's zero singular values.

    QR errs within eps in each column, and the core within eps·Σ‖b_i‖‖a_i‖, however much of that cancels in the product
    itself, as it does in the difference of two adapters: such values are no components.
    """
    (B, B_exponent), (A, A_exponent) = _column_norms(update.B), _column_norms(update.A.T)
    size = float(np.dot(B, A)) * abs(update.scaling) * max(update.shape) * FLOATS["float64"].eps
    with np.errstate(over="ignore"):
        return float(np.ldexp(size, B_exponent + A_exponent))


def _column_norms(factor: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Norms of columns over a power of two, with its exponent: squares of 1e200 do not fit."""
    columns = factor.astype(np.float64)
    exponent = int(np.frexp(np.max(np.abs(columns), initial=0.0))[1])
    return np.linalg.norm(np.ldexp(columns, -exponent, out=columns), axis=0), exponent


def _as_count(rank: Any) -> int:
    count = int(rank)
    if count != rank or count < 0 or isinstance(rank, bool):
        raise ValueError(f"a rank is a whole number of at least 0; got {rank!r}")
    return count


def _unrounded(best: LowRankUpdate, scaling: float) -> LowRankUpdate:
    """Give an update factors that share each component's size, √Σ in both, under a scale that is not its own."""
    balanced, share = best.balanced(), math.sqrt(scaling)
    return LowRankUpdate(balanced.B / share, balanced.A / share, scaling)


def _rounded(update: LowRankUpdate, dtype: str) -> LowRankUpdate:
    kind = as_dtype(dtype)
    with np.errstate(over="ignore"):
        stored = LowRankUpdate(update.B.astype(kind), update.A.astype(kind), update.scaling)
    if not (np.isfinite(stored.B).all() and np.isfinite(stored.A).all()):
        raise ValueError(f"its factors do not fit {dtype}: store them in {wider_than(dtype)}")
    return stored
