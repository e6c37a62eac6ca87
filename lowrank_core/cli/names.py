"""Module names, made short enough for a table without losing which is which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from lowrank_core.models.layer_kinds import Layer, common_prefix, in_natural_order

_BLOCK = re.compile(r"(?P<block>.*?(?<![A-Za-z0-9])\d+)[._](?P<rest>.+)")


def by_short_name(layers: Sequence[Layer]) -> tuple[str, dict[str, Layer]]:
    """Return what all names begin with, and the layers by the rest of their names."""
    prefix = common_prefix([layer.name for layer in layers])
    return prefix, {layer.name.removeprefix(prefix): layer for layer in layers}


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
