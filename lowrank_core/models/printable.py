"""Text from files, made safe to show: a name can contain what moves a cursor or reorders a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import PurePath
from typing import Any, TypeVar, cast

Result = TypeVar("Result")

_NUMBERS = (float, int, bool, type(None))


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text in which all but printable characters, as Unicode has them, are escaped as in ``repr``.

    Not printable are controls (newlines too, unless kept), what reorders or hides text, spaces but for the usual one,
    and surrogates, which no encoding has.

    Examples
    --------
    >>> print(printable("q\x1b[2J\u202e"))
    q\x1b[2J\u202e
    """
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() or mark in keep else ascii(mark)[1:-1] for mark in text)


def in_figure(text: str) -> str:
    """Return printable text that matplotlib shows as it is: between two dollar signs it would read mathematics."""
    return printable(text).replace("$", r"\$")


def with_printable_texts(result: Result) -> Result:
    r"""Return a result with all texts in it printable, different ones still different.

    A name that contains ``\x1b`` as four characters would otherwise be shown as one with an escape character is: where
    two texts would be shown alike, backslashes are doubled as in ``repr``.
    """
    texts: set[str] = set()

    def collect(text: str) -> str:
        texts.add(text)
        return text

    with_texts(result, collect)
    if len({printable(text) for text in texts}) == len(texts):
        return with_texts(result, printable)
    return with_texts(result, lambda text: printable(text.replace("\\", r"\\")))


def with_texts(result: Result, convert: Callable[[str], str]) -> Result:
    """Return a result with all texts in it converted, those that are keys and paths too."""
    converted: Any = result
    if type(result) in _NUMBERS:  # most of a report, and what the tests below take longest for
        return result
    if isinstance(result, str):
        converted = convert(result)
    elif isinstance(result, PurePath):
        converted = type(result)(convert(str(result)))
    elif isinstance(result, Mapping):
        converted = {with_texts(key, convert): with_texts(value, convert) for key, value in result.items()}
    elif isinstance(result, tuple | list):
        converted = type(result)(with_texts(item, convert) for item in result)
    elif is_dataclass(result) and not isinstance(result, type):
        changes = {field.name: with_texts(getattr(result, field.name), convert) for field in fields(result)}
        converted = replace(result, **changes)
    return cast("Result", converted)


def for_figure(result: Result) -> Result:
    """Return a result with all texts in it as a figure shows them."""
    return with_texts(with_printable_texts(result), in_figure)
