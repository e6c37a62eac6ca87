"""The words that choose ranks, alike in Python and as options of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import numpy as np

from lowrank_core import Spectrum, rank_for_error, rank_for_ratio, rank_for_variance
from lowrank_core._validation import REAL_NUMBERS
from lowrank_core.models.operations.rank_choice import AboveNoise, Budget, Rank

_THRESHOLDS: dict[str, Callable[[Spectrum, float], Any]] = {
    "variance": rank_for_variance,
    "error": rank_for_error,
    "ratio": rank_for_ratio,
}
_BUDGETS = ("parameters", "megabytes")
_CHOOSERS = ("rank", *_THRESHOLDS, *_BUDGETS, "above_noise")


class RankWords(TypedDict, total=False):
    """The words beside `rank`, for the signatures of overloads."""

    variance: float | None
    error: float | None
    ratio: float | None
    parameters: int | None
    megabytes: float | None
    objective: str | None
    max_rank: int | None


def choose_rank(
    words: Mapping[str, Any], *, required: bool = False, spelled: Callable[[str], str] = str
) -> Rank | tuple[int, ...] | None:
    """Return the rank or ranks that words choose, or None where none of them does and none is required.

    `words` has all that an operation takes, with None or False for what was not given, and `spelled` returns a word as
    messages have it. A function of a spectrum that is returned can be pickled.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum
    >>> rule = choose_rank({"variance": 0.99, "max_rank": 2})
    >>> rule(spectrum(np.diag([4.0, 3.0, 2.0, 0.1]))), rule(spectrum(np.diag([4.0, 0.1])))
    (2, 1)
    >>> choose_rank({"parameters": 1000})
    Budget(parameters=1000, variance=None, max_rank=None, objective='relative', megabytes=None)
    """
    taken = [name for name in _CHOOSERS if name in words]
    given = [name for name in taken if _is_given(words[name])]
    max_rank = words.get("max_rank")
    if len(given) > 1:
        raise ValueError(f"{_listed(given, 'and', spelled)} exclude each other: only one of them can choose the rank.")
    if max_rank is not None and given in ([], ["rank"]):
        bounded = _listed((name for name in taken if name != "rank"), "or", spelled)
        raise ValueError(
            f"{spelled('max_rank')} bounds what {bounded} chooses, and none of them is given: for a fixed rank, give "
            f"{spelled('rank')} alone."
        )
    _check_belongs("objective", words, _BUDGETS, spelled)
    _check_belongs("sides", words, ("above_noise",), spelled)
    if not given:
        if required:
            raise ValueError(f"how much to keep? Give one of {_listed(taken, 'and', spelled)}.")
        return None
    (name,) = given
    value = words[name]
    if name == "rank":
        return tuple(value.tolist()) if isinstance(value, np.ndarray) and value.ndim == 1 else value
    if name in _BUDGETS:
        return Budget(**{name: value}, max_rank=max_rank, objective=words.get("objective") or Budget.objective)
    if name == "above_noise":
        return AboveNoise(sides=words.get("sides") or AboveNoise.sides, max_rank=max_rank)
    if not (isinstance(value, REAL_NUMBERS) and 0 <= value <= 1):
        raise ValueError(f"{spelled(name)} is a fraction between 0 and 1; got {value}.")
    return partial(_rank_by, name=name, value=float(value), max_rank=max_rank)


def choose_one_rank(words: Mapping[str, Any], *, spelled: Callable[[str], str] = str) -> Rank | None:
    """Return the rank that words choose, for an operation that writes one adapter."""
    rank = choose_rank(words, spelled=spelled)
    if isinstance(rank, Sequence):
        given = ",".join(map(str, rank))
        raise ValueError(  # noqa: TRY004 - a sequence is what other operations take
            f"{spelled('rank')} is one number here; got {given}. resize takes several."
        )
    return rank


def choose_budget(
    budget: Budget | None = None,
    *,
    parameters: int | None = None,
    variance: float | None = None,
    objective: str | None = None,
    max_rank: int | None = None,
    spelled: Callable[[str], str] = str,
) -> Budget:
    """Return the budget that words make, or that was made of them before."""
    words = {"parameters": parameters, "variance": variance, "objective": objective, "max_rank": max_rank}
    given = [spelled(name) for name, value in words.items() if value is not None]
    if budget is not None:
        if given:
            raise ValueError(f"a budget has {' and '.join(given)} in it: give the one or the other.")
        return budget
    if (parameters is None) == (variance is None):
        either = _listed(("parameters", "variance"), "or", spelled)
        raise ValueError(f"how much to keep? Give {either}, and only one of them.")
    return Budget(parameters, variance, max_rank, objective or Budget.objective)


def _is_given(value: Any) -> bool:
    # Not by equality: a fraction of 0 is given.
    return value is not None and value is not False


def _check_belongs(name: str, words: Mapping[str, Any], owners: Iterable[str], spelled: Callable[[str], str]) -> None:
    if words.get(name) is not None and not any(_is_given(words.get(owner)) for owner in owners):
        raise ValueError(f"{spelled(name)} belongs to {_listed(owners, 'or', spelled)}, which is not given.")


def _rank_by(spectrum: Spectrum, *, name: str, value: float, max_rank: int | None) -> int:
    rank = int(_THRESHOLDS[name](spectrum, value))
    return rank if max_rank is None else min(rank, max_rank)


def _listed(names: Iterable[str], last: str, spelled: Callable[[str], str]) -> str:
    *others, final = map(spelled, names)
    return f"{', '.join(others)} {last} {final}" if others else final
