"""What of an inspected update is rounding of its stored weights, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.layer_tables import Column, figure, layer_table
from lowrank_core.cli.tables import note
from lowrank_core.cli.texts import percent
from lowrank_core.models import LayerReport
from lowrank_core.models.inspection.report import LayerNoise


def rounding(layers: Sequence[LayerReport], *, full: bool) -> Iterator[RenderableType]:
    """Yield what of each layer exceeds the rounding of its stored weights, and what rounding hides."""
    yield from layer_table(layers, _COLUMNS, full=full)
    yield note(
        "Edge: in 99 of 100 draws, no singular value of rounding alone is larger. Below it, update and rounding cannot "
        "be told apart. Both: both sides were rounded, as where tuning started from a finer copy of the base than is "
        "stored."
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


def _figure(
    heading: str, value: Callable[[LayerNoise], float], form: Callable[[float], str], *, marked: bool = True
) -> Column[LayerReport]:
    """Return the column of a figure, with a question mark where it is not valid of a layer."""
    column: Column[LayerReport] = figure(
        heading, lambda layer: None if layer.rounding is None else value(layer.rounding), form
    )
    if not marked:
        return column

    def text(layers: Sequence[LayerReport]) -> str:
        doubtful = any(layer.rounding and not layer.rounding.noise.applies for layer in layers)
        return f"{column.text(layers)}{' ?' if doubtful else ''}"

    return column._replace(text=text)


_COLUMNS: tuple[Column[LayerReport], ...] = (
    _figure("un-\nchanged", lambda noise: 100 * noise.noise.unchanged, "{:.1f} %".format),
    _figure("edge", lambda noise: noise.noise.one_side.edge, "{:.3g}".format, marked=False),
    _figure("rank\nabove", lambda noise: noise.rank_above[0], "{:g}".format),
    _figure("variance\nbelow", lambda noise: noise.variance_below[0], percent),
    _figure("both:\nedge", lambda noise: noise.noise.two_sides.edge, "{:.3g}".format, marked=False),
    _figure("both:\nrank\nabove", lambda noise: noise.rank_above[1], "{:g}".format),
    _figure("both:\nvariance\nbelow", lambda noise: noise.variance_below[1], percent),
)
