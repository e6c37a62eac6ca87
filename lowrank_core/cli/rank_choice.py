"""The rank of a layer, as the options of the command line choose it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lowrank_core import Spectrum, rank_for_error, rank_for_ratio, rank_for_variance
from lowrank_core.cli.options import RankChoice, parse_ranks
from lowrank_core.models import AboveNoise, Budget
from lowrank_core.models.operations.rank_choice import Rank

_THRESHOLDS: dict[str, Callable[[Spectrum, float], Any]] = {
    "variance": rank_for_variance,
    "error": rank_for_error,
    "ratio": rank_for_ratio,
}


def choose_rank(
    choice: RankChoice, *, above_noise: bool | None = None, sides: int | None = None
) -> Rank | tuple[int, ...] | None:
    """Return the rank or ranks that options choose, as the library takes them, or None if no option chooses one.

    `above_noise` is None for a verb without ``--above-noise``. A function of a spectrum can be pickled.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum
    >>> rule = choose_rank(RankChoice(variance=0.99, max_rank=2))
    >>> rule(spectrum(np.diag([4.0, 3.0, 2.0, 0.1]))), rule(spectrum(np.diag([4.0, 0.1])))
    (2, 1)
    """
    bounded = {name: getattr(choice, name) for name in (*_THRESHOLDS, "parameters", "megabytes")}
    if above_noise is not None:
        bounded["above-noise"] = above_noise or None
    given = {name: value for name, value in {"rank": choice.rank, **bounded}.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{_listed(given, 'and')} exclude each other: only one of them can choose the rank.")
    if choice.max_rank is not None and given.keys() <= {"rank"}:
        raise ValueError(
            f"--max-rank bounds what {_listed(bounded, 'or')} chooses, and none of them is given: for a fixed rank, "
            "give --rank alone."
        )
    _check_belongs("objective", choice.objective, "parameters or --megabytes", choice.parameters or choice.megabytes)
    _check_belongs("sides", sides, "above-noise", above_noise or None)
    if not given:
        return None
    if choice.rank is not None:
        return _counted(choice.rank)
    if choice.parameters is not None or choice.megabytes is not None:
        return Budget(
            parameters=choice.parameters,
            megabytes=choice.megabytes,
            max_rank=choice.max_rank,
            objective=choice.objective or Budget.objective,
        )
    if above_noise:
        return AboveNoise(sides=sides or AboveNoise.sides, max_rank=choice.max_rank)
    ((name, value),) = given.items()
    if not 0 <= value <= 1:
        raise ValueError(f"--{name} is a fraction between 0 and 1; got {value:g}.")
    return partial(_rank_by, name=name, value=value, max_rank=choice.max_rank)


def choose_one_rank(choice: RankChoice) -> Rank | None:
    """Return the rank that options choose, of a verb that writes one adapter."""
    rank = choose_rank(choice)
    if isinstance(rank, tuple):
        given = ",".join(map(str, rank))
        raise ValueError(f"--rank is one number here; got {given}. lowrank resize takes several.")  # noqa: TRY004
    return rank


def _counted(text: str) -> int | tuple[int, ...]:
    ranks = parse_ranks(text, "--rank")
    if ranks[0] < 1:
        raise ValueError(f"--rank is at least 1, or several such numbers, as 4,8,16; got {text!r}.")
    return ranks if len(ranks) > 1 else ranks[0]


def _check_belongs(name: str, value: object, owner: str, of_owner: object) -> None:
    if value is not None and of_owner is None:
        raise ValueError(f"--{name} belongs to --{owner}, which is not given.")


def _rank_by(spectrum: Spectrum, *, name: str, value: float, max_rank: int | None) -> int:
    rank = int(_THRESHOLDS[name](spectrum, value))
    return rank if max_rank is None else min(rank, max_rank)


def _listed(names: Iterable[str], last: str) -> str:
    *others, final = (f"--{name}" for name in names)
    return f"{', '.join(others)} {last} {final}"
