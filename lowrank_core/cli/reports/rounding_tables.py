"""What of an inspected update is rounding of its stored weights, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.tables import add_by_block, note, table
from lowrank_core.cli.texts import count, percent
from lowrank_core.models import LayerReport
from lowrank_core.models.inspection.report import LayerNoise


def rounding(layers: Sequence[LayerReport]) -> Iterator[RenderableType]:
    """Yield what of each layer exceeds the rounding of its stored weights, and what rounding hides."""
    rows = table(
        "layer",
        "un-\nchanged",
        "edge",
        "rank\nabove",
        "variance\nbelow",
        "both\nsides:\nedge",
        "rank\nabove",
        "variance\nbelow",
        names=1,
    )
    add_by_block(rows, layers, lambda layer: _cells(layer.rounding) if layer.rounding else ())
    yield rows
    yield note(
        "Edge: in 99 of 100 draws, no singular value of rounding alone is larger. Below it, update and rounding cannot "
        "be told apart. Both sides: if tuning started from a finer copy of the base than is stored."
    )
    doubtful = sum(not layer.rounding.noise.applies for layer in layers if layer.rounding)
    if doubtful:
        yield Text(
            f"? in {count(doubtful, 'layer')}: most entries that could have changed did not, because the update is "
            "smaller than a step of the stored numbers. Rounding is not noise there, and these numbers are not valid."
        )
    coarse = sum(layer.rounding.noise.base_is_coarser for layer in layers if layer.rounding)
    if coarse:
        yield Text(
            f"In {count(coarse, 'layer')} the base is stored more coarsely than the tuned checkpoint: if tuning "
            "started from a finer copy of the base, the update includes its rounding, and both sides were rounded."
        )


def _cells(layer: LayerNoise) -> list[str]:
    mark = "" if layer.noise.applies else " ?"
    sides = zip((layer.noise.one_side, layer.noise.two_sides), layer.rank_above, layer.variance_below, strict=True)
    return [
        f"{100 * layer.noise.unchanged:.1f} %{mark}",
        *(
            text
            for side, rank, below in sides
            for text in (f"{side.edge:.3g}", f"{rank}{mark}", f"{percent(below)}{mark}")
        ),
    ]
