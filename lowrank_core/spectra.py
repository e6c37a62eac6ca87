"""A matrix becomes its spectrum, once; everything after is arithmetic on spectra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import Values, kronecker_singular_values, product_singular_values, singular_values
from lowrank_core._plots import draw_spectra
from lowrank_core._results import EqualByContent, few_ranks, html_table, shape_text, span
from lowrank_core._validation import (
    as_dtype_name,
    as_matrices,
    as_rank,
    as_ranks,
    as_stack,
    as_tolerance,
    as_workers,
)
from lowrank_core.kronecker_updates import KroneckerUpdate, sides
from lowrank_core.updates import LowRankUpdate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Spectrum", "check_complete", "check_spectrum", "energy_fractions", "known_ranks", "largest_of", "spectrum"]


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(EqualByContent):
    r"""Singular values of an update, with what else its questions need.

    Parameters
    ----------
    values : array_like, shape (..., p)
        Singular values, descending; p is at most min(m, n).
    norm : array_like, shape (...)
        Frobenius norm of the whole update.
    shape : (int, int)
        Shape (m, n) of one matrix.
    complete : bool
        Whether the values account for the whole norm. Those missing up to min(m, n) are then zero: a product of rank
        r is complete with r values.
    dtype : dtype-like
        What the update was stored in; its name, such as ``"bfloat16"``, in the attribute.
    missed : array_like, shape (...)
        A bound of what leading values may lack: with k of them, :math:`H_k` is less than that of the k largest by at
        most this fraction of the energy :math:`T_k` beyond. It is 0 where the decomposition was full, and otherwise at
        most the tolerance of :func:`spectrum`, as certified by a block Krylov iteration.

    Raises
    ------
    ValueError
        If values are negative, ascending, not finite or too many, the norm does not fit them, or what is missed is not
        a fraction of each update.

    See Also
    --------
    spectrum : Compute the spectrum of an update.

    Examples
    --------
    >>> from lowrank_core import Spectrum, reconstruction_error
    >>> reconstruction_error(Spectrum([4.0, 3.0], 5.0, (10, 2), complete=True))
    array([1. , 0.6, 0. ])
    """

    values: NDArray[np.float64]
    norm: NDArray[np.float64]
    shape: tuple[int, int]
    complete: bool
    dtype: Any = "float64"
    missed: Any = 0.0

    def __post_init__(self) -> None:
        # C order whatever was given, so that sums along a row do not depend on the rows beside it.
        values = np.array(self.values, dtype=np.float64, order="C")
        norm = np.array(self.norm, dtype=np.float64, order="C")
        missed = np.array(self.missed, dtype=np.float64, order="C")
        shape = (int(self.shape[0]), int(self.shape[1]))
        if values.ndim == 0 or values.shape[-1] > min(shape) or norm.shape != values.shape[:-1]:
            raise ValueError(
                f"values of shape {values.shape} and norm of shape {norm.shape} do not make spectra of {shape} "
                "updates; values are (..., p) with p at most min(m, n), and norm is (...)."
            )
        if not ((values >= 0) & (values < np.inf)).all() or not (values[..., 1:] <= values[..., :-1]).all():
            raise ValueError("values must be finite, not negative, and descending along the last axis.")
        if missed.shape not in {(), norm.shape} or not ((missed >= 0) & (missed <= 1)).all():
            raise ValueError(
                f"missed is a fraction from 0 to 1 for every update, of the shape {norm.shape} of norm; given were "
                f"{missed!r}."
            )
        missed = np.array(np.broadcast_to(missed, norm.shape))
        _check_norm(values, norm, complete=bool(self.complete))
        if self.complete:
            # Values that all rounded to 0 leave at most a few steps of float64's grid: nothing to divide by.
            norm[largest_of(values) == 0.0] = 0.0
        values.flags.writeable = norm.flags.writeable = missed.flags.writeable = False
        fields = {"values": values, "norm": norm, "shape": shape, "complete": bool(self.complete), "missed": missed}
        for name, value in (fields | {"dtype": as_dtype_name(self.dtype)}).items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        whole = (*self.norm.shape, *self.shape)
        known = "" if self.complete else "leading "
        values = f"{self.values.shape[-1]} {known}values"
        if self.norm.ndim:
            return f"<Spectrum {shape_text(whole)}: {values}, {self.dtype}>"
        return f"<Spectrum {shape_text(whole)}: {values}, {span(self.values)}, norm {self.norm:.4g}, {self.dtype}>"

    def _repr_html_(self) -> str:
        if self.norm.ndim:
            largest = largest_of(self.values).ravel()
            matrices = list(np.ndindex(self.norm.shape))
            rows = [list(row) for row in zip(matrices, self.norm.ravel(), largest, strict=True)]
            return html_table(repr(self), ["matrix", "norm", "σ₁"], rows)
        ranks = few_ranks(self.values.shape[-1])
        heads, tails = energy_fractions(self, ranks)
        # Nothing is lost of a zero update at any rank.
        captured = heads if self.norm else np.ones_like(heads)
        rows = [list(row) for row in zip(ranks, self.values[ranks - 1], captured, np.sqrt(tails), strict=True)]
        return html_table(repr(self), ["rank r", "σᵣ", "variance captured", "least error"], rows)

    def plot(self, ax: Any = None) -> Axes:
        """Draw the singular values on logarithmic axes, each matrix relative to its largest, and the median of a stack.

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
        return draw_spectra(as_stack(self.values, 1), ax)


