"""A callback of transformers' Trainer that writes the history of a LoRA while it is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from lowrank_core import LowRankUpdate
from lowrank_core.models.formats.adapter import product
from lowrank_core.models.operations.history_rows import DEFAULT_LEADING, HistoryRow, history_row

_PREFIX = "base_model.model."


def history_callback(path: str | PathLike[str], *, leading: int = DEFAULT_LEADING) -> Any:
    """Return a callback that writes a row for each LoRA layer whenever transformers' Trainer logs.

    Parameters
    ----------
    path : path-like
        A file to which rows are added, one line of JSON each, with the names of
        :class:`~lowrank_core.models.HistoryRow`; NaN is null.
    leading : int
        How many leading directions the angles are between; 0 for no angles.

    Returns
    -------
    transformers.TrainerCallback
        To be passed as one of ``Trainer(callbacks=[…])``. Only the r × r cores of PEFT's factors are decomposed, in the
        process that is the first of a distributed run.

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        While training, if a factor is not finite.

    See Also
    --------
    lowrank_core.models.history : The same rows from checkpoints.

    Examples
    --------
    >>> import importlib.util
    >>> from lowrank_core.models.operations.training import history_callback
    >>> if importlib.util.find_spec("transformers"):
    ...     callback = history_callback("history.jsonl")
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"a callback of its Trainer needs {error.name}, which is not installed: pip install "
            '"lowrank_core[transformers]"'
        ) from error
    return type("HistoryCallback", (_HistoryWriter, transformers.TrainerCallback), {})(Path(path), leading)


class _HistoryWriter:
    """What the callback does: the Trainer calls `on_log`."""

    def __init__(self, path: Path, leading: int) -> None:
        self._path, self._leading = path, leading
        self._step = -1
        self._previous: dict[str, LowRankUpdate] = {}

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Add the rows of this step to the file, once however often the Trainer logs it."""
        if model is None or not state.is_world_process_zero or state.global_step == self._step:
            return
        self._step = state.global_step
        updates = dict(lora_updates(model))
        rows = [
            history_row(self._step, name, update, self._previous.get(name), self._leading)
            for name, update in updates.items()
        ]
        self._previous = updates
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(_finite(row))}\n" for row in rows)


def lora_updates(model: Any) -> Iterator[tuple[str, LowRankUpdate]]:
    """Yield the update of every LoRA layer of a model of PEFT's with its module's name, of its active adapter."""
    for name, module in model.named_modules():
        # A model of transformers has a method `active_adapters`; PEFT's layers have a list.
        factors = getattr(module, "lora_A", None) or {}
        for adapter in (adapter for adapter in factors if adapter in module.active_adapters):
            B, A = (_array(part[adapter].weight) for part in (module.lora_B, factors))
            yield name.removeprefix(_PREFIX), product(B, A, float(module.scaling[adapter]))


def _array(parameter: Any) -> Any:
    """Copy a parameter to float32: the next step of training changes it in place."""
    return parameter.detach().to("cpu", copy=True).float().numpy()


def _finite(row: HistoryRow) -> dict[str, Any]:
    """Return a row as JSON has it, with None for NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(row).items()
    }
