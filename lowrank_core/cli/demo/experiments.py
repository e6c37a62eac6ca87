"""The article's two experiments, as values.

The first truncates an update to rank r by SVD and multiplies it by γ; the second learns the update from B = 0 under γ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

Numbers = NDArray[np.float64]
ByRule = Mapping[str, Numbers]
Optimizer = Literal["sgd", "adam"]

RULES = ("standard", "rslora")
RANKS = (2, 4, 8, 16, 32, 48)
STYLE_RANK = 4
# What numpy.random.RandomState, the article's generator, takes.
MAX_SEED = 2**32 - 1

_STEPS = 300
_REPEATS = 3
_EXPERIMENTS: tuple[tuple[Optimizer, float], ...] = (("sgd", 1e-3), ("adam", 2e-3), ("adam", 5e-4))


@dataclass(frozen=True)
class Settings:
    """What can be chosen."""

    size: int = 64
    ranks: tuple[int, ...] = RANKS
    alpha: float = 16.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the settings before any experiment runs."""
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
    singular_values: Numbers  # (p,) descending
    norm: float
    ranks: NDArray[np.int64]  # (p,) 1 … p
    captured: Numbers  # (p,) fraction of the squared norm
    best: Numbers  # (p,) relative error at γ = 1
    errors: ByRule  # (p,) each

    def at(self, numbers: Numbers, ranks: Sequence[int] | NDArray[np.int64]) -> Numbers:
        """Return the numbers of these ranks."""
        picked: Numbers = numbers[np.asarray(ranks) - 1]
        return picked


@dataclass(frozen=True)
class Scalings:
    """γ and the gain γ²r under each rule."""

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
    best: Numbers  # (R,) the least relative error of any update of rank r
    errors: ByRule  # (R,) each
    spread: ByRule  # (R,) each, standard deviation over the repeats
    curves: ByRule  # (R, steps + 1) each


@dataclass(frozen=True)
class Experiments:
    """The results of both experiments."""

    settings: Settings
    style: Reconstruction
    facts: Reconstruction
    scalings: Scalings
    learning: tuple[Learning, ...]


def run(settings: Settings) -> Experiments:
    """Return the results of both experiments.

    Examples
    --------
    >>> from lowrank_core.cli.demo.experiments import Settings, run
    >>> results = run(Settings(size=8, ranks=(2, 4)))
    >>> [int(r) for r in results.scalings.ranks]
    [1, 2, 4, 8]
    """
    # One generator, style first: the article's order, which its numbers depend on.
    generator = np.random.RandomState(settings.seed)
    size, ranks = settings.size, (*settings.ranks, settings.size)
    style = style_update(size, size, true_rank=STYLE_RANK, rng=generator)
    facts = facts_update(size, size, rng=generator)
    return Experiments(
        settings=settings,
        style=_reconstruct("style", style, settings.alpha),
        facts=_reconstruct("facts", facts, settings.alpha),
        scalings=_scalings((1, *ranks), settings.alpha),
        learning=_learn(ranks, settings),
    )


def to_json(results: Experiments) -> dict[str, Any]:
    """Return all results under the names of JSON: of the chosen ranks, and of every rank under "every_rank"."""
    return {
        "settings": results.settings,
        "style": _reconstruction_json(results.style, results.settings.ranks),
        "facts": _reconstruction_json(results.facts, results.settings.ranks),
        "scaling": results.scalings,
        "learning": [
            {"best_possible" if name == "best" else name: value for name, value in vars(learning).items()}
            for learning in results.learning
        ],
    }


def _reconstruction_json(update: Reconstruction, ranks: tuple[int, ...]) -> dict[str, Any]:
    def at(ranks: Sequence[int] | NDArray[np.int64]) -> dict[str, Any]:
        return {
            "ranks": ranks,
            "variance_captured": update.at(update.captured, ranks),
            "best_possible": update.at(update.best, ranks),
            "errors": {rule: update.at(errors, ranks) for rule, errors in update.errors.items()},
        }

    return {"singular_values": update.singular_values, "norm": update.norm, **at(ranks), "every_rank": at(update.ranks)}


def _reconstruct(name: str, update: Numbers, alpha: float) -> Reconstruction:
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
    # Gradient descent commutes with rotations, so it needs the spectrum alone; Adam does not, and needs an update in
    # random bases, from a second stream: the first would repeat the numbers that A starts from.
    exact = Spectrum(values=values, norm=np.asarray(np.linalg.norm(values)), shape=(size, size), complete=True)
    dense = update_with_spectrum(values, (size, size), rng=np.random.default_rng([settings.seed, 1]))
    best = np.asarray(reconstruction_error(exact, distinct))
    return tuple(
        _learn_with(
            optimizer, rate, exact if optimizer == "sgd" else dense, best=best, ranks=distinct, settings=settings
        )
        for optimizer, rate in _EXPERIMENTS
    )


def _learn_with(
    optimizer: Optimizer, rate: float, update: Any, *, ranks: NDArray[np.int64], best: Numbers, settings: Settings
) -> Learning:
    sweep = learning_sweep(
        update,
        ranks,
        alpha=settings.alpha,
        rules=RULES,
        steps=_STEPS,
        learning_rate=rate,
        optimizer=optimizer,
        repeats=_REPEATS,
        rng=settings.seed,
    )
    return Learning(
        optimizer=optimizer,
        learning_rate=rate,
        steps=_STEPS,
        repeats=_REPEATS,
        ranks=ranks,
        best=best,
        errors=_by_rule(sweep.errors),
        spread=_by_rule(sweep.spread),
        curves=_by_rule(sweep.curves),
    )


def _by_rule(numbers: Numbers) -> ByRule:
    return dict(zip(RULES, numbers, strict=True))
