"""An inspected update beside the weights that it is added to, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.layer_tables import NONE, Column, figure, layer_table, total
from lowrank_core.cli.tables import note
from lowrank_core.cli.texts import RELATIVE_NORM, percent
from lowrank_core.models import BaseFigures, LayerReport, Totals

# What a column means that its heading does not say.
_MEANINGS = {
    "unchanged": "Merge: W + Δ rounded to what W is stored in. Error: ‖lost‖/‖Δ‖. Unchanged: weights that stay as they "
    "are.",
    "intruders": "Intruders: leading left vectors of W + Δ with |cos| < ½ to every left vector of W "
    "(arXiv:2410.21228).",
}


def _of_base(value: Callable[[BaseFigures], float | None]) -> Callable[[LayerReport], float | None]:
    return lambda layer: None if layer.base is None else value(layer.base)


_COLUMNS: tuple[Column[LayerReport], ...] = (
    figure(RELATIVE_NORM, _of_base(lambda base: base.relative_norm), "{:.3g}".format),
    figure("σ₁(Δ)/σ₁(W)", _of_base(lambda base: base.relative_spectral_norm), "{:.3g}".format),
    figure("merge error", _of_base(lambda base: base.merge_error), "{:.3g}".format),
    figure("unchanged", _of_base(lambda base: base.merge_unchanged), "{:.1%}".format),
    total("intruders", _of_base(lambda base: base.intruders), "{:.0f}".format),
)


def beside_base(layers: Sequence[LayerReport], totals: Totals, *, full: bool) -> Iterator[RenderableType]:
    """Yield how large the update is beside the base, what a merge loses, and the intruders, where they were counted."""
    columns = [column for column in _COLUMNS if column.text(layers) != NONE]
    yield from layer_table(layers, columns, full=full)
    yield from (note(_MEANINGS[column.heading]) for column in columns if column.heading in _MEANINGS)
    if totals.relative_norm is not None:
        intruders = "" if totals.intruders is None else f"; intruders: {totals.intruders}"
        yield Text(f"All layers together: ‖Δ‖ is {percent(totals.relative_norm)} of ‖W‖{intruders}.")
