"""What the configurations of two checkpoints say of their model: how weights are stored, and what an adapter is for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_core.models.files.checkpoints import CONFIG, Checkpoint
from lowrank_core.models.formats.peft_experts import TRANSPOSED_EXPERTS, experts_settings
from lowrank_core.models.module_names import CONV1D_TYPES, is_conv1d, matches
from lowrank_core.models.operations.tasks import Task
from lowrank_core.models.pairing.pairs import CheckpointPair, WeightPair
from lowrank_core.models.sources import Source, is_path

# How transformers' names of models end, and PEFT's names of their tasks. With a task of classification, or of answering
# questions, PEFT asks for a head that was trained in full, and fails on a file that has none.
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


class Orientation(NamedTuple):
    """The modules whose weights are stored as (in, out), whether stacks are, and what a user should know of them."""

    modules: Collection[str]
    stacks: bool
    warnings: tuple[str, ...] = ()

    def is_transposed(self, layer: WeightPair) -> bool:
        """Whether the weight of a layer is stored as (in, out)."""
        return layer.name in self.modules or (self.stacks and layer.experts > 0)


def orientation_of(pair: CheckpointPair, names: Sequence[str], patterns: Sequence[str] | None) -> Orientation:
    """Return which weights are stored as (in, out), with a warning where that is only a guess."""
    model_types: list[Any] = [config.get("model_type") for config in _configurations(pair.tuned, pair.base)]
    stacks = any(kind in TRANSPOSED_EXPERTS for kind in model_types)
    if patterns is not None:
        return Orientation({name for name in names if matches(name, patterns)}, stacks)
    alike = {name for name in names if is_conv1d(name)}
    if any(kind in CONV1D_TYPES for kind in model_types):
        return Orientation(alike, stacks)
    if model_types or not alike:
        return Orientation((), stacks)
    warning = (
        f"{len(alike)} modules are named as GPT-2's Conv1D, as {min(alike)!r}, and no config.json says whether they "
        "are: they were taken as linear layers, stored as (out, in). If they are stored as (in, out), give their names "
        "(--transposed)"
    )
    return Orientation((), stacks, (warning,))


def base_settings(pair: CheckpointPair, base: Source, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return what an adapter's configuration says of its base model."""
    modules = [task for task in tasks if not task.placement.experts]
    settings = {
        "base_model_name_or_path": _name_of_model(base, pair.base),
        "task_type": _task_type(pair.tuned, pair.base),
        "fan_in_fan_out": any(task.transposed and not task.placement.embedding for task in modules),
    }
    if len(modules) == len(tasks):
        return settings
    configs = _configurations(pair.tuned, pair.base)
    model_type = next((str(config["model_type"]) for config in configs if "model_type" in config), "")
    return settings | experts_settings(model_type, next(_architectures(configs), ""))


def _name_of_model(source: Source, base: Checkpoint) -> str | None:
    """Return what transformers loads a checkpoint by: its folder, where its configuration is there; None if unknown."""
    if base.folder is None:
        return base.read_config().get("_name_or_path") or None
    path = Path(source) if is_path(source) else base.path
    return str(path.parent if path.is_file() and (path.parent / CONFIG).is_file() else path)


def _task_type(tuned: Checkpoint, base: Checkpoint) -> str | None:
    """Return PEFT's name for the task of a model, where its architecture decides that; AutoPeftModel… asks for it."""
    for config in _configurations(tuned, base):
        for name in _architectures([config]):
            task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
            if task or (name.endswith("ForConditionalGeneration") and config.get("is_encoder_decoder") is True):
                return task or "SEQ_2_SEQ_LM"
    return None


def _architectures(configs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the classes of models that configurations name."""
    for config in configs:
        architectures = config.get("architectures")
        yield from map(str, architectures if isinstance(architectures, list) else ())


def _configurations(*checkpoints: Checkpoint) -> list[dict[str, Any]]:
    return [config for checkpoint in checkpoints if (config := checkpoint.read_config())]
