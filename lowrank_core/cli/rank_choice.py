"""How many components of a layer to keep, as the options of the command line say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lowrank_core import Spectrum, rank_for_error, rank_for_ratio, rank_for_variance

__all__ = ["choose_rank"]

THRESHOLDS: dict[str, Callable[[Spectrum, float], Any]] = {
    "variance": rank_for_variance,
    "error": rank_for_error,
    "ratio": rank_for_ratio,
}


def choose_rank(
    *, rank: int | None, max_rank: int | None, **thresholds: float | None
) -> int | Callable[[Spectrum], int] | None:
    """Turn the options that choose a rank into what the library takes.

    Parameters
    ----------
    rank : int, optional
        ``--rank``.
    max_rank : int, optional
        ``--max-rank``.
    **thresholds : float, optional
        ``--variance``, ``--error`` and ``--ratio``, by name.

    Returns
    -------
    int, callable or None
        A number, or a function of a layer's spectrum, which can be sent to another process; None if no option chooses.

    Raises
    ------
    ValueError
        If two options choose, one that chooses is no fraction, or ``--max-rank`` has nothing to bound.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import spectrum
    >>> rule = choose_rank(rank=None, max_rank=2, variance=0.99, error=None)
    >>> rule(spectrum(np.diag([4.0, 3.0, 2.0, 0.1]))), rule(spectrum(np.diag([4.0, 0.1])))
    (2, 1)
    """
    given = {name: value for name, value in {"rank": rank, **thresholds}.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{_listed(given, 'and')} exclude each other: only one of them can choose the rank.")
    if max_rank is not None and given.keys() <= {"rank"}:
        raise ValueError(
            f"--max-rank bounds what {_listed(THRESHOLDS, 'or')} chooses, and none of them is given: for a fixed rank, "
            "give --rank alone."
        )
    if not given or rank is not None:
        return rank
    ((name, value),) = given.items()
    if not 0 <= value <= 1:
        raise ValueError(f"--{name} is a fraction between 0 and 1; got {value:g}.")
    return partial(_rank_by, name=name, value=value, max_rank=max_rank)


def _rank_by(found: Spectrum, *, name: str, value: float, max_rank: int | None) -> int:
    rank = int(THRESHOLDS[name](found, value))
    return rank if max_rank is None else min(rank, max_rank)


def _listed(names: Iterable[str], last: str) -> str:
    *others, final = (f"--{name}" for name in names)
    return f"{', '.join(others)} {last} {final}"
