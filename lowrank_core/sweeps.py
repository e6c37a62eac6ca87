"""Errors and variance of an update's truncations, for every rank and every scaling rule at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._linalg import in_threads
from lowrank_core._plots import draw_errors
from lowrank_core._results import EqualByContent, html_table, span
from lowrank_core._validation import as_alpha, as_finite, as_stack, as_workers, check_one_axis
from lowrank_core.scaling import ScalingRule, rule_name, scalings
from lowrank_core.spectra import Spectrum, energy_fractions, known_ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ErrorSweep",
    "error_rows",
    "error_sweep",
    "medians",
    "reconstruction_error",
    "sweep_text",
    "variance_captured",
]

# Values and errors of a task: a tenth of a millisecond's work at least, which is about what a thread costs to start.
TASK_SIZE = 2**18


def variance_captured(spectrum: Spectrum, ranks: ArrayLike | None = None) -> Any:
    r"""Compute the fraction of the squared norm that the best update of rank r captures: :math:`H_r / N^2`.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).
    ranks : array_like of int, optional
        None for 0 … p, the number of values.

    Returns
    -------
    float64 or ndarray, shape (...) + ranks.shape
        1 at every rank for a zero update.

    Raises
    ------
    ValueError
        If a rank is negative, not whole, beyond min(m, n), or beyond the values of an incomplete spectrum.

    See Also
    --------
    reconstruction_error : The error at each rank.
    rank_for_variance : The least rank for a fraction.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211; Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum, variance_captured
    >>> variance_captured(spectrum(np.diag([4.0, 3.0])), 1)
    np.float64(0.64)
    """
    known = known_ranks(spectrum, ranks)
    captured, _ = energy_fractions(spectrum, known)
    zero = (spectrum.norm == 0).reshape((*spectrum.norm.shape, *(1,) * known.ndim))
    return np.where(zero, 1.0, captured)[()]


def reconstruction_error(spectrum: Spectrum, ranks: ArrayLike | None = None, scaling: ArrayLike = 1.0) -> Any:
    r"""Compute the relative error of the rank-r truncation times γ: :math:`\sqrt{((1-\gamma)^2 H_r + T_r) / N^2}`.

    At γ = 1 it is the least possible error at that rank.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).
    ranks : array_like of int, optional
        None for 0 … p, the number of values.
    scaling : array_like
        Finite; broadcast against the shape (...) + ranks.shape.

    Returns
    -------
    float64 or ndarray, shape (...) + ranks.shape
        In the Frobenius norm; 0 at every rank for a zero update.

    Raises
    ------
    ValueError
        As :func:`variance_captured`, and if a scaling is not finite.

    See Also
    --------
    error_sweep : For many ranks, rules and alphas in one pass.
    rank_for_error : The least rank for an error.

    Notes
    -----
    The error is :math:`(1-\gamma)\Delta_r + (\Delta - \Delta_r)`, and its two parts are orthogonal.

    References
    ----------
    Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3, for γ = 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import reconstruction_error, spectrum
    >>> reconstruction_error(spectrum(np.diag([4.0, 3.0])), 1)
    np.float64(0.6)
    """
    factor = as_finite(scaling, "scaling")
    heads, tails = energy_fractions(spectrum, known_ranks(spectrum, ranks))
    # hypot, because a scaling of 1e200 has no square.
    return np.hypot((1.0 - factor) * np.sqrt(heads), np.sqrt(tails))[()]


@dataclass(frozen=True, eq=False, repr=False)
class ErrorSweep(EqualByContent):
    """Relative errors of every truncation under every scaling rule, as :func:`error_sweep` computes them.

    Attributes
    ----------
    errors : ndarray, shape (..., rules, [alphas,] ranks)
        Relative Frobenius error of the rank-r truncation times γ.
    optimal : ndarray, shape (..., ranks)
        Least possible error at each rank (γ = 1).
    scalings : ndarray, shape (rules, [alphas,] ranks)
        γ.
    ranks : ndarray of int, shape (ranks,)
        As passed, or 0 … p.
    rules : tuple of str
        Names of the rules.
    alpha : float64 or ndarray, shape (alphas,)
        As passed; the alphas axis exists only where `alpha` has one.
    """

    errors: NDArray[np.float64]
    optimal: NDArray[np.float64]
    scalings: NDArray[np.float64]
    ranks: NDArray[np.int64]
    rules: tuple[str, ...]
    alpha: Any

    def __repr__(self) -> str:
        return f"<ErrorSweep {sweep_text(self.rules, self.ranks, self.alpha, self.optimal.shape[:-1])}>"

    def _repr_html_(self) -> str:
        return html_table(repr(self), *error_rows(self.rules, self.ranks, *self._medians()))

    def plot(self, ax: Any = None) -> Axes:
        """Draw the errors against the rank under each rule, beside the least possible; of a stack or alphas, medians.

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
        best, errors = self._medians()
        return draw_errors(self.ranks, best, dict(zip(self.rules, errors, strict=True)), "Truncated and scaled", ax)

    def _medians(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the least errors (ranks,) and the errors (rules, ranks), medians over the batch and the alphas."""
        rules_axis = self.optimal.ndim - 1
        return medians(self.optimal, 1), medians(np.moveaxis(self.errors, rules_axis, -2), 2)


def sweep_text(rules: Sequence[str], ranks: NDArray[np.int64], alpha: Any, batch: tuple[int, ...]) -> str:
    """Return what a sweep is over, in words."""
    stack = f", stack of {' × '.join(map(str, batch))}" if batch else ""
    return f"{', '.join(rules)}: ranks {span(ranks, 'd')}, α = {span(alpha)}{stack}"


def medians(errors: NDArray[np.float64], core: int) -> NDArray[np.float64]:
    """Return the medians of errors over all but the last `core` axes; NaN where there are none."""
    stack = as_stack(errors, core)
    return np.asarray(np.median(stack, axis=0)) if len(stack) else np.full(stack.shape[1:], np.nan)


def error_rows(
    rules: Sequence[str], ranks: NDArray[np.int64], best: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[list[str], list[list[object]]]:
    """Return the headings and rows of a table of errors, a row for each rank."""
    headings = ["rank r", "best", *rules]
    return headings, [list(row) for row in zip(ranks, best, *errors, strict=True)]


def error_sweep(
    spectrum: Spectrum,
    ranks: ArrayLike | None,
    *,
    alpha: ArrayLike = 16.0,
    rules: Sequence[str | ScalingRule] = ("standard", "rslora"),
) -> ErrorSweep:
    r"""Compute :math:`\sqrt{((1-\gamma)^2 H_r + T_r) / N^2}` over batch × rules × alphas × ranks in one pass.

    Parameters
    ----------
    spectrum : Spectrum
        Of shape (...).
    ranks : array_like of int, shape (ranks,), or None
        None for 0 … p, the number of values.
    alpha : float or array_like, shape (alphas,)
        Finite and positive.
    rules : sequence of str or callable
        Scaling rules, by name or as functions of (alpha, rank).

    Returns
    -------
    ErrorSweep

    Raises
    ------
    ValueError
        As :func:`variance_captured`, :func:`standard` and :func:`scaling_rule`; if `ranks` or `alpha` has more axes.

    See Also
    --------
    reconstruction_error : One scaling, with the source of the equation.
    standard, rslora : The rules, with their sources.
    learning_sweep : The errors that gradient descent reaches.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import error_sweep, spectrum, style_update
    >>> sweep = error_sweep(spectrum(style_update(64, 64, rng=np.random.RandomState(42))), [2, 4, 8])
    >>> sweep.errors.round(6)
    array([[6.608106, 2.988677, 1.      ],
           [9.729615, 6.970877, 4.642097]])
    """
    from lowrank_core._linalg import error_sweep as sweep_kernel

    known, alphas = known_ranks(spectrum, ranks), as_alpha(alpha)
    check_one_axis(known, "ranks")
    if alphas.ndim:
        check_one_axis(alphas, "alpha")
    table = scalings(rules, alphas, known)
    batch = spectrum.values.shape[:-1]
    values, norms, flat_table = as_stack(spectrum.values, 1), as_stack(spectrum.norm, 0), as_stack(table, 1)
    errors, optimal = np.empty((len(values), *flat_table.shape)), np.empty((len(values), known.size))

    def sweep(rows: slice) -> None:
        sweep_kernel(values[rows], norms[rows], spectrum.complete, known, flat_table, errors[rows], optimal[rows])

    chunk = max(1, TASK_SIZE // max(1, values.shape[1] + flat_table.size))
    in_threads(sweep, [slice(start, start + chunk) for start in range(0, len(values), chunk)], as_workers(None))
    return ErrorSweep(
        errors.reshape(*batch, *table.shape),
        optimal.reshape(*batch, known.size),
        table,
        known,
        tuple(rule_name(rule) for rule in rules),
        alphas[()],
    )
