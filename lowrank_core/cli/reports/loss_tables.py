"""What rounding merged weights lost of the updates, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import RenderableType

from lowrank_core.cli.tables import add_by_block, note, rows_of_layers, table
from lowrank_core.cli.texts import error_text, percent, shape_text
from lowrank_core.models import RoundingLoss
from lowrank_core.models.operations.weight_merging import combined

_TOGETHER = "all together"


class MergedLayer(Protocol):
    """A layer whose update was added to a stored weight."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of its update."""

    @property
    def merged_dtype(self) -> str:
        """What the sum is stored in."""

    @property
    def rounding(self) -> RoundingLoss:
        """What rounding the sum lost."""


def losses(layers: Sequence[MergedLayer], total: RoundingLoss, *, each: bool) -> Iterator[RenderableType]:
    """Yield what rounding lost of every layer, or of every kind of layer, and of all together."""
    headings = ("m × n", "stored in", "norm", "lost", "below\n½ ulp", "un-\nchanged")
    if each:
        rows = table("layer", *headings, names=1)
        add_by_block(rows, layers, lambda layer: [shape_text(layer.shape), layer.merged_dtype, *_cells(layer.rounding)])
    else:
        rows = table("kind", *headings[1:], names=1)
        for title, members in rows_of_layers(layers, each=False):
            stored = ", ".join(dict.fromkeys(layer.merged_dtype for layer in members))
            rows.add_row(title, stored, *_cells(combined([layer.rounding for layer in members])))
    rows.add_section()
    rows.add_row(_TOGETHER, *([""] * (2 if each else 1)), *_cells(total))
    yield rows
    yield note(
        "Lost: ‖round(W + Δ) − (W + Δ)‖/‖Δ‖. Below ½ ulp: entries of the update smaller than half a step of the stored "
        "weight, which rounding leaves as it was. Unchanged: entries of the merged weight that are the base's."
    )


def _cells(loss: RoundingLoss) -> list[str]:
    return [f"{loss.norm:.4g}", error_text(loss.error), percent(loss.below_half_ulp), percent(loss.unchanged)]
