"""Results as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import singledispatch
from typing import Any

import numpy as np

NOT_IN_JSON = {"json": False}
"""Marks a field of a result that is no figure."""


@singledispatch
def to_json(result: Any) -> Any:
    """Convert a result to plain JSON: dicts, lists, strings, finite numbers and None.

    Parameters
    ----------
    result : Inspection, AdapterRow, UpdateComparison, RunHistory, Compression, Application, Verification or Plan
        A report of this package, several of them, or any value in one.

    Returns
    -------
    dict
        All of it under the names of its attributes, singular values included. None stands for NaN and infinity, which
        JSON does not have.

    See Also
    --------
    lowrank_core.models.inspect, lowrank_core.models.census, lowrank_core.models.compare, lowrank_core.models.history :
        What returns reports of updates.
    lowrank_core.models.extract, lowrank_core.models.resize, lowrank_core.models.convert, lowrank_core.models.merge :
        What returns reports of written adapters.
    lowrank_core.models.apply, lowrank_core.models.verify, lowrank_core.models.plan : What returns the others.

    Examples
    --------
    >>> from lowrank_core.models import AdapterRow, to_json
    >>> to_json(AdapterRow("/adapters/one", "12@34 56@78", ranks=(4, 8)))["ranks"]
    [4, 8]
    """
    if is_dataclass(result):
        shown = (field.name for field in fields(result) if field.metadata != NOT_IN_JSON)
        return {name: to_json(getattr(result, name)) for name in shown}
    if isinstance(result, Mapping):
        return {key if isinstance(key, str) else f"{key:g}": to_json(value) for key, value in result.items()}
    if isinstance(result, np.ndarray):
        return to_json(result.tolist())
    if isinstance(result, tuple | list):
        return [to_json(item) for item in result]
    return None if isinstance(result, float) and not math.isfinite(result) else result
