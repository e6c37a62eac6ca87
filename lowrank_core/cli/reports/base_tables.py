"""An inspected update beside the weights that it is added to, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.tables import note, rows_of_layers, table
from lowrank_core.cli.texts import count, percent
from lowrank_core.models import BaseFigures, LayerReport, Totals


class _Column(NamedTuple):
    """A column: its heading, the figure in it, that of several layers, its text, and what it means."""

    heading: str
    figure: Callable[[BaseFigures], float | None]
    together: Callable[[list[float]], float]
    text: Callable[[float], str]
    meaning: str = ""

    def figures(self, layers: Sequence[LayerReport]) -> list[float]:
        """Return the figures of those layers that have one."""
        figures = [self.figure(layer.base) for layer in layers if layer.base]
        return [figure for figure in figures if figure is not None]

    def cell(self, layers: Sequence[LayerReport]) -> str:
        """Return the text of some layers' figure."""
        figures = self.figures(layers)
        return self.text(self.together(figures)) if figures else "–"


_COLUMNS = (
    _Column("‖Δ‖/‖W‖", lambda base: base.relative_norm, median, "{:.3g}".format),
    _Column("σ₁(Δ)/σ₁(W)", lambda base: base.relative_spectral_norm, median, "{:.3g}".format),
    _Column("merge error", lambda base: base.merge_error, median, "{:.3g}".format),
    _Column(
        "unchanged",
        lambda base: base.merge_unchanged,
        median,
        "{:.1%}".format,
        "Merge: W + Δ rounded to what W is stored in. Error: ‖lost‖/‖Δ‖. Unchanged: weights that stay as they are.",
    ),
    _Column(
        "intruders",
        lambda base: base.intruders,
        sum,
        "{:.0f}".format,
        "Intruders: leading left vectors of W + Δ with |cos| < ½ to every left vector of W (arXiv:2410.21228).",
    ),
)


def beside_base(layers: Sequence[LayerReport], totals: Totals, *, each: bool) -> Iterator[RenderableType]:
    """Yield how large the update is beside the base, what a merge loses, and the intruders, where they were counted."""
    columns = [column for column in _COLUMNS if column.figures(layers)]
    rows = table("layer" if each else "kind", *(column.heading for column in columns), names=1)
    for title, members in rows_of_layers(layers, each=each):
        rows.add_row(title, *(column.cell(members) for column in columns))
    yield rows
    yield from (note(column.meaning) for column in columns if column.meaning)
    missing = sum(layer.base is None for layer in layers)
    if missing:
        yield note(f"The base has no weight of the name and shape of {count(missing, 'layer')}.")
    if totals.relative_norm is not None:
        intruders = "" if totals.intruders is None else f"; intruders: {totals.intruders}"
        yield Text(f"All layers together: ‖Δ‖ is {percent(totals.relative_norm)} of ‖W‖{intruders}.")
