"""Two updates of one shape: the cosine between them, the angles of their spaces, and what each holds of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import Operand, Side, cross, scaled_to_unit
from lowrank_core._results import EqualByContent, html_table, shape_text, span
from lowrank_core._validation import as_matrices, as_rank, as_stack, as_workers, broadcast_batches, check_finite
from lowrank_core.kronecker_updates import KroneckerUpdate
from lowrank_core.ranks import above_rounding
from lowrank_core.space_overlap import SpaceOverlap, overlap_dimensions
from lowrank_core.spectra import Spectrum, spectrum
from lowrank_core.truncation import truncate
from lowrank_core.updates import LowRankUpdate, low_rank_sum

__all__ = ["Comparison", "compare"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(EqualByContent):
    r"""How two updates of one shape lie to each other.

    Attributes
    ----------
    shape : (int, int)
        Shape (m, n) of one matrix.
    first_norm, second_norm : ndarray, shape (...)
        Frobenius norms :math:`\lVert\Delta_1\rVert` and :math:`\lVert\Delta_2\rVert`.
    cosine : ndarray, shape (...)
        :math:`\langle\Delta_1, \Delta_2\rangle / (\lVert\Delta_1\rVert \lVert\Delta_2\rVert)`; 0 for a zero update.
    sum_norm : ndarray, shape (...)
        :math:`\lVert\Delta_1 + \Delta_2\rVert`, also where the sum cancels.
    columns, rows : SpaceOverlap
        The column spaces (left singular vectors) and the row spaces (right singular vectors).

    See Also
    --------
    compare : Compute it.

    Notes
    -----
    Overlap is geometry and no promise: two updates that are orthogonal may change the same outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import compare
    >>> comparison = compare(np.diag([3.0, 4.0]), np.diag([0.0, 4.0]))
    >>> comparison.cosine, comparison.sum_norm.round(3), comparison.orthogonal_norm.round(3)
    (array(0.8), np.float64(8.544), np.float64(6.403))
    """

    shape: tuple[int, int]
    first_norm: Floats
    second_norm: Floats
    cosine: Floats
    sum_norm: Floats
    columns: SpaceOverlap
    rows: SpaceOverlap

    def __repr__(self) -> str:
        shape = shape_text((*self.cosine.shape, *self.shape))
        return f"<Comparison {shape}: cosine {span(self.cosine)}, random 0 ± {self.cosine_deviation:.2g}>"

    def _repr_html_(self) -> str:
        figures = (self.first_norm, self.second_norm, self.cosine, self.sum_norm, self.orthogonal_norm)
        columns = zip(np.ndindex(self.cosine.shape), *map(np.ravel, figures), strict=True)
        rows = [[pair or "", *numbers] for pair, *numbers in columns]
        return html_table(repr(self), ["pair", "‖Δ₁‖", "‖Δ₂‖", "cosine", "‖Δ₁ + Δ₂‖", "if orthogonal"], rows)

    @property
    def orthogonal_norm(self) -> Floats:
        r"""Norm :math:`\sqrt{\lVert\Delta_1\rVert^2 + \lVert\Delta_2\rVert^2}` of the sum if both were orthogonal."""
        return np.hypot(self.first_norm, self.second_norm)

    @property
    def cosine_deviation(self) -> float:
        r"""Standard deviation :math:`1/\sqrt{mn}` of the cosine of updates with random singular vectors.

        Its mean is 0: :math:`\mathbb{E}(u_i^T u_j)^2 (v_i^T v_j)^2 = 1/(mn)`, and different pairs are uncorrelated.
        """
        return 1.0 / float(np.sqrt(float(self.shape[0]) * self.shape[1]))


def compare(first: Any, second: Any, *, rank: int | None = None, workers: int | None = None) -> Comparison:
    r"""Compare two updates of one shape: norms, cosine, principal angles and overlaps of their leading spaces.

    Parameters
    ----------
    first, second : array_like, torch.Tensor, LowRankUpdate or KroneckerUpdate, shape (..., m, n)
        Their batch axes broadcast. Nothing of the size of a LowRankUpdate is formed. A KroneckerUpdate is taken by the
        singular vectors of its sides, a dense update by its own.
    rank : int, optional
        How many leading singular vectors of each are compared, from 0 to min(m, n), or as many as it has. None for all,
        which decomposes a dense update fully. Norms, the cosine and what is captured are those of whole updates
        whatever the rank.
    workers : int, optional
        Threads over the batch, or over one large matrix; None for every core this process may use.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If the shapes differ or the batch axes do not broadcast; as :func:`spectrum` for each update; if the norm of the
        sum does not fit float64.

    See Also
    --------
    low_rank_sum : The sum itself.
    spectrum : The singular values of one update.

    Notes
    -----
    Singular vectors are counted up to the numerical rank (:func:`numerical_rank`), so that a zero update has none: its
    cosine and overlaps are 0, and there are no angles. Two updates with factors from one initialisation share their row
    space, whatever they have learnt.

    Results are those of dense arithmetic within 1e-10 where the leading spaces are well defined: for equal singular
    values the vectors are not, and neither are overlaps that separate them. Angles below 45° are taken from their
    sines, so that small ones keep their digits.

    References
    ----------
    Björck and Golub, "Numerical Methods for Computing Angles Between Linear Subspaces", Math. Comp. 27 (1973) 579;
    Knyazev and Argentati, SIAM J. Sci. Comput. 23 (2002) 2008, algorithm 3.1, for sines and cosines together.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import LowRankUpdate, compare
    >>> rng = np.random.default_rng(0)
    >>> one, other = (LowRankUpdate(rng.normal(size=(400, 4)), rng.normal(size=(4, 300))) for _ in "12")
    >>> comparison = compare(one, other)
    >>> bool(abs(comparison.cosine) < 4 * comparison.cosine_deviation)
    True
    >>> comparison.columns.overlap_by_chance[3, 3]
    np.float64(0.01)
    >>> compare(one, one).columns.overlap[3, 3].round(12)
    np.float64(1.0)
    """
    count = as_workers(workers)
    one, other = _factored(first, "first", rank, count), _factored(second, "second", rank, count)
    shape = (one.factors.shape[-2], one.factors.shape[-1])
    if shape != other.factors.shape[-2:]:
        raise ValueError(
            f"first has shape {one.factors.shape} and second {other.factors.shape}; two updates of one shape (m, n) "
            "are needed, as two adapters have for one module. Pass the transpose of one that is stored transposed."
        )
    batch = broadcast_batches({"first": one.factors.shape[:-2], "second": other.factors.shape[:-2]})
    crossing, is_finite = cross(_operand(one, batch), _operand(other, batch), count)
    if not is_finite:
        for factors, name in ((one.factors, "first"), (other.factors, "second")):
            check_finite(factors.B, f"B of {name}")
            check_finite(factors.A, f"A of {name}")
    norms = [norm.reshape(batch) for norm in crossing.norms]
    ranks = [rank.reshape(batch) for rank in crossing.ranks]
    cosine = crossing.cosines.reshape(batch)
    sides = (crossing.left, crossing.right)
    columns, rows = (
        _space_overlap(dimension, side, (ranks[0], ranks[1]), angles.reshape(*batch, angles.shape[-1]))
        for dimension, side, angles in zip(shape, sides, _angles(sides, crossing.ranks, count), strict=True)
    )
    return Comparison(
        shape, norms[0], norms[1], cosine, _sum_norm(one, other, norms[0], norms[1], cosine), columns, rows
    )


class _Factored(NamedTuple):
    """An update as factors, all of it or the leading part of dense `matrices`, and how many vectors are compared."""

    factors: LowRankUpdate
    are_decomposed: bool
    matrices: NDArray[Any] | None
    dtype: str
    kept: int

    @property
    def is_partial(self) -> bool:
        """Whether the factors are a leading part."""
        return self.matrices is not None and self.kept < min(self.matrices.shape[-2:])

    def count_above_rounding(self, values: Floats) -> NDArray[np.int64]:
        """Return numerical ranks, or the number of leading values if it is less; `values` are over the norms."""
        if not values.size:
            return np.zeros(len(values), np.int64)
        # By their values: the norm itself may be below float64.
        is_zero = ~values.any(axis=-1)
        m, n = self.factors.shape[-2:]
        unit = Spectrum(values, np.where(is_zero, 0.0, 1.0), (m, n), not self.is_partial, self.dtype)
        counts = above_rounding(unit).sum(axis=-1)
        return np.where(is_zero, 0, np.maximum(1, counts))


def _factored(update: Any, name: str, rank: int | None, workers: int) -> _Factored:
    if not isinstance(update, LowRankUpdate | KroneckerUpdate):
        matrices, dtype = as_matrices(update, name)
        p = min(matrices.shape[-2:])
        kept = p if rank is None else as_rank(rank, p)
        check_finite(matrices, name)
        return _Factored(truncate(matrices, kept, workers=workers), True, matrices, dtype, kept)
    p = min(update.shape[-2:])
    wanted = p if rank is None else as_rank(rank, p)
    factors = truncate(update, update.rank, workers=workers) if isinstance(update, KroneckerUpdate) else update
    return _Factored(factors, factors is not update, None, update.dtype, min(wanted, factors.rank))


def _operand(factored: _Factored, batch: tuple[int, ...]) -> Operand:
    factors = factored.factors
    return Operand(
        _stack(factors.B, batch),
        _stack(factors.A, batch),
        factors.scaling,
        factored.kept,
        factored.count_above_rounding,
        factored.are_decomposed,
        _stack(factored.matrices, batch) if factored.matrices is not None and factored.is_partial else None,
    )


def _stack(matrices: NDArray[Any], batch: tuple[int, ...]) -> NDArray[Any]:
    return as_stack(_broadcast(matrices, batch), 2)


def _broadcast(matrices: NDArray[Any], batch: tuple[int, ...]) -> NDArray[Any]:
    return np.broadcast_to(matrices, (*batch, *matrices.shape[-2:]))


def _sum_norm(one: _Factored, other: _Factored, first: Floats, second: Floats, cosine: Floats) -> Floats:
    """Compute the norm of the sum: by the cosine, or from the sum itself where it cancels."""
    exponents = np.frexp(np.maximum(first, second))[1]
    a, b = np.ldexp(first, -exponents), np.ldexp(second, -exponents)
    # Not a**2: of a lone number NumPy computes that by another function, which rounds differently.
    squares = np.square(a) + np.square(b)
    sums = squares + 2.0 * cosine * a * b
    with np.errstate(over="ignore"):
        norms = np.array(np.ldexp(np.sqrt(np.maximum(sums, 0.0)), exponents))
    cancels = np.asarray(sums < squares / 2)
    batch = norms.shape
    for index in np.ndindex(batch):
        if cancels[index]:
            norms[index] = _exact_sum_norm(_item(one, batch, index), _item(other, batch, index))
    if not np.isfinite(norms).all():
        raise ValueError("the norm of the sum does not fit float64 (beyond 1.8e308); divide both updates by 2 first.")
    return norms


def _item(factored: _Factored, batch: tuple[int, ...], index: tuple[Any, ...]) -> LowRankUpdate | NDArray[Any]:
    """Return one update of a broadcast stack."""
    if factored.matrices is not None:
        matrix: NDArray[Any] = _broadcast(factored.matrices, batch)[index]
        return matrix
    B, A = (_broadcast(factor, batch)[index] for factor in (factored.factors.B, factored.factors.A))
    return LowRankUpdate(B, A, factored.factors.scaling)


def _exact_sum_norm(one: LowRankUpdate | NDArray[Any], other: LowRankUpdate | NDArray[Any]) -> Any:
    """Compute the norm of the sum of two updates from its factors, or from all entries where one is dense."""
    if isinstance(one, LowRankUpdate) and isinstance(other, LowRankUpdate):
        return spectrum(low_rank_sum([one, other]), workers=1).norm
    halves = [
        np.ldexp(term.to_dense() if isinstance(term, LowRankUpdate) else term.astype(np.float64), -1)
        for term in (one, other)
    ]
    total, exponent = scaled_to_unit(halves[0] + halves[1])
    with np.errstate(over="ignore"):
        return np.ldexp(np.linalg.norm(total), exponent + 1)


def _space_overlap(
    dimension: int, side: Side, ranks: tuple[NDArray[np.int64], NDArray[np.int64]], angles: Floats
) -> SpaceOverlap:
    """Return the overlap of the left, or of the right, spaces of all pairs of a stack."""
    batch, kept = angles.shape[:-1], side.products.shape[1:]
    captured = [
        np.minimum(np.cumsum(energies, axis=-1), 1.0).reshape(*batch, energies.shape[-1])
        for energies in (side.of_first, side.of_second)
    ]
    common = np.cumsum(np.cumsum(np.square(side.products), axis=-2), axis=-1).reshape(*batch, *kept)
    i, j = overlap_dimensions(ranks, kept)
    overlap = np.minimum(common / np.maximum(np.minimum(i, j), 1), 1.0)
    return SpaceOverlap(dimension, ranks[0], ranks[1], angles, overlap, captured[0], captured[1])


def _angles(sides: tuple[Side, Side], ranks: NDArray[np.int64], workers: int) -> Floats:
    """Return principal angles (2, count, k), ascending: of the cosines, or of the sines where these are the smaller."""
    sines = np.stack([side.sines for side in sides])
    if not sines.size:
        return sines
    # Both sides at once: the kernel takes several matrices in the time of one.
    cosines = np.minimum(spectrum(np.stack([side.products for side in sides]), workers=workers).values, 1.0)
    angles = np.where(cosines**2 > 0.5, np.arcsin(np.minimum(sines, 1.0)), np.arccos(cosines))
    return np.where(np.arange(sines.shape[-1]) < np.minimum(*ranks)[:, np.newaxis], angles, np.nan)
