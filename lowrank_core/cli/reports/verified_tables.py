"""A verified model for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from lowrank_core._results import count, shape_text
from lowrank_core.cli.layer_tables import Column, figure, layer_table, property_of, total
from lowrank_core.cli.reports.completeness import alignment
from lowrank_core.cli.reports.loss_tables import losses
from lowrank_core.cli.tables import ENTRIES_SHOWN, by_reason, heading, listed, note, section
from lowrank_core.cli.texts import beginning
from lowrank_core.models import Verification, VerifiedLayer


def verified(report: Verification, *, full: bool) -> Iterator[RenderableType]:
    """Yield the sections of a verified model; in full, every layer."""
    right = [layer for layer in report.layers if layer.right]
    yield heading(
        f"{report.merged} = {report.base} + {report.adapter}: {'right' if report.right else 'wrong'}",
        f"{len(right):,} of {count(len(report.layers), 'update')} right{_replays(right)}; "
        f"{count(report.equal, 'other tensor')} as in the base or in the adapter",
        beginning(report.layers),
    )
    yield from alignment(report.alignment)
    wrong = [layer for layer in report.layers if not layer.right]
    if wrong:
        yield section("Wrong", *_wrong(wrong, full=full))
    if report.layers:
        title = "What a merge in these dtypes loses of the updates"
        yield section(title, *losses(report.layers, report.rounding, full=full))
    for title, entries in (
        ("Other tensors that differ", report.differences),
        ("Not looked for", report.skipped),
        ("Not compared", report.failures),
    ):
        if entries:
            yield section(title, *listed(entries, full=full))
    yield Text(f"\n{_verdict(report)}")


def _replays(layers: Sequence[VerifiedLayer]) -> str:
    names = ", ".join(dict.fromkeys(layer.replay for layer in layers))
    return f", as merged in {names}" if names else ""


def _wrong(layers: Sequence[VerifiedLayer], *, full: bool) -> Iterator[RenderableType]:
    columns: list[Column[VerifiedLayer]] = [
        property_of("m × n", lambda layer: shape_text(layer.shape)),
        property_of("stored in", lambda layer: layer.merged_dtype),
        total("wrong", lambda layer: layer.wrong_entries, "{:,}".format),
        total("entries", lambda layer: math.prod(layer.shape), "{:,}".format),
        figure("ulps", lambda layer: layer.max_ulps, "{:.3g}".format),
    ]
    yield from layer_table(layers, columns, full=full)
    yield note(
        "Wrong: entries that are not what the merge in float64 makes of them; ulps: by how many units in the last "
        "place at most."
    )
    named = by_reason({layer.name: layer.diagnosis or "like no known mistake" for layer in layers})
    shown = list(named.items())[: None if full else ENTRIES_SHOWN]
    yield from (Text(f"- {names}: {diagnosis}") for diagnosis, names in shown)
    if len(shown) < len(named):
        yield note(f"… and {len(named) - len(shown):,} more: --full or --json.")


def _verdict(report: Verification) -> str:
    if report.right:
        return "Right: every tensor was compared, and is what a merge makes of it."
    wrong = [
        count(report.wrong_layers, "wrong layer"),
        count(len(report.differences), "other difference"),
        f"{len(report.failures):,} not compared",
        f"{len(report.skipped):,} not looked for",
    ]
    return f"Wrong: {', '.join(text for text in wrong if not text.startswith('0 '))}."
