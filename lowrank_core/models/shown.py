"""How reports show themselves: in one line, and in a notebook as a table of their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowrank_core._results import html_table, shape_text
from lowrank_core.models.executors import Named
from lowrank_core.models.printable import printable

Columns = Mapping[str, Callable[[Any], object]]
"""What each column of a table has of a layer, by its heading."""


def layers_table(title: str, layers: Sequence[Named], columns: Columns) -> str:
    """Return a table for a notebook with a row for each layer, which begins with its name."""
    rows = [[printable(layer.name), *(column(layer) for column in columns.values())] for layer in layers]
    return html_table(printable(title), ["layer", *columns], rows)


def shape_of(layer: Any) -> str:
    """Return the shape of a layer in words."""
    return shape_text(layer.shape)
