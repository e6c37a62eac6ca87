"""A plan for the terminal: figures in, rich renderables out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.text import Text

from lowrank_core.cli.names import by_kind, common_prefix, in_natural_order
from lowrank_core.cli.tables import RULE_LABELS, add_by_block, count, error_text, note, section, table
from lowrank_core.models.operations.planning import Plan, PlannedLayer

__all__ = ["plan"]

# Up to here a row is printed for every layer; beyond, for every kind of layer.
FEW_LAYERS = 48
OTHERS_SHOWN = 12


def plan(found: Plan, *, full: bool) -> Iterator[RenderableType]:
    """Lay out a plan, section by section.

    Parameters
    ----------
    found : Plan
    full : bool
        A row for every layer, however many there are.

    Yields
    ------
    rich renderable
    """
    yield _heading(found)
    each = full or len(found.layers) <= FEW_LAYERS
    yield section("Layers" if each else "Kinds of layers", *(_layers(found) if each else _kinds(found)))
    yield section("One rank for all layers instead", *_uniform(found))
    if found.skipped:
        yield section("Not planned for", *_listed(found.skipped, shown=OTHERS_SHOWN))
    if found.failures:
        yield section("Failed", *_listed(found.failures, shown=len(found.failures)))


def _heading(found: Plan) -> Text:
    what = found.path if found.base is None else f"{found.path} − {found.base}"
    asked = (
        f"{found.budget.parameters:,} parameters"
        if found.budget.parameters is not None
        else f"{found.budget.variance:.4g} of the variance"
    )
    kept = sum(layer.rank > 0 for layer in found.layers)
    gap = found.upper_bound - found.variance
    lines = [f"asked for: {asked}; {found.budget.objective} objective"]
    lines.append(
        f"{found.parameters:,} parameters in {kept} of {count(len(found.layers), 'layer')} keep "
        f"{100 * found.variance:.2f} % of the variance"
    )
    # Equal but for the order of two sums.
    near = "the best possible" if gap < 1e-12 else f"within {100 * gap:.2g} points of the best"
    lines.append(f"no other ranks with as many parameters keep more than {100 * found.upper_bound:.2f} %: {near}")
    return Text.assemble((what, "bold"), *(f"\n{line}" for line in lines))


def _layers(found: Plan) -> Iterator[RenderableType]:
    rows = table("layer", "m × n", "r", "α", "γ", "parameters", "variance", "best\nerror", names=1)
    prefix = common_prefix([layer.name for layer in found.layers])
    by_name = {layer.name.removeprefix(prefix): layer for layer in found.layers}
    add_by_block(rows, by_name, lambda name: _figures(by_name[name]))
    yield rows
    yield from [note(f"names begin with {prefix}")] if prefix else []
    yield note(f"γ = {RULE_LABELS[found.rule]}, kept at every rank by α. A layer of rank 0 is left out.")


def _figures(layer: PlannedLayer) -> list[str]:
    return [
        f"{layer.shape[0]} × {layer.shape[1]}",
        str(layer.rank),
        "" if layer.alpha is None else f"{layer.alpha:.4g}",
        "" if layer.scaling is None else f"{layer.scaling:.4g}",
        f"{layer.parameters:,}",
        f"{100 * layer.variance_captured:.2f} %",
        error_text(layer.best_error),
    ]


def _kinds(found: Plan) -> Iterator[RenderableType]:
    rows = table("kind", "layers", "least r", "largest r", "parameters", "least\nvariance", names=1)
    by_name = {layer.name: layer for layer in found.layers}
    for title, names in by_kind(by_name).items():
        members = [by_name[name] for name in names]
        ranks = [layer.rank for layer in members]
        rows.add_row(
            title,
            str(len(members)),
            str(min(ranks)),
            str(max(ranks)),
            f"{sum(layer.parameters for layer in members):,}",
            f"{100 * min(layer.variance_captured for layer in members):.2f} %",
        )
    yield rows
    yield note("Every layer's own rank and alpha: --full, --json or --out.")


def _uniform(found: Plan) -> Iterator[RenderableType]:
    rows = table("", "r", "parameters", "variance", names=1)
    rows.add_row("this plan", "by layer", f"{found.parameters:,}", f"{100 * found.variance:.2f} %")
    for what, uniform in (
        ("the largest that costs no more", found.same_parameters),
        ("the least that keeps no less", found.same_variance),
    ):
        rows.add_row(what, str(uniform.rank), f"{uniform.parameters:,}", f"{100 * uniform.variance:.2f} %")
    yield rows
    more = 100 * (found.variance - found.same_parameters.variance)
    share = found.parameters / found.same_variance.parameters
    yield note(
        f"The plan keeps {more:.2f} points more than any one rank within its parameters, and needs {100 * share:.0f} % "
        "of the parameters of the one rank that keeps as much."
    )


def _listed(entries: Mapping[str, str], *, shown: int) -> Iterator[RenderableType]:
    names = in_natural_order(entries)
    for name in names[:shown]:
        yield Text(f"{name}: {entries[name]}")
    if len(names) > shown:
        yield note(f"… and {len(names) - shown} more: --json has them all.")
