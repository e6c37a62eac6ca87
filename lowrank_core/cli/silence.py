"""Whether a run prints nothing but errors and what it is asked to write."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Print no tables, no progress and no warnings until the end of this context."""
    before = _SILENT.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _SILENT.reset(before)


def is_silent() -> bool:
    """Whether the present run prints no tables, no progress and no warnings."""
    return _SILENT.get()
