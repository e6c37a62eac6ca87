"""Whether a report is of all that differs, as the last line of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli.tables import note
from lowrank_core.cli.texts import percent
from lowrank_core.models.pairing.alignment import AlignedNames


def completeness(
    *, complete: bool, failures: int, compared_fraction: float | None, all_in_layers: bool = False
) -> Iterator[Text]:
    """Yield the line that says whether all that differs is in the layers, and how much of it is.

    A report that is of `all_in_layers`, and not complete, lacks figures that its warnings name.
    """
    if complete:
        yield Text("\nComplete: no layer failed, and no other matrix differs.")
        return
    if all_in_layers and not failures:
        yield Text("\nNot complete: some figures are missing, as the warnings say.")
        return
    why = f"{count(failures, 'layer')} failed" if failures else "some of what differs is in no layer"
    part = "" if compared_fraction is None else f" have {percent(compared_fraction)} of the entries that differ, and"
    yield Text(f"\nNot complete: {why}. The layers above{part} are all that the figures are of.")


def alignment(ways: Sequence[AlignedNames]) -> Iterator[Text]:
    """Yield the line that says how the names of two checkpoints were aligned, where they differ."""
    if ways:
        yield note(
            "Names of BASE and TUNED: "
            + "; ".join(f"{way.base} → {way.tuned} ({count(way.tensors, 'tensor')})" for way in ways)
            + "."
        )
