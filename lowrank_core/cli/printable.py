"""Text from files, made safe for the files that are written: JSON, and cells that could run as a formula."""

from __future__ import annotations

import json
import re
from typing import Any

from lowrank_core.models.printable import printable

# What spreadsheets take for the beginning of a formula; tabs and carriage returns are escaped before.
_FORMULA = ("=", "+", "-", "@")
_NOT_ASCII_TEXT = re.compile(r"[^ -~\n]")


def in_csv(value: Any) -> Any:
    """Return a value for a cell: text printable but for newlines, and with an apostrophe where it is like a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n")
    return f"'{text}" if text.startswith(_FORMULA) else text


def in_json(document: str) -> str:
    """Return JSON with escapes for all that is not printable, so that it shows as it is and reads the same."""

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]

    return _NOT_ASCII_TEXT.sub(escape, document)
