"""What of an inspected update is rounding of its stored weights: figures in, rich renderables out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.tables import add_by_block, count, note, table
from lowrank_core.models.inspection.layer_noise import LayerNoise

__all__ = ["rounding"]


def rounding(layers: Mapping[str, LayerNoise]) -> Iterator[RenderableType]:
    """Lay out what stands above the rounding of each layer's stored weights, and what is lost in it.

    Parameters
    ----------
    layers : mapping of str to LayerNoise
        By the layers' names.

    Yields
    ------
    rich renderable
    """
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
    add_by_block(rows, layers, lambda name: _figures(layers[name]))
    yield rows
    yield note(
        "Edge: rounding alone has no larger singular value in 99 of 100 draws. Below it, update and rounding cannot be "
        "told apart. Both sides: where the tuning started from a finer copy of the base than is stored."
    )
    vague = sum(not found.noise.applies for found in layers.values())
    if vague:
        yield Text(
            f"? in {count(vague, 'layer')}: most entries that could have changed did not, for the update is under a "
            "step of the stored numbers. There rounding is no noise, and these figures do not hold."
        )


def _figures(found: LayerNoise) -> list[str]:
    mark = "" if found.noise.applies else " ?"
    sides = zip((found.noise.one_side, found.noise.two_sides), found.rank_above, found.variance_below, strict=True)
    return [
        f"{100 * found.noise.unchanged:.1f} %{mark}",
        *(
            text
            for side, rank, below in sides
            for text in (f"{side.edge:.3g}", f"{rank}{mark}", f"{100 * below:.2f} %{mark}")
        ),
    ]