def _check_norm(values: NDArray[np.float64], norm: NDArray[np.float64], *, complete: bool) -> None:
    exponent = np.frexp(largest_of(values))[1]
    scaled = np.ldexp(values, -exponent[..., np.newaxis])
    energy = np.einsum("...i,...i->...", scaled, scaled)
    with np.errstate(over="ignore"):
        computed = np.ldexp(np.sqrt(energy), exponent)
    # Squares of values by a Gram matrix sum to its trace within p·eps, and each subnormal value is rounded to the
    # spacing of subnormal numbers; a wrong norm is further off than 1e-6 and one spacing a value.
    slack = 1e-6 * computed + (values.shape[-1] + 1) * 5e-324
    fits = np.isfinite(norm) & (norm >= computed - slack)
    if complete:
        fits &= norm <= computed + slack
    if not fits.all():
        raise ValueError(
            "norm does not fit values: it is the Frobenius norm, √Σσ² over all singular values, "
            "so it is at least that of the values given, and equal to it when complete."
        )


def largest_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest of each row of descending values (..., p), and 0 where p is 0."""
    return values[..., 0] if values.shape[-1] else np.zeros(values.shape[:-1])


def spectrum(
    update: Any,
    *,
    rank: int | None = None,
    method: str = "auto",
    tolerance: float | None = None,
    workers: int | None = None,
    rng: Any = 0,
) -> Spectrum:
    r"""Compute the singular values of an update: :math:`\Delta = \sum_i \sigma_i u_i v_i^T`.

    Parameters
    ----------
    update : array_like, torch.Tensor, LowRankUpdate or KroneckerUpdate, shape (..., m, n)
        Leading axes are a batch. float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2;
        integers and booleans are taken as float64.
    rank : int, optional
        How many leading values to compute; the result is then not complete, unless there are no others. None for all.
    method : {"auto", "lapack", "direct", "gram", "krylov"}
        How the values of a dense update are computed, all in float64 but for products of ``krylov``:

        - ``lapack``: LAPACK's SVD, at any size;
        - ``direct``: a bidiagonal form and its dqds iteration, by kernels of this package: of eight matrices at once up
          to 4,096 entries (64 × 64), of a triangle where there are many more rows than columns, in two stages where
          the matrix is large;
        - ``gram``: the eigenvalues of the smaller Gram matrix, which lose what lies below 1e-8·σ₁;
        - ``krylov``: a block Krylov iteration for leading values, with products in float32 wherever their rounding
          loses less than the tolerance;
        - ``auto``: by shape and dtype. ``krylov`` for the leading few values of a large matrix; otherwise ``direct``
          for float64, and for float32 and below ``direct`` up to 4,096 entries and ``gram`` beyond.

        The values of a LowRankUpdate are those of an r × r core: ``lapack`` and ``direct`` form it by QR of both
        factors, ``gram`` by their Gram matrices, and ``auto`` is ``direct`` if both factors are float64, else ``gram``.
        Those of a KroneckerUpdate are the products of the values of its sides, which have the method each.
    tolerance : float, optional
        For ``krylov``, how much of the leading energy :math:`H_k` may be missed, as a fraction t of the energy
        :math:`T_k` beyond it, from 0 to 1; 0 makes ``auto`` take a full decomposition. None is 1e-6, or 1e-12 for
        float64. A tail of less than 1e-6·N² (1e-12·N² for float64) counts for that. What was achieved is in the result,
        as ``missed``.
    workers : int, optional
        Threads over the batch, or over one large matrix; None for every core this process may use.
    rng : int or numpy.random.Generator
        Seed of the random vectors that ``krylov`` starts from; no other method uses it.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        If the update has an entry that is not finite, an empty matrix, fewer than two dimensions or another dtype;
        if the rank is beyond min(m, n); if the method is unknown, or is ``krylov`` without a rank or for an
        update that is not dense; if a singular value does not fit float64.

    See Also
    --------
    truncate : The best update of a rank, by the same methods.

    Notes
    -----
    Every σ is within 10·max(m, n)·eps·σ₁ (``lapack`` and ``direct``), or 1.2e-7·σ₁ (``gram`` on float32 and below);
    that of a KroneckerUpdate within the sum of what its two sides err by, relative to the σ₁ of each.
    Those of ``krylov`` are attained by factors, so that their energy is never overstated, and it misses more than the
    tolerance with a probability of at most 1e-9. A batch changes nothing: ``spectrum(stack).values[i]`` equals
    ``spectrum(stack[i]).values`` to the bit.

    References
    ----------
    Golub and Van Loan, "Matrix Computations", 4th ed., §8.6, for the SVD and the Gram matrix; Fernando and Parlett,
    Numer. Math. 67 (1994) 191, for dqds; Musco and Musco, arXiv:1504.05477, for ``krylov``.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum
    >>> spectrum(np.diag([3.0, 4.0])).values
    array([4., 3.])
    """
    count, may_miss = as_workers(workers), as_tolerance(tolerance)
    if isinstance(update, LowRankUpdate | KroneckerUpdate):
        shape = (update.shape[-2], update.shape[-1])
        wanted = None if rank is None else as_rank(rank, min(shape))
        values, norm, _ = _structured_values(update, method, count)
        kept = values if wanted is None else values[..., :wanted]
        return Spectrum(kept, norm, shape, kept.shape == values.shape, update.dtype)
    matrices, dtype = as_matrices(update)
    shape = (matrices.shape[-2], matrices.shape[-1])
    wanted = None if rank is None else as_rank(rank, min(shape))
    values, norm, missed = singular_values(
        matrices, dtype, wanted, method=method, tolerance=may_miss, workers=count, rng=rng
    )
    return Spectrum(values, norm, shape, values.shape[-1] == min(shape), dtype, missed)


def _structured_values(update: LowRankUpdate | KroneckerUpdate, method: str, workers: int) -> Values:
    if isinstance(update, KroneckerUpdate):
        return kronecker_singular_values(*sides(update), update.scaling, method=method, workers=workers)
    return product_singular_values(update.B, update.A, update.scaling, update.dtype, method=method, workers=workers)


def check_spectrum(spectrum: Any, name: str = "spectrum") -> None:
    """Check that an argument is a Spectrum, and say what makes one of an update."""
    if not isinstance(spectrum, Spectrum):
        raise ValueError(  # noqa: TRY004 - bad input is a ValueError throughout
            f"{name} is a {type(spectrum).__name__}; a Spectrum is needed. Pass spectrum(update), which is computed "
            "once for all questions."
        )


def known_ranks(spectrum: Spectrum, ranks: Any) -> NDArray[np.int64]:
    """Return ranks that the spectrum has values for; None means 0 … p."""
    check_spectrum(spectrum)
    p = spectrum.values.shape[-1]
    if ranks is None:
        return np.arange(p + 1)
    return as_ranks(ranks, min(spectrum.shape), known=None if spectrum.complete else p)


def check_complete(spectrum: Spectrum, use: str, alternative: str = "") -> None:
    """Check that a spectrum has every singular value, which `use` needs."""
    check_spectrum(spectrum)
    if not spectrum.complete:
        raise ValueError(
            f"{use} needs every singular value, and this spectrum has the leading {spectrum.values.shape[-1]}; "
            f"ask for all with spectrum(update){alternative}."
        )


def energy_fractions(spectrum: Spectrum, ranks: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return H_r / N² and T_r / N² at known ranks, each of shape (..., *ranks.shape); both are 0 for a zero update.

    The tails of a complete spectrum are summed from the small end, and are accurate down to about 1e-307 (a relative
    error of 1e-153); those of one that is not complete are N² − H_r, accurate to about 1e-16.
    """
    from lowrank_core._linalg import energies

    values, norms, flat = as_stack(spectrum.values, 1), as_stack(spectrum.norm, 0), np.ascontiguousarray(ranks.ravel())
    heads, tails = np.empty((len(values), flat.size)), np.empty((len(values), flat.size))
    energies(values, norms, spectrum.complete, flat, heads, tails)
    shape = (*spectrum.values.shape[:-1], *ranks.shape)
    return heads.reshape(shape), tails.reshape(shape)
