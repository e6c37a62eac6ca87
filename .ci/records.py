"""Records in docs/numbers, which the commands of this folder write and the documentation shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "numbers"


def read(name: str) -> dict[str, Any]:
    """Return a record, empty where there is none yet."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(name: str, record: dict[str, Any]) -> None:
    """Replace a record."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
