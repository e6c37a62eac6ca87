"""The article's two experiments, as values: settings in, figures out, nothing printed.

The first truncates an update to rank r by SVD and multiplies it by γ; the second learns the update from B = 0 under γ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lowrank_core import (
    Spectrum,
    error_sweep,
    facts_update,
    learning_gain,
    learning_sweep,
    reconstruction_error,
    scaling_rule,
    spectrum,
    style_update,
    update_with_spectrum,
    variance_captured,
)

__all__ = [
    "MAX_SEED",
    "RANKS",
    "RULES",
    "STYLE_RANK",
    "Article",
    "Learning",
    "Reconstruction",
    "Scalings",
    "Settings",
    "run",
]

Figures = NDArray[np.float64]
ByRule = Mapping[str, Figures]
Optimizer = Literal["sgd", "adam"]

RULES = ("standard", "rslora")
RANKS = (2, 4, 8, 16, 32, 48)
STYLE_RANK = 4
# What numpy.random.RandomState, the article's generator, takes.
MAX_SEED = 2**32 - 1

STEPS = 300
REPEATS = 3
EXPERIMENTS: tuple[tuple[Optimizer, float], ...] = (("sgd", 1e-3), ("adam", 2e-3), ("adam", 5e-4))


@dataclass(frozen=True)
class Settings:
    """What the demo may vary."""

    size: int = 64
    ranks: tuple[int, ...] = RANKS
    alpha: float = 16.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what the experiments have no meaning for, before any of them has run."""
        if self.size < STYLE_RANK:
            raise ValueError(
                f"size {self.size} is too small: the style update has rank {STYLE_RANK}, so take {STYLE_RANK} or more."
            )
        unfit = [rank for rank in self.ranks if not 1 <= rank <= self.size]
        if unfit or not self.ranks:
            given = f"got {unfit[0]}" if unfit else "got none"
            raise ValueError(f"ranks must lie between 1 and the size, {self.size}; {given}.")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed {self.seed} is out of range: take one from 0 to {MAX_SEED}.")


@dataclass(frozen=True)
class Reconstruction:
    """One update, truncated to every rank 1 … p and scaled by each rule."""

    name: str
    singular_values: Figures  # (p,) descending
    norm: float
    ranks: NDArray[np.int64]  # (p,) 1 … p
    captured: Figures  # (p,) fraction of the squared norm
    best: Figures  # (p,) relative error at γ = 1
    errors: ByRule  # (p,) each

    def at(self, figures: Figures, ranks: tuple[int, ...]) -> Figures:
        """Pick the figures of these ranks."""
        picked: Figures = figures[np.asarray(ranks) - 1]
        return picked


@dataclass(frozen=True)
class Scalings:
    """γ and the gain γ²r of each rule."""

    ranks: NDArray[np.int64]
    gamma: ByRule
    gain: ByRule


@dataclass(frozen=True)
class Learning:
    """How far an optimiser gets from B = 0, for each rank and rule: means over the repeats."""

    optimizer: Optimizer
    learning_rate: float
    steps: int
    repeats: int
    ranks: NDArray[np.int64]  # (R,)
    best: Figures  # (R,) relative error that no rank-r update is below
    errors: ByRule  # (R,) each
    spread: ByRule  # (R,) each, standard deviation over the repeats
    curves: ByRule  # (R, steps + 1) each


@dataclass(frozen=True)
class Article:
    """Every figure of the demo."""

    settings: Settings
    style: Reconstruction
    facts: Reconstruction
    scalings: Scalings
    learning: tuple[Learning, ...]


def run(settings: Settings) -> Article:
    """Run both experiments.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    Article

    Examples
    --------
    >>> from lowrank_core.cli.demo.article import Settings, run
    >>> figures = run(Settings(size=8, ranks=(2, 4)))
    >>> [int(r) for r in figures.scalings.ranks]
    [1, 2, 4, 8]
    """
    # One generator, style first: the article's order, without which its figures do not come out.
    generator = np.random.RandomState(settings.seed)
    size, ranks = settings.size, (*settings.ranks, settings.size)
    style = style_update(size, size, true_rank=STYLE_RANK, rng=generator)
    facts = facts_update(size, size, rng=generator)
    return Article(
        settings=settings,
        style=_reconstruct("style", style, settings.alpha),
        facts=_reconstruct("facts", facts, settings.alpha),
        scalings=_scalings((1, *ranks), settings.alpha),
        learning=_learn(ranks, settings),
    )


def _reconstruct(name: str, update: Figures, alpha: float) -> Reconstruction:
    values = spectrum(update)
    ranks = np.arange(1, min(values.shape) + 1)
    sweep = error_sweep(values, ranks, alpha=alpha, rules=RULES)
    return Reconstruction(
        name=name,
        singular_values=values.values,
        norm=float(values.norm),
        ranks=ranks,
        captured=np.asarray(variance_captured(values, ranks)),
        best=sweep.optimal,
        errors=_by_rule(sweep.errors),
    )


def _scalings(ranks: tuple[int, ...], alpha: float) -> Scalings:
    distinct = np.unique(ranks)
    return Scalings(
        ranks=distinct,
        gamma={rule: np.asarray(scaling_rule(rule)(alpha, distinct)) for rule in RULES},
        gain={rule: np.asarray(learning_gain(alpha, distinct, rule)) for rule in RULES},
    )


def _learn(ranks: tuple[int, ...], settings: Settings) -> tuple[Learning, ...]:
    size, distinct = settings.size, np.unique(ranks)
    values = np.linspace(3.0, 0.5, size)
    # Gradient descent commutes with rotations, so the spectrum is enough for it; Adam does not, and needs an update in
    # bases of its own: a second stream, or they would be made of the very numbers that A starts from.
    exact = Spectrum(values=values, norm=np.asarray(np.linalg.norm(values)), shape=(size, size), complete=True)
    dense = update_with_spectrum(values, (size, size), rng=np.random.default_rng([settings.seed, 1]))
    best = np.asarray(reconstruction_error(exact, distinct))
    return tuple(
        _learn_with(
            optimizer, rate, exact if optimizer == "sgd" else dense, best=best, ranks=distinct, settings=settings
        )
        for optimizer, rate in EXPERIMENTS
    )


def _learn_with(
    optimizer: Optimizer, rate: float, update: Any, *, ranks: NDArray[np.int64], best: Figures, settings: Settings
) -> Learning:
    sweep = learning_sweep(
        update,
        ranks,
        alpha=settings.alpha,
        rules=RULES,
        steps=STEPS,
        learning_rate=rate,
        optimizer=optimizer,
        repeats=REPEATS,
        rng=settings.seed,
    )
    return Learning(
        optimizer=optimizer,
        learning_rate=rate,
        steps=STEPS,
        repeats=REPEATS,
        ranks=ranks,
        best=best,
        errors=_by_rule(sweep.errors),
        spread=_by_rule(sweep.spread),
        curves=_by_rule(sweep.curves),
    )


def _by_rule(figures: Figures) -> ByRule:
    return dict(zip(RULES, figures, strict=True))
