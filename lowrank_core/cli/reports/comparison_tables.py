"""A comparison for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from lowrank_core import SpaceOverlap
from lowrank_core._results import count
from lowrank_core.cli.layer_tables import Column, figure, layer_table
from lowrank_core.cli.tables import failed, heading, listed, note, section, table
from lowrank_core.cli.texts import beginning
from lowrank_core.models import ComparedLayer, ComparedPair, PairTotals, UpdateComparison
from lowrank_core.models.operations.compared import NOTABLE
from lowrank_core.models.overlaps import whole_overlap


def comparison(report: UpdateComparison, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a comparison; in full, a row for every layer, however many there are."""
    on_base = "" if report.base is None else f", tuned from {report.base}"
    sources = (f"{number}: {path}" for number, path in enumerate(report.paths, 1))
    yield heading(
        f"{count(len(report.paths), 'update')} compared{on_base}", *sources, beginning(report.pairs[0].layers)
    )
    if len(report.paths) > 2:
        yield section("Cosines over all layers", _matrix(report))
    numbers = combinations(range(1, len(report.paths) + 1), 2)
    for (first, second), pair in zip(numbers, report.pairs, strict=True):
        yield section(f"{first} and {second}", *_pair(pair, full=full))
    yield section(
        "What the figures say",
        note(
            "cosine: ⟨Δ₁, Δ₂⟩ / (‖Δ₁‖‖Δ₂‖), beside its standard deviation for random updates. sum: ‖Δ₁ + Δ₂‖ over "
            "√(‖Δ₁‖² + ‖Δ₂‖²), which is 1 for orthogonal updates. φ of the outputs (columns) and of the inputs (rows): "
            f"how far the spaces of the {report.rank} leading directions overlap, from 0 to 1, with the level of "
            "random spaces in brackets. Overlap is geometry and no promise: updates that share nothing may change the "
            "same outputs."
        ),
    )
    if report.not_low_rank:
        yield section("Not low-rank, and not in the numbers above", *listed(report.not_low_rank, full=full))
    if report.failures:
        yield section("Failed", *failed(report.failures, full=full))
    if report.warnings:
        yield section("Warnings", *(Text(f"- {warning}") for warning in report.warnings))
    yield Text(f"\n{_completeness(report)}")


def _completeness(report: UpdateComparison) -> str:
    if report.complete:
        return "Complete: every layer of all is compared, and nothing else differs."
    return "Not complete: what is named above as in one alone, failed or not low-rank is in no figure."


def _matrix(report: UpdateComparison) -> RenderableType:
    rows = table("", *(str(number) for number in range(1, len(report.paths) + 1)))
    for number, cosines in enumerate(report.cosines, 1):
        rows.add_row(str(number), *(f"{cosine:.4f}" for cosine in cosines))
    return rows


def _pair(pair: ComparedPair, *, full: bool) -> Iterator[RenderableType]:
    if pair.layers:
        yield from layer_table(pair.layers, _COLUMNS, full=full)
        yield Text(_totals_text(pair.totals))
    for what, names in (("Reinforced", pair.totals.reinforcing), ("Cancelled", pair.totals.cancelling)):
        if names:
            yield Text(f"{what} by more than {NOTABLE:.0%} of the norm of the sum: {_some(names)}.")
    for path, names in ((pair.first, pair.only_in_first), (pair.second, pair.only_in_second)):
        if names:
            yield Text(f"Only in {path}, and not in the numbers above: {_some(names)}.")
    if pair.failures:
        yield Text(f"Failed: {count(len(pair.failures), 'layer')}.")
        yield from failed(pair.failures, full=full)


def _overlap(heading: str, space: Callable[[ComparedLayer], SpaceOverlap]) -> Column[ComparedLayer]:
    """Return the column of how far spaces overlap, with the level of random ones."""

    def text(layers: Sequence[ComparedLayer], together: Callable[[Iterable[float]], float] = median) -> str:
        overlaps, chances = zip(*(whole_overlap(space(layer)) for layer in layers), strict=True)
        return f"{together(overlaps):.3f} ({median(chances):.3f})"

    return Column(heading, text, lambda layers: text(layers, max))


_COLUMNS: tuple[Column[ComparedLayer], ...] = (
    figure("‖Δ₁‖", lambda layer: layer.first_norm, "{:.3g}".format),
    figure("‖Δ₂‖", lambda layer: layer.second_norm, "{:.3g}".format),
    figure("cosine", lambda layer: layer.cosine, "{:.4f}".format, partial(max, key=abs)),
    figure("random\n±", lambda layer: layer.cosine_deviation, "{:.4f}".format),
    figure("sum", lambda layer: layer.growth, "{:.3f}".format, partial(max, key=lambda growth: abs(growth - 1.0))),
    _overlap("φ of outputs\n(random)", lambda layer: layer.columns),
    _overlap("φ of inputs\n(random)", lambda layer: layer.rows),
)


def _totals_text(totals: PairTotals) -> str:
    growth = totals.sum_norm / totals.orthogonal_norm if totals.orthogonal_norm else 1.0
    return (
        f"All layers: norms {totals.first_norm:.4g} and {totals.second_norm:.4g}, cosine {totals.cosine:.4f} (random "
        f"updates: 0 ± {totals.cosine_deviation:.4f}), norm of the sum {totals.sum_norm:.4g}, {growth:.3f} of that of "
        "orthogonal updates."
    )


def _some(names: Sequence[str], shown: int = 6) -> str:
    rest = f" and {len(names) - shown:,} more (--json)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
