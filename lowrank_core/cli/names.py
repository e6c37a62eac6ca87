"""Module names, made short enough for a table without losing which is which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from lowrank_core.models.module_names import kind

_BLOCK = re.compile(r"(?P<block>.*?(?<![A-Za-z0-9])\d+)[._](?P<rest>.+)")


class Named(Protocol):
    """A layer, of whatever report."""

    @property
    def name(self) -> str:
        """The module's name."""


Layer = TypeVar("Layer", bound=Named)


def common_prefix(names: Sequence[str]) -> str:
    """Return what all names begin with, up to a dot or an underscore; nothing for a single name.

    Examples
    --------
    >>> common_prefix(["model.layers.1.q_proj", "model.layers.11.q_proj"])
    'model.layers.'
    """
    if len(names) < 2:
        return ""
    # Every name lies between the first and the last in order, and so begins with what these two have in common.
    first, last = min(names), max(names)
    differs = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    common = first[:differs]
    return common[: max(common.rfind("."), common.rfind("_")) + 1]


def by_short_name(layers: Sequence[Layer]) -> tuple[str, dict[str, Layer]]:
    """Return what all names begin with, and the layers by the rest of their names."""
    prefix = common_prefix([layer.name for layer in layers])
    return prefix, {layer.name.removeprefix(prefix): layer for layer in layers}


def by_kind(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Return layers, in natural order, by their kinds, without what all kinds begin with."""
    by_name = {layer.name: layer for layer in layers}
    prefix = common_prefix(sorted({kind(name) for name in by_name}))
    kinds: dict[str, list[Layer]] = {}
    for name in in_natural_order(by_name):
        short = kind(name).removeprefix(prefix).lstrip("*._")
        kinds.setdefault(short or name, []).append(by_name[name])
    return kinds


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Return names sorted with their numbers as numbers, so that 2 comes before 10.

    Examples
    --------
    >>> in_natural_order(["h.10.fc", "h.2.fc"])
    ['h.2.fc', 'h.10.fc']
    """
    return sorted(
        names, key=lambda name: [(part.isdecimal(), _number(part), part) for part in re.split(r"(\d+)", name)]
    )


def blocks(names: Iterable[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (block, [(name, rest of the name), ...]) in natural order; the block is "" where it shortens nothing.

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
    match = _BLOCK.fullmatch(name)
    return match["block"] if match else ""


def _number(part: str) -> tuple[int, str]:
    # As text, because int takes no more than 4,300 digits.
    digits = part.lstrip("0") if part.isdecimal() else ""
    return len(digits), digits
