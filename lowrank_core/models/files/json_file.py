"""JSON files whose top level is an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrank_core.models.files.recognition import read_beginning


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object; a byte order mark may come first."""
    read_beginning(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error})") from error
    return parse_json(repr(str(path)), text)


def parse_json(where: str, text: str) -> dict[str, Any]:
    """Parse a JSON object; `where` names it in messages."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        message = f"{where} contains a JSON {type(content).__name__}, but an object {{...}} is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    return content
