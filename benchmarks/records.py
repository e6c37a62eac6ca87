"""A file of measured figures that several scripts write to, each its own part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def update(file: Path, part: str, figures: Any) -> None:
    """Write the figures of one part into a JSON file, and keep its other parts."""
    parts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    text = json.dumps(parts | {part: figures}, indent=1, ensure_ascii=False, sort_keys=True)
    file.write_text(text + "\n", encoding="utf-8")
