"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Decimal, localcontext

from lowrank_core.cli.names import by_short_name
from lowrank_core.models.executors import Named

RELATIVE_NORM = "‖Δ‖/‖W‖"
RULE_LABELS = {"standard": "α/r", "rslora": "α/√r", "unscaled": "γ = 1"}


def beginning(layers: Sequence[Named]) -> str:
    """Return a line on what all names begin with, which tables omit; nothing if they differ from the start."""
    prefix, _ = by_short_name(layers)
    return f"names begin with {prefix}" if prefix else ""


def percent(fraction: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * fraction:.2f} %"


def error_text(value: float) -> str:
    """Return a relative error as text: very small and very large ones with an exponent."""
    return f"{value:.4f}" if value == 0 or 1e-4 <= value < 1e4 else f"{value:.1e}"


def bound_text(value: float) -> str:
    """Return an upper bound as text, rounded up."""
    with localcontext(rounding=ROUND_CEILING):
        return f"{Decimal(value):.1e}" if value else "0"


def span(values: Iterable[float], form: str = ".5g", to: str = " to ") -> str:
    """Return the smallest and the largest value as text, or one value where both have the same text."""
    ordered = sorted(values)
    smallest, largest = (f"{value:{form}}" for value in (ordered[0], ordered[-1]))
    return smallest if smallest == largest else f"{smallest}{to}{largest}"
