"""What results have in common: they are equal by content, and show themselves in one line or as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._dtypes import FLOATS

__all__ = ["EqualByContent", "count", "few_ranks", "html_table", "shape_text", "span"]

# Rows of a table of ranks, and of one of layers or of matrices, in a notebook.
_RANKS_SHOWN = 12
_ROWS_SHOWN = 40


class EqualByContent:
    """A dataclass of arrays that equals another of the same content, and therefore has no hash."""

    __hash__: ClassVar[None]  # type: ignore[assignment]  # Python's own way to say so

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]  # it is mixed into dataclasses alone
        return all(_is_equal(getattr(self, name), getattr(other, name)) for name in names)


def _is_equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        # By name: the kind of a dtype of ml_dtypes is not that of floats.
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.name in FLOATS)
    return bool(first == second)


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table for a notebook, with its first rows where there are many, and a title."""
    hidden = len(rows) - _ROWS_SHOWN
    shown = [*rows[:_ROWS_SHOWN], *([[f"… {hidden} more"]] if hidden > 0 else [])]
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in shown)
    return (
        f"<table><caption>{escape(title.strip('<>'))}</caption><thead><tr>{_cells('th', headings)}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _cells(tag: str, values: Iterable[object]) -> str:
    return "".join(f"<{tag}>{escape(_text(value))}</{tag}>" for value in values)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def few_ranks(largest: int) -> NDArray[np.int64]:
    """Return ranks for a table: 1, the largest and powers of two between; none where the largest is 0."""
    ranks = 2 ** np.arange(largest.bit_length())
    return np.unique([1, *ranks[1:][1 - _RANKS_SHOWN :], largest]) if largest else ranks


def span(numbers: ArrayLike, form: str = ".4g") -> str:
    """Return the first and the last of numbers in words, or one where both have the same text."""
    flat = np.ravel(numbers)
    if not flat.size:
        return "none"
    first, last = f"{flat[0]:{form}}", f"{flat[-1]:{form}}"
    return first if first == last else f"{first} to {last}"


def count(number: int, what: str) -> str:
    """Return a number of things, in the plural but for one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def shape_text(shape: tuple[int, ...]) -> str:
    """Return the shape of a matrix in words, and that of the stack where there is one."""
    *batch, m, n = shape
    stack = f"stack of {' × '.join(map(str, batch))}, each " if batch else ""
    return f"{stack}{m} × {n}"
