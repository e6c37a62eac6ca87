"""Single files with PEFT's names for factors: of diffusers, and of the trainers and programs that follow it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrank_core.models.files.json_file import parse_json
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, Placement
from lowrank_core.models.formats.format import AdapterFile, Documented, Format, Headers, Kept, StoredScale
from lowrank_core.models.formats.peft_config import PeftConfig, check_peft_config, lora_config
from lowrank_core.models.formats.single_file import (
    Ends,
    Scale,
    has_factors,
    read_factors,
    scale_or_one,
    without_component,
)
from lowrank_core.models.module_names import PEFT_PREFIX

_PAIRS: tuple[Ends, ...] = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A", ".lora_B"),
)
_CONFIG = "lora_adapter_metadata"
_PREFIX = "transformer"


def _recognises(file: AdapterFile) -> bool:
    return has_factors(file.tensors, _PAIRS)


def _read(file: AdapterFile) -> Adapter:
    """Return the adapter, each layer scaled by the configuration in the file's metadata, or by α/r, or by 1."""
    configs = {
        component: check_peft_config(file.path, raw) for component, raw in _configs(file.path, file.metadata).items()
    }

    def scale_of(module: str, rank: int, alpha: float | None) -> Scale:
        component, name = _component_of(module, configs)
        if component is None:
            return scale_or_one(module, rank, alpha)
        return _configured(configs[component], name, rank)

    adapter = read_factors(file, DIFFUSERS.name, _PAIRS, scale_of=scale_of)
    layers = tuple(
        replace(layer, placement=replace(layer.placement, unscaled=False))
        if _component_of(layer.placement.module, configs)[0] is not None
        else layer
        for layer in adapter.layers
    )
    settings = next((config.raw for config in configs.values()), {})
    return replace(adapter, layers=layers, settings=settings, warnings=tuple(_warnings(layers)))


def _configs(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the configurations in a file's metadata by component, as "transformer"; "" is a model's own."""
    if _CONFIG not in metadata:
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for name, value in parse_json(f"{_CONFIG} in the header of {str(path)!r}", metadata[_CONFIG]).items():
        component, _, key = name.rpartition(".")
        configs.setdefault(component, {"peft_type": "LORA"})[key] = value
    return configs


def _component_of(module: str, configs: Mapping[str, object]) -> tuple[str | None, str]:
    """Return the component whose configuration is a module's, and the module's name in it; None where there is none."""
    for component in configs:
        if component and module.startswith(f"{component}."):
            return component, module[len(component) + 1 :]
    return ("", without_component(module)) if "" in configs else (None, module)


def _configured(config: PeftConfig, name: str, rank: int) -> Scale:
    alpha, source = config.alpha_of(name)
    return Scale(alpha, config.rule, config.scaling(alpha, rank), config.describe_scale(alpha, source, rank, _CONFIG))


def _warnings(layers: Iterable[AdapterLayer]) -> Iterator[str]:
    unscaled = [layer.placement for layer in layers if layer.placement.unscaled]
    if any(placement.module.startswith(PEFT_PREFIX) for placement in unscaled):
        yield (
            "names as PEFT writes them, without PEFT's configuration: the scale is 1, as diffusers and ComfyUI read "
            "such a file. If PEFT wrote it, the scale is in its adapter_config.json: name the file "
            "adapter_model.safetensors and put the two in one folder"
        )


def _place(name: str, dims: tuple[int, ...], prefix: str | None, _embedding: bool) -> Placement:
    start = _PREFIX if prefix is None else prefix
    module = f"{start}.{name}" if start else name
    return Placement(DIFFUSERS.name, name, module, tuple(module + end for end in _PAIRS[0]), dims, unscaled=True)


def _headers(stored: Mapping[Placement, StoredScale], rule: str, kept: Kept) -> Headers:
    """Return the configurations of a file that had some, for the ranks and alphas that it has now."""
    configs = _configs(Path(), kept.metadata)
    if not configs:
        return Headers()
    entries: dict[str, Any] = {}
    for component, settings in configs.items():
        of_component = {
            _component_of(placement.module, configs)[1]: scale
            for placement, scale in stored.items()
            if _component_of(placement.module, configs)[0] == component
        }
        if of_component:
            config = lora_config(
                {module: scale.rank for module, scale in of_component.items()},
                {module: scale.alpha for module, scale in of_component.items()},
                use_rslora=rule == "rslora",
                settings=settings,
            )
            entries |= {f"{component}.{key}" if component else key: value for key, value in config.items()}
    return Headers(metadata={_CONFIG: json.dumps(entries, indent=2, sort_keys=True)})


DIFFUSERS = Format(
    name="diffusers",
    title="diffusers' format",
    factors="diffusers' lora_A and lora_B",
    documented=Documented(
        writers="diffusers, ai-toolkit, DiffSynth, SimpleTuner, control LoRAs",
        layout="`<module>.lora_A.weight` and `.lora_B.weight`, also with `.default` or without `.weight`, behind "
        "`transformer.`, `unet.`, `diffusion_model.`, … or nothing; one configuration for each component in the "
        "header's `lora_adapter_metadata`",
        scale="of that configuration, as PEFT's; without one `.alpha`/r, and without an alpha 1",
        source="diffusers, `utils/peft_utils.py`, `get_peft_kwargs`; ComfyUI, `comfy/weight_adapter/lora.py`",
    ),
    recognises=_recognises,
    read=_read,
    place=_place,
    names_components=True,
    headers=_headers,
)
