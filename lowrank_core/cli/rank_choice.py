"""How many components of a layer to keep, as the options of the command line say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lowrank_core import Spectrum, rank_for_error, rank_for_ratio, rank_for_variance
from lowrank_core.models.operations.above_noise import AboveNoise
from lowrank_core.models.operations.budgets import Budget

__all__ = ["choose_rank"]

THRESHOLDS: dict[str, Callable[[Spectrum, float], Any]] = {
    "variance": rank_for_variance,
    "error": rank_for_error,
    "ratio": rank_for_ratio,
}


def choose_rank(
    *,
    rank: int | None,
    max_rank: int | None,
    parameters: int | None,
    objective: str | None,
    above_noise: bool | None = None,
    sides: int | None = None,
    **thresholds: float | None,
) -> int | Callable[[Spectrum], int] | Budget | AboveNoise | None:
    """Turn the options that choose a rank into what the library takes.

    Parameters
    ----------
    rank : int, optional
        ``--rank``.
    max_rank : int, optional
        ``--max-rank``.
    parameters : int, optional
        ``--parameters``.
    objective : str, optional
        ``--objective``, of ``--parameters``.
    above_noise : bool, optional
        ``--above-noise``; None where a verb does not have it.
    sides : int, optional
        ``--sides``, of ``--above-noise``.
    **thresholds : float, optional
        ``--variance``, ``--error`` and ``--ratio``, by name.

    Returns
    -------
    int, callable, Budget, AboveNoise or None
        A number, a function of a layer's spectrum, a budget for all layers, or what stands above rounding; all can be
        sent to another process. None if no option chooses.

    Raises
    ------
    ValueError
        If two options choose, one that chooses is no fraction, or one belongs to another that is not given.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum
    >>> rule = choose_rank(rank=None, max_rank=2, parameters=None, objective=None, variance=0.99, error=None)
    >>> rule(spectrum(np.diag([4.0, 3.0, 2.0, 0.1]))), rule(spectrum(np.diag([4.0, 0.1])))
    (2, 1)
    """
    bounded = {**thresholds, "parameters": parameters}
    if above_noise is not None:
        bounded["above-noise"] = above_noise or None
    given = {name: value for name, value in {"rank": rank, **bounded}.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{_listed(given, 'and')} exclude each other: only one of them can choose the rank.")
    if max_rank is not None and given.keys() <= {"rank"}:
        raise ValueError(
            f"--max-rank bounds what {_listed(bounded, 'or')} chooses, and none of them is given: for a fixed rank, "
            "give --rank alone."
        )
    _check_belongs("objective", objective, "parameters", parameters)
    _check_belongs("sides", sides, "above-noise", above_noise or None)
    if not given or rank is not None:
        return rank
    if parameters is not None:
        return Budget(parameters=parameters, max_rank=max_rank, objective=objective or Budget.objective)
    if above_noise:
        return AboveNoise(sides=sides or AboveNoise.sides, max_rank=max_rank)
    ((name, value),) = given.items()
    if not 0 <= value <= 1:
        raise ValueError(f"--{name} is a fraction between 0 and 1; got {value:g}.")
    return partial(_rank_by, name=name, value=value, max_rank=max_rank)


def _check_belongs(name: str, value: object, owner: str, of_owner: object) -> None:
    if value is not None and of_owner is None:
        raise ValueError(f"--{name} belongs to --{owner}, which is not given.")


def _rank_by(found: Spectrum, *, name: str, value: float, max_rank: int | None) -> int:
    rank = int(THRESHOLDS[name](found, value))
    return rank if max_rank is None else min(rank, max_rank)


def _listed(names: Iterable[str], last: str) -> str:
    *others, final = (f"--{name}" for name in names)
    return f"{', '.join(others)} {last} {final}"
