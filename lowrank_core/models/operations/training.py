"""A callback of transformers' Trainer that writes the history of a LoRA while it is trained."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_core import LowRankUpdate
from lowrank_core.models.module_names import PEFT_PREFIX
from lowrank_core.models.operations.history_rows import DEFAULT_LEADING, HistoryRow, history_rows
from lowrank_core.models.results import to_json


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
    >>> from lowrank_core.models import history_callback
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
    """What the callback does: the Trainer calls `on_train_begin` and `on_log`."""

    def __init__(self, path: Path, leading: int) -> None:
        self._path, self._leading = path, leading
        self._step = -1
        self._layers: list[LoraLayer] = []
        self._previous: dict[tuple[LoraLayer, ...], LowRankUpdate] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Look the LoRA layers up: a walk over all modules takes longer than the rows of a small model."""
        self._step, self._layers, self._previous = -1, list(lora_layers(model)), {}

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Add the rows of this step to the file, once however often the Trainer logs it."""
        if not state.is_world_process_zero or state.global_step == self._step:
            return
        self._step = state.global_step
        updates = {tuple(layers): stacked(layers) for layers in of_one_kind(self._layers)}
        rows: dict[LoraLayer, HistoryRow] = {}
        for layers, stack in updates.items():
            names = [layer.name for layer in layers]
            computed = history_rows(self._step, names, stack, self._previous.get(layers), self._leading)
            rows |= zip(layers, computed, strict=True)
        self._previous = updates
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(to_json(rows[layer]))}\n" for layer in self._layers if layer in rows)


class LoraLayer(NamedTuple):
    """A LoRA layer of a model of PEFT's: the name of its module, the layer itself, and one of its adapters."""

    name: str
    module: Any
    adapter: str

    @property
    def factors(self) -> tuple[Any, Any]:
        """The parameters B and A."""
        return self.module.lora_B[self.adapter].weight, self.module.lora_A[self.adapter].weight

    @property
    def scaling(self) -> float:
        """The effective scale γ."""
        return float(self.module.scaling[self.adapter])


def lora_layers(model: Any) -> Iterator[LoraLayer]:
    """Yield every adapter of every LoRA layer of a model of PEFT's."""
    for name, module in model.named_modules():
        for adapter in getattr(module, "lora_A", None) or {}:
            yield LoraLayer(name.removeprefix(PEFT_PREFIX), module, adapter)


def of_one_kind(layers: Sequence[LoraLayer]) -> Collection[list[LoraLayer]]:
    """Return the layers whose adapter is active, those together that can be one stack."""
    kinds: dict[Any, list[LoraLayer]] = {}
    for layer in layers:
        # Of a model itself, transformers has a method of this name; PEFT's layers have a list.
        if layer.adapter in layer.module.active_adapters:
            kind = layer.scaling, *((factor.shape, factor.dtype, factor.device) for factor in layer.factors)
            kinds.setdefault(kind, []).append(layer)
    return kinds.values()


def stacked(layers: Sequence[LoraLayer]) -> LowRankUpdate:
    """Copy the factors of layers of one kind to the CPU, those of a convolution as matrices, in float32."""
    import torch  # what the layers are made of

    B, A = (
        torch.stack([factor.detach().flatten(1) for factor in factors]).to("cpu", torch.float32).numpy()
        for factors in zip(*(layer.factors for layer in layers), strict=True)
    )
    return LowRankUpdate(B, A, layers[0].scaling)
