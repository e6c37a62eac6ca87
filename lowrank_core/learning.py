"""Gradient descent from B = 0 towards an update, at every rank and under every scaling rule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._linalg import in_threads, scaled_to_unit
from lowrank_core._plots import draw_errors
from lowrank_core._results import EqualByContent, html_table
from lowrank_core._validation import (
    as_alpha,
    as_matrices,
    as_positive,
    as_stack,
    as_whole_numbers,
    as_workers,
    check_choice,
    check_one_axis,
    check_scalar,
)
from lowrank_core.kronecker_updates import KroneckerUpdate
from lowrank_core.scaling import ScalingRule, rule_name, scalings
from lowrank_core.spectra import Spectrum, check_complete, known_ranks
from lowrank_core.spectra import spectrum as spectrum_of
from lowrank_core.sweeps import error_rows, medians, reconstruction_error, sweep_text
from lowrank_core.updates import LowRankUpdate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LearningSweep", "learning_sweep"]

OPTIMIZERS = ("sgd", "adam")
EPSILON = 1e-8

# Multiplications of a task, about a second: a task that has begun is finished before an interrupt is raised.
TASK_WORK = 2**29


@dataclass(frozen=True, eq=False, repr=False)
class LearningSweep(EqualByContent):
    """Relative errors while learning an update, for every rule and rank, as :func:`learning_sweep` computes them.

    Attributes
    ----------
    errors : ndarray, shape (..., rules, ranks)
        Mean over the repeats, after the last step; inf where a run diverged.
    spread : ndarray, shape (..., rules, ranks)
        Standard deviation over the repeats; inf where a run diverged.
    curves : ndarray, shape (..., rules, ranks, steps + 1)
        Mean error before the first step, and after each.
    gradient_norms : ndarray, shape (..., rules, ranks, steps)
        Mean Frobenius norm of both gradients taken together, at each step.
    optimal : ndarray, shape (..., ranks)
        Least possible error at each rank.
    scalings : ndarray, shape (rules, ranks)
        γ.
    ranks : ndarray of int, shape (ranks,)
        As passed, or 0 … p.
    rules : tuple of str
        Names of the rules.
    alpha : float64
        As passed.
    """

    errors: NDArray[np.float64]
    spread: NDArray[np.float64]
    curves: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]
    optimal: NDArray[np.float64]
    scalings: NDArray[np.float64]
    ranks: NDArray[np.int64]
    rules: tuple[str, ...]
    alpha: Any

    def __repr__(self) -> str:
        text = sweep_text(self.rules, self.ranks, self.alpha, self.optimal.shape[:-1])
        return f"<LearningSweep {text}, {self.gradient_norms.shape[-1]} steps>"

    def _repr_html_(self) -> str:
        return html_table(repr(self), *error_rows(self.rules, self.ranks, *self._medians()))

    def plot(self, ax: Any = None) -> Axes:
        """Draw the errors after the last step against the rank, beside the least possible; medians of a stack.

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
        return draw_errors(self.ranks, best, dict(zip(self.rules, errors, strict=True)), "Learned", ax)

    def _medians(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the least errors (ranks,) and the errors (rules, ranks), medians over the batch."""
        return medians(self.optimal, 1), medians(self.errors, 2)


def learning_sweep(
    update: Any,
    ranks: ArrayLike | None,
    *,
    alpha: float = 16.0,
    rules: Sequence[str | ScalingRule] = ("standard", "rslora"),
    steps: int = 300,
    learning_rate: float = 1e-3,
    optimizer: str = "sgd",
    init_variance: float | None = None,
    repeats: int = 1,
    rng: Any = 0,
) -> LearningSweep:
    r"""Compute the errors of adapters that learn an update from B = 0 and Gaussian A, for every rule and rank.

    They minimise :math:`\frac12 \lVert \gamma B A - \Delta \rVert_F^2` by plain gradient descent or Adam.

    Parameters
    ----------
    update : Spectrum, LowRankUpdate, KroneckerUpdate or array_like, shape (..., m, n)
        For "sgd" a complete Spectrum is enough: in the singular basis Δ is diagonal and A is still Gaussian. "adam" is
        not rotation-invariant, and needs the update itself.
    ranks : array_like of int, shape (ranks,), or None
        None for 0 … the number of singular values.
    alpha : float
        Finite and positive.
    rules : sequence of str or callable
        Scaling rules, by name or as functions of (alpha, rank).
    steps : int
        At least 0.
    learning_rate : float
        Finite and positive.
    optimizer : {"sgd", "adam"}
        Adam with β₁ = 0.9, β₂ = 0.999 and ε = 1e-8.
    init_variance : float, optional
        Variance of the entries of A; None for 1/n. (PEFT's default initialisation has 1/(3n), its "gaussian" 1/r².)
    repeats : int
        Runs from different A, at least 1. A depends on (seed, repeat) alone: rank r takes its first r rows, for every
        batch item, rule and rank.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator
        Seed or generator of A.

    Returns
    -------
    LearningSweep

    Raises
    ------
    ValueError
        If an argument is out of range, a Spectrum is passed with "adam", or one that is not complete.

    Warns
    -----
    RuntimeWarning
        If a run diverged; its error is inf.

    See Also
    --------
    error_sweep : The errors of truncations.
    learning_gain : The gain of one step.

    Notes
    -----
    A step of gradient descent costs O((p + n) r²) and forms no m × n array. Errors are computed from the trace form of
    the loss, and from the residual itself where the trace form would cancel (a relative error under 0.01).

    References
    ----------
    Kalajdzievski, arXiv:2312.03732, §3: γ²·r is the gain of one step. Kingma and Ba, arXiv:1412.6980, for Adam.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import Spectrum, learning_sweep
    >>> values = np.linspace(3, 0.5, 64)
    >>> facts = Spectrum(values, np.linalg.norm(values), (64, 64), complete=True)
    >>> standard, rslora = learning_sweep(facts, [8, 64]).errors
    >>> bool(standard[1] > standard[0]), bool(rslora[1] < rslora[0])
    (True, True)
    """
    check_choice(optimizer, "optimizer", OPTIMIZERS)
    spectrum = _complete_spectrum(update, optimizer)
    known, alphas = known_ranks(spectrum, ranks), as_alpha(alpha)
    check_one_axis(known, "ranks")
    check_scalar(alphas, "alpha is one number for the whole sweep", alpha)
    table = scalings(rules, alphas, known)
    step_count, repeat_count = int(as_whole_numbers(steps, "steps")), int(as_whole_numbers(repeats, "repeats"))
    if repeat_count < 1:
        raise ValueError("repeats must be at least 1; got 0.")
    rate = as_positive(learning_rate, "learning_rate")
    columns = spectrum.shape[1]
    variance = 1.0 / columns if init_variance is None else as_positive(init_variance, "init_variance")
    initial = _initial(rng, repeat_count, columns, int(known.max(initial=0)), variance)

    target = _dense_target(update) if optimizer == "adam" else _diagonal_target(spectrum)
    settings = (len(target.diagonals), len(rules), known.size)
    curves, gradient_norms = np.zeros((*settings, step_count + 1)), np.zeros((*settings, step_count))
    finals = np.zeros((*settings, repeat_count))
    _run(target, initial, known, table, rate, (curves, gradient_norms, finals))
    if not np.all(np.isfinite(finals)):
        warnings.warn(
            f"gradient descent diverged at learning_rate={learning_rate:g} for some ranks and rules, whose error is "
            "inf; lower the rate or alpha.",
            RuntimeWarning,
            stacklevel=2,
        )
    finite = np.isfinite(finals)
    spread = np.where(finite.all(axis=-1), np.std(np.where(finite, finals, 0.0), axis=-1), np.inf)
    shape = (*spectrum.values.shape[:-1], len(rules), known.size)
    return LearningSweep(
        errors=np.mean(finals, axis=-1).reshape(shape),
        spread=spread.reshape(shape),
        curves=curves.reshape(*shape, step_count + 1),
        gradient_norms=gradient_norms.reshape(*shape, step_count),
        optimal=np.asarray(reconstruction_error(spectrum, known)),
        scalings=table,
        ranks=known,
        rules=tuple(rule_name(rule) for rule in rules),
        alpha=alphas[()],
    )


class _Target(NamedTuple):
    """Updates to learn: diagonals (items, p) in the singular bases or dense (items, m, n), over 2^exponents (items)."""

    diagonals: NDArray[np.float64]
    dense: NDArray[np.float64]
    exponents: NDArray[np.int64]


def _complete_spectrum(update: Any, optimizer: str) -> Spectrum:
    """Return the complete spectrum of an update to be learnt."""
    if not isinstance(update, Spectrum):
        return spectrum_of(update)
    if optimizer == "adam":
        raise ValueError("Adam is not rotation-invariant: it needs the update itself, not its spectrum.")
    check_complete(update, "learning")
    return update


def _diagonal_target(spectrum: Spectrum) -> _Target:
    values = as_stack(spectrum.values, 1)
    exponents = np.frexp(as_stack(spectrum.norm, 0))[1].astype(np.int64)
    return _Target(np.ldexp(values, -exponents[:, np.newaxis]), np.empty((len(values), 0, 0)), exponents)


def _dense_target(update: Any) -> _Target:
    dense = update.to_dense() if isinstance(update, LowRankUpdate | KroneckerUpdate) else as_matrices(update)[0]
    scaled, exponents = scaled_to_unit(as_stack(dense, 2))
    return _Target(np.empty((len(scaled), 0)), scaled, exponents)


def _initial(rng: Any, repeats: int, columns: int, rank: int, variance: float) -> NDArray[np.float64]:
    """Draw A transposed for each repeat, shape (repeats, n, rank), from a stream of its own."""
    streams = np.random.default_rng(rng).spawn(repeats)
    drawn = [np.sqrt(variance) * stream.standard_normal((rank, columns)).T for stream in streams]
    return np.ascontiguousarray(drawn)


def _run(
    target: _Target,
    initial: NDArray[np.float64],
    ranks: NDArray[np.int64],
    table: NDArray[np.float64],
    rate: float,
    results: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Write curves, gradient norms and final errors of all repeats of every (rank, batch item, rule) into `results`."""
    from lowrank_core._linalg import learn as learn_kernel

    transposed = np.ascontiguousarray(np.swapaxes(target.dense, -1, -2))
    updates, adam = (target.diagonals, target.dense, transposed, target.exponents), target.dense.size > 0

    def learn(settings: tuple[int, int]) -> None:
        learn_kernel(*settings, updates, initial, ranks, table, (adam, rate, EPSILON), results)

    workers = as_workers(None)
    each = len(target.diagonals) * len(table)
    sizes = np.minimum(-(-each // (2 * workers)), TASK_WORK // _work(target, initial, ranks, results[1].shape[-1]))
    # The longest runs first: a worker left with the largest rank at the end would keep the others waiting.
    tasks = [
        (int(i) * each + start, int(i) * each + min(start + size, each))
        for i in np.argsort(-ranks, kind="stable")
        for size in [max(1, int(sizes[i]))]
        for start in range(0, each, size)
    ]
    in_threads(learn, tasks, workers)


def _work(target: _Target, initial: NDArray[np.float64], ranks: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Return the multiplications of one run at each rank, all repeats, to a small factor; at least 1."""
    repeats, columns, _ = initial.shape
    # Adam works on the whole m × n update, gradient descent on r × r matrices.
    rows = np.maximum(ranks, target.dense.shape[1])
    work: NDArray[np.int64] = np.maximum(1, steps * repeats * columns * ranks * rows)
    return work
