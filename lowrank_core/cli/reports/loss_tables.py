"""What rounding merged weights lost of the updates, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from rich.console import RenderableType

from lowrank_core.cli.layer_tables import Column, figure, layer_table, property_of
from lowrank_core.cli.tables import note
from lowrank_core.cli.texts import RELATIVE_NORM, error_text, percent
from lowrank_core.models import RoundingLoss


class MergedLayer(Protocol):
    """A layer whose update was added to a stored weight."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def merged_dtype(self) -> str:
        """What the sum is stored in."""

    @property
    def rounding(self) -> RoundingLoss:
        """What rounding the sum lost."""


def losses(layers: Sequence[MergedLayer], together: RoundingLoss, *, full: bool) -> Iterator[RenderableType]:
    """Yield what rounding lost of every layer, or of every kind of layer, and of all together."""
    yield from layer_table(
        layers, _COLUMNS, full=full, totals=["", *(text(value(together)) for _, value, text in _FIGURES)]
    )
    yield note(
        "Lost: ‖round(W + Δ) − (W + Δ)‖/‖Δ‖. Below ½ ulp: entries of the update smaller than half a step of the stored "
        "weight, which rounding leaves as it was. Unchanged: entries of the merged weight that are the base's."
    )


class _Figure(NamedTuple):
    """A figure of a loss: its heading, its value and its text."""

    heading: str
    value: Callable[[RoundingLoss], float]
    text: Callable[[float], str]


def _column(of: _Figure) -> Column[MergedLayer]:
    return figure(of.heading, lambda layer: of.value(layer.rounding), of.text)


_FIGURES = (
    _Figure("norm", lambda loss: loss.norm, "{:.4g}".format),
    _Figure(RELATIVE_NORM, lambda loss: loss.relative_norm, "{:.3g}".format),
    _Figure("lost", lambda loss: loss.error, error_text),
    _Figure("below\n½ ulp", lambda loss: loss.below_half_ulp, percent),
    _Figure("un-\nchanged", lambda loss: loss.unchanged, percent),
)
_COLUMNS: tuple[Column[MergedLayer], ...] = (
    property_of("stored in", lambda layer: layer.merged_dtype),
    *map(_column, _FIGURES),
)
