"""A matrix becomes its best update of rank r."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowrank_core._linalg import Values, best_factors, best_kronecker_factors, best_product_factors
from lowrank_core._validation import as_matrices, as_rank, as_tolerance, as_workers
from lowrank_core.kronecker_updates import KroneckerUpdate, sides
from lowrank_core.spectra import Spectrum
from lowrank_core.updates import LowRankUpdate

__all__ = ["truncate"]


def truncate(
    update: Any,
    rank: int | Callable[[Spectrum], Any],
    *,
    method: str = "auto",
    tolerance: float | None = None,
    workers: int | None = None,
    rng: Any = 0,
) -> LowRankUpdate:
    r"""Compute the best update of rank r: :math:`B = U_r \Sigma_r`, :math:`A = V_r^T`.

    Parameters
    ----------
    update : array_like, torch.Tensor, LowRankUpdate or KroneckerUpdate, shape (..., m, n)
        A LowRankUpdate is truncated through the r × r core of its factors; B·A is never formed. The best update of a
        KroneckerUpdate has the Kronecker products of the singular vectors of its sides, for the largest products of
        their singular values.
    rank : int or callable
        The rank, from 0 to min(m, n); or a function that returns it for the update's Spectrum, so that nothing is
        decomposed twice. One rank per call.
    method : {"auto", "lapack", "direct", "gram", "krylov"}
        How factors of a dense update are computed: by LAPACK's SVD (``lapack``), by a kernel up to a smaller side of
        512 and by LAPACK beyond (``direct``), by the eigenvectors of the smaller Gram matrix (``gram``), or by a block
        Krylov iteration (``krylov``). ``auto`` is ``krylov`` for a small rank of a large matrix, otherwise ``direct``
        for float64, and for the others ``direct`` up to a smaller side of 512 unless one side is at least four times
        the other, and ``gram`` elsewhere. A function of
        the spectrum needs all of it, which ``krylov`` does not compute and ``auto`` therefore does not choose. Factors
        of a LowRankUpdate are computed by QR of both factors and LAPACK's SVD of the core, whatever the method; the
        sides of a KroneckerUpdate by the method each, ``krylov`` apart.
    tolerance : float, optional
        For ``krylov``, how much of the energy H_r of the best update may be missed, as a fraction of the energy T_r
        beyond it: the squared error is then at most 1 + tolerance times the least. Its default, and what a smaller
        tail counts for, are those of :func:`spectrum`.
    workers : int, optional
        Threads over the batch, or over one large matrix; None for every core this process may use.
    rng : int or numpy.random.Generator
        Seed of the random vectors that ``krylov`` starts from; no other method uses it.

    Returns
    -------
    LowRankUpdate
        Factors in float64, scaling 1. Rows of A that belong to zero singular values may be zero.

    Raises
    ------
    ValueError
        As :func:`spectrum`, and if the rank is not one whole number from 0 to min(m, n).

    See Also
    --------
    spectrum : The singular values alone, by the same methods.
    LowRankUpdate.balanced : The same update with √Σ in each factor.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211; Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3: no other update of
    rank r is nearer, in any unitarily invariant norm.

    Examples
    --------
    >>> from lowrank_core import rank_for_variance, style_update, truncate
    >>> truncate(style_update(64, 64, rng=0), lambda s: rank_for_variance(s, 0.99)).rank
    4
    """
    count, missed = as_workers(workers), as_tolerance(tolerance)
    if isinstance(update, LowRankUpdate):
        wanted = _checked_rank(rank, (update.shape[-2], update.shape[-1]), update.dtype)
        return LowRankUpdate(
            *best_product_factors(
                update.B, update.A, update.scaling, update.dtype, wanted, method=method, workers=count
            )
        )
    if isinstance(update, KroneckerUpdate):
        wanted = _checked_rank(rank, (update.shape[-2], update.shape[-1]), update.dtype)
        return LowRankUpdate(
            *best_kronecker_factors(*sides(update), update.scaling, wanted, method=method, workers=count)
        )
    matrices, dtype = as_matrices(update)
    wanted = _checked_rank(rank, (matrices.shape[-2], matrices.shape[-1]), dtype)
    return LowRankUpdate(
        *best_factors(matrices, dtype, wanted, method=method, tolerance=missed, workers=count, rng=rng)
    )


def _checked_rank(rank: Any, shape: tuple[int, int], dtype: str) -> int | Callable[[Values], int]:
    """Check a rank; or return a function of singular values that checks the rank for their spectrum."""
    if not callable(rank):
        return as_rank(rank, min(shape))
    return lambda values: as_rank(rank(Spectrum(values.values, values.norms, shape, True, dtype)), min(shape))
