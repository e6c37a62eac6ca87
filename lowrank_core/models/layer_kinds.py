"""Layers by their kinds, as reports and figures have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from lowrank_core.models.executors import Named
from lowrank_core.models.module_names import kind

Layer = TypeVar("Layer", bound=Named)


class AtStep(Named, Protocol):
    """A layer at a step of a run."""

    @property
    def step(self) -> int:
        """The step."""


Row = TypeVar("Row", bound=AtStep)


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


def by_kind(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Return layers, in natural order, by their kinds, without what all kinds begin with."""
    by_name = {layer.name: layer for layer in layers}
    kinds: dict[str, list[Layer]] = {}
    for name in in_natural_order(by_name):
        kinds.setdefault(kind(name), []).append(by_name[name])
    prefix = common_prefix(list(kinds))
    return {name.removeprefix(prefix): members for name, members in kinds.items()}


def kinds_begin_with(layers: Iterable[Named]) -> str:
    """Return what all kinds of layers begin with, with stars for numbers; nothing where they begin differently.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> kinds_begin_with([SimpleNamespace(name=f"h.{i}.{module}") for i in range(2) for module in ("fc", "proj")])
    'h.*.'
    """
    return common_prefix(sorted({kind(layer.name) for layer in layers}))


def steps_by_kind(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """Return rows by the kind of their layers, and by step."""
    layers = {row.name: row for row in rows}
    kinds: dict[str, dict[int, list[Row]]] = {}
    for kind_name, members in by_kind(layers.values()).items():
        names = {member.name for member in members}
        steps = kinds.setdefault(kind_name, {})
        for row in rows:
            if row.name in names:
                steps.setdefault(row.step, []).append(row)
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


def _number(part: str) -> tuple[int, str]:
    # As text, because int takes no more than 4,300 digits.
    digits = part.lstrip("0") if part.isdecimal() else ""
    return len(digits), digits
