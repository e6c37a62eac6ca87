"""The rank of a layer, as the options of the command line choose it."""

from __future__ import annotations

from typing import Any

from lowrank_core.cli.options import RankChoice, parse_ranks
from lowrank_core.models.operations import rank_words
from lowrank_core.models.operations.rank_choice import Rank


def choose_rank(choice: RankChoice, *, required: bool = False, **noise: Any) -> Rank | tuple[int, ...] | None:
    """Return the rank or ranks that options choose, as the library takes them, or None if no option chooses one.

    `noise` are ``--above-noise`` and ``--sides``, of a verb that has them.
    """
    return rank_words.choose_rank({**_words(choice), **noise}, required=required, spelled=option)


def choose_one_rank(choice: RankChoice) -> Rank | None:
    """Return the rank that options choose, of a verb that writes one adapter."""
    return rank_words.choose_one_rank(_words(choice), spelled=option)


def _words(choice: RankChoice) -> dict[str, Any]:
    rank = None if choice.rank is None else _counted(choice.rank)
    return {**vars(choice), "rank": rank}


def _counted(text: str) -> int | tuple[int, ...]:
    ranks = parse_ranks(text, "--rank")
    if ranks[0] < 1:
        raise ValueError(f"--rank is at least 1, or several such numbers, as 4,8,16; got {text!r}.")
    return ranks if len(ranks) > 1 else ranks[0]


def option(word: str) -> str:
    """Return the option that has a word's name."""
    return f"--{word.replace('_', '-')}"
