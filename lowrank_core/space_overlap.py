"""The overlap of the column spaces, or of the row spaces, of two updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._plots import draw_overlap
from lowrank_core._results import EqualByContent, few_ranks, html_table, span
from lowrank_core._validation import as_stack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SpaceOverlap", "overlap_dimensions"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class SpaceOverlap(EqualByContent):
    r"""The column spaces, or the row spaces, of two updates: spans of their leading singular vectors.

    An index i, j beyond an update's rank ρ stands for ρ, that is for the whole space.

    Attributes
    ----------
    dimension : int
        Dimension d of the space that both are in: m for columns, n for rows.
    first_rank, second_rank : ndarray of int64, shape (...)
        Dimensions ρ₁ and ρ₂ of the two spaces; 0 for a zero update.
    angles : ndarray, shape (..., min(k₁, k₂))
        Principal angles in radians, ascending; NaN beyond min(ρ₁, ρ₂).
    overlap : ndarray, shape (..., k₁, k₂)
        :math:`\varphi(i, j) = \lVert U_i^T V_j \rVert_F^2 / \min(i, j)` of the leading i vectors of the first and j of
        the second, i = 1 … k₁ and j = 1 … k₂ [1]_: 1 where one contains the other, 0 where they are orthogonal or an
        update is zero.
    first_captured : ndarray, shape (..., k₂)
        Fraction of the energy of the first update within the leading j vectors of the second.
    second_captured : ndarray, shape (..., k₁)
        Fraction of the energy of the second update within the leading i vectors of the first.

    See Also
    --------
    compare : Compute it.

    Notes
    -----
    For a random subspace of dimension j the projection on it is :math:`\mathbb{E} P = (j/d) I`, since it commutes with
    every rotation and has trace j. So :math:`\mathbb{E} \lVert U_i^T V_j \rVert_F^2 = ij/d`; by chance φ is
    max(i, j)/d, and what is captured is j/d.

    References
    ----------
    .. [1] Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import compare
    >>> columns = compare(np.diag([3.0, 2.0, 0.0]), np.diag([0.0, 2.0, 1.0])).columns
    >>> columns.overlap[:2, :2]
    array([[0. , 0. ],
           [1. , 0.5]])
    >>> np.degrees(columns.angles[:2]).round(6)
    array([ 0., 90.])
    """

    dimension: int
    first_rank: NDArray[np.int64]
    second_rank: NDArray[np.int64]
    angles: Floats
    overlap: Floats
    first_captured: Floats
    second_captured: Floats

    def __repr__(self) -> str:
        ranks = f"{span(self.first_rank, 'd')} and {span(self.second_rank, 'd')}"
        if self.first_rank.ndim or not self.overlap.size:
            return f"<SpaceOverlap in dimension {self.dimension}: ranks {ranks}>"
        overlap, chance = self.overlap[-1, -1], self.overlap_by_chance[-1, -1]
        return f"<SpaceOverlap in dimension {self.dimension}: ranks {ranks}, φ {overlap:.4g}, random {chance:.4g}>"

    def _repr_html_(self) -> str:
        if self.first_rank.ndim:
            ranks = zip(
                np.ndindex(self.first_rank.shape), self.first_rank.ravel(), self.second_rank.ravel(), strict=True
            )
            return html_table(repr(self), ["pair", "ρ₁", "ρ₂"], [list(row) for row in ranks])
        i = few_ranks(min(self.overlap.shape))
        figures = (self.overlap[i - 1, i - 1], self.overlap_by_chance[i - 1, i - 1], np.degrees(self.angles[i - 1]))
        rows = [list(row) for row in zip(i, *figures, strict=True)]
        return html_table(repr(self), ["i", "φ(i, i)", "random", "i-th angle, degrees"], rows)

    def plot(self, ax: Any = None) -> Axes:
        """Draw φ(i, j) for all i and j, of a stack its mean.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            What to draw in; None for those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return draw_overlap(as_stack(self.overlap, 2), ax)

    @property
    def cosines(self) -> Floats:
        """Cosines of the principal angles, descending."""
        return np.asarray(np.cos(self.angles))

    @property
    def overlap_by_chance(self) -> Floats:
        """Expectation max(i, j)/d of φ(i, j) for two random spaces, shape (..., k₁, k₂)."""
        i, j = self._dimensions()
        return np.where((i > 0) & (j > 0), np.maximum(i, j) / self.dimension, 0.0)

    @property
    def overlap_deviation(self) -> Floats:
        r"""Standard deviation of φ(i, j) for two random spaces, shape (..., k₁, k₂).

        That of :math:`\lVert U_i^T V_j \rVert_F^2` is
        :math:`\sqrt{2\, i (d-i)\, j (d-j) / (d^2 (d-1) (d+2))}`: for i = 1 it is that of a Beta distribution.
        """
        i, j = self._dimensions()
        d = self.dimension
        variance = 2.0 * i * (d - i) * j * (d - j) / (d**2 * max(d - 1, 1) * (d + 2.0))
        return np.asarray(np.sqrt(variance) / np.maximum(np.minimum(i, j), 1))

    @property
    def first_captured_by_chance(self) -> Floats:
        """Expectation j/d of `first_captured` for a random space, shape (..., k₂)."""
        return np.asarray(self._dimensions()[1][..., 0, :] / self.dimension)

    @property
    def second_captured_by_chance(self) -> Floats:
        """Expectation i/d of `second_captured` for a random space, shape (..., k₁)."""
        return np.asarray(self._dimensions()[0][..., :, 0] / self.dimension)

    def _dimensions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kept = self.second_captured.shape[-1], self.first_captured.shape[-1]
        return overlap_dimensions((self.first_rank, self.second_rank), kept)


def overlap_dimensions(
    ranks: tuple[NDArray[np.int64], NDArray[np.int64]], kept: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the dimensions i (..., k₁, 1) and j (..., 1, k₂) of leading spaces, each up to its rank."""
    i, j = (np.minimum(np.arange(1, k + 1), rank[..., np.newaxis]) for rank, k in zip(ranks, kept, strict=True))
    return i[..., :, np.newaxis], j[..., np.newaxis, :]
