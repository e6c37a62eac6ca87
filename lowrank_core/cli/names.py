"""Module names, made short enough for a table without losing which is which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

__all__ = ["blocks", "by_kind", "common_prefix", "in_natural_order", "kind"]

NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
BLOCK = re.compile(r"(?P<block>.*?(?<![A-Za-z0-9])\d+)[._](?P<rest>.+)")


def common_prefix(names: Sequence[str]) -> str:
    """Find what all names begin with, up to a dot or an underscore; nothing for a single name.

    Examples
    --------
    >>> common_prefix(["model.layers.1.q_proj", "model.layers.11.q_proj"])
    'model.layers.'
    """
    if len(names) < 2:
        return ""
    # What the first and the last in order share, all between them share.
    first, last = min(names), max(names)
    differs = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    shared = first[:differs]
    return shared[: max(shared.rfind("."), shared.rfind("_")) + 1]


def kind(name: str) -> str:
    """Name the kind of a layer: its numbers replaced by stars.

    Examples
    --------
    >>> kind("model.layers.11.self_attn.q_proj")
    'model.layers.*.self_attn.q_proj'
    """
    return NUMBER.sub("*", name)


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Gather names, in natural order, under their kinds, less what all kinds begin with.

    Parameters
    ----------
    names : iterable of str

    Returns
    -------
    dict of str to list of str

    Examples
    --------
    >>> by_kind(["h.0.fc", "h.0.attn", "h.1.fc"])
    {'attn': ['h.0.attn'], 'fc': ['h.0.fc', 'h.1.fc']}
    """
    ordered = in_natural_order(names)
    prefix = common_prefix(sorted({kind(name) for name in ordered}))
    found: dict[str, list[str]] = {}
    for name in ordered:
        short = kind(name).removeprefix(prefix).lstrip("*._")
        found.setdefault(short or name, []).append(name)
    return found


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Sort names with their numbers as numbers, so that 2 comes before 10.

    Examples
    --------
    >>> in_natural_order(["h.10.fc", "h.2.fc"])
    ['h.2.fc', 'h.10.fc']
    """
    return sorted(
        names, key=lambda name: [(part.isdecimal(), _number(part), part) for part in re.split(r"(\d+)", name)]
    )


def blocks(names: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Gather names, in natural order, under the blocks that they belong to.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    list of (block, list of (name, short name))
        The block is "" where gathering would not make the names shorter.

    Examples
    --------
    >>> blocks(["0.attn.q", "0.attn.v"])
    [('0', [('0.attn.q', 'attn.q'), ('0.attn.v', 'attn.v')])]
    """
    ordered = in_natural_order(names)
    gathered = [(block, list(members)) for block, members in groupby(ordered, _block)]
    if 2 * len(gathered) > len(ordered):
        return [("", [(name, name) for name in ordered])]
    return [(block, [(name, name[len(block) :].lstrip("._")) for name in members]) for block, members in gathered]


def _block(name: str) -> str:
    match = BLOCK.fullmatch(name)
    return match["block"] if match else ""


def _number(part: str) -> int:
    return int(part) if part.isdecimal() else 0
