"""mlx-lm's format: a folder with adapters.safetensors and an adapter_config.json of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lowrank_core import LowRankUpdate
from lowrank_core.models.files.json_file import parse_json
from lowrank_core.models.files.tensors import StoredTensor, describe_shape
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    OtherTensor,
    Placement,
    by_module,
    factor_pair,
    read_layers,
)
from lowrank_core.models.formats.experts import expert_layers
from lowrank_core.models.formats.format import AdapterFile, Documented, Format, Headers, Kept, StoredScale
from lowrank_core.models.formats.single_file import MAGNITUDES
from lowrank_core.models.module_names import is_embedding

_WEIGHTS, _CONFIG = "adapters.safetensors", "adapter_config.json"
_A, _B, _MAGNITUDES = ".lora_a", ".lora_b", ".m"
_PARAMETERS = "lora_parameters"
_IN_BLOCK = re.compile(r".*\blayers\.\d+\.")
# mlx_lm/tuner/lora.py, LoRALinear.
_DEFAULT_SCALE = 20.0


def _recognises(file: AdapterFile) -> bool:
    named = file.path.name == _WEIGHTS and not file.in_memory and file.has_config(_CONFIG)
    return named or any(key.endswith((_A, _B)) for key in file.tensors)


def _read(file: AdapterFile) -> Adapter:
    path = file.path.with_name(_CONFIG)
    if not (file.has_config(_CONFIG) and (file.in_memory or file.path.name.endswith(_WEIGHTS))):
        raise ValueError(
            f"{str(file.path)!r} has mlx-lm's lora_a and lora_b, but no {_CONFIG} of mlx-lm beside it: the scale is in "
            f"it. Put the two in one folder, the tensors as {_WEIGHTS}"
        )
    config = file.read_config(_CONFIG)
    if config.get("fine_tune_type") == "full":
        raise ValueError(
            f"{str(path)!r} has fine_tune_type 'full': the tensors are weights that were trained in full, and not an "
            "adapter. Fuse them (mlx_lm.fuse), and give the model with the one that it was tuned from as its base"
        )
    scale = _scale(path, config)
    modules, rest = by_module(file.tensors, (_A, _B))
    read, failures = read_layers(modules, lambda module, tensors: _layers(module, tensors, scale))
    layers = [layer for of_module in read for layer in of_module]
    names = {layer.placement.module for layer in layers}
    magnitudes = [key for key in rest if key.endswith(_MAGNITUDES) and key.removesuffix(_MAGNITUDES) in names]
    return Adapter(
        path=file.path,
        format=MLX.name,
        layers=tuple(layers),
        unsupported=failures,
        others=tuple(
            OtherTensor(rest.pop(key), key, MAGNITUDES, follows=key.removesuffix(_MAGNITUDES), magnitudes=True)
            for key in magnitudes
        ),
        unread=rest,
        settings={"base_model_name_or_path": config.get("model")},
        metadata={**file.metadata, _CONFIG: json.dumps(config)},
    )


def _scale(path: Path, config: Mapping[str, Any]) -> float:
    parameters = config.get(_PARAMETERS, {})
    scale = parameters.get("scale", _DEFAULT_SCALE) if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(
            f"{str(path)!r} has {_PARAMETERS} {parameters!r}: an object with a number as its scale is needed"
        )
    return float(scale)


def _layers(module: str, tensors: Mapping[str, StoredTensor], scale: float) -> list[AdapterLayer]:
    """Return the layer of a module, or one for each expert of a SwitchLinear."""
    a, b = factor_pair(module, tensors, (_A, _B))
    has_experts = len(b.shape) == 3
    experts = b.shape[0] if has_experts else 0
    rank, inputs, out = (b.shape[2], a.shape[-1], b.shape[1]) if has_experts else (b.shape[0], a.shape[0], b.shape[1])
    accepted = {(experts * rank, inputs), (experts, rank, inputs)} if has_experts else {(inputs, rank)}
    if a.shape not in accepted:
        raise ValueError(
            f"the factors of {module!r} disagree: lora_a is {describe_shape(a.shape)}, and lora_b "
            f"{describe_shape(b.shape)}"
        )
    embedding = not has_experts and is_embedding(module)
    flat = has_experts and len(a.shape) == 2
    layer = AdapterLayer(
        placement=Placement(MLX.name, module, module, (a.key, b.key), (out, inputs), embedding, flat=flat),
        rank=rank,
        alpha=scale * rank,
        rule="standard",
        scaling=scale,
        scaling_source=f"scale {scale:g} ({_PARAMETERS}), whatever the rank",
        tensors=(b, a),
        build=_expert_product if has_experts else _product,
        transposed=embedding,
    )
    if not has_experts:
        return [layer]
    rows = rank if flat else 1
    return expert_layers(
        layer,
        experts,
        lambda expert: (b.along(0, expert, expert + 1), a.along(0, expert * rows, (expert + 1) * rows)),
    )


def _product(b: NDArray[Any], a: NDArray[Any], scaling: float) -> LowRankUpdate:
    return LowRankUpdate(b.T, a.T, scaling)


def _expert_product(b: NDArray[Any], a: NDArray[Any], scaling: float) -> LowRankUpdate:
    return LowRankUpdate(b[0], a.reshape(-1, a.shape[-1]), scaling)


def _arrange(update: LowRankUpdate, placement: Placement, _alpha: float) -> list[NDArray[Any]]:
    if not placement.experts:
        return [update.A.T, update.B.T]
    return [update.A.reshape(-1, update.A.shape[-1]) if placement.flat else update.A, update.B]


def _place(name: str, dims: tuple[int, ...], _prefix: str | None, embedding: bool) -> Placement:
    if len(dims) > 2:
        raise ValueError("a convolution, which mlx-lm does not adapt")
    if embedding != is_embedding(name):
        raise ValueError("mlx-lm's names do not tell it from a linear layer, or from an embedding")
    return Placement(MLX.name, name, name, (name + _A, name + _B), dims, embedding)


def _new_config(stored: Mapping[Placement, StoredScale], kept: Kept) -> dict[str, Any]:
    """Return a configuration with which mlx-lm adapts these modules: of its blocks by their names within one."""
    keys = {_IN_BLOCK.sub("", placement.name) for placement in stored}
    # mlx_lm/tuner/utils.py, linear_to_lora_layers: -1 stands for all blocks.
    return {
        "model": kept.settings.get("base_model_name_or_path"),
        "num_layers": -1,
        _PARAMETERS: {"keys": sorted(keys)},
    }


def _headers(stored: Mapping[Placement, StoredScale], _rule: str, kept: Kept) -> Headers:
    """Return the configuration with the one rank and the one scale that all layers have."""
    given_config = kept.metadata.get(_CONFIG)
    config = _new_config(stored, kept) if given_config is None else parse_json(_CONFIG, given_config)
    given = config.get(_PARAMETERS)
    scale = next(iter(stored.values()))
    parameters = {"dropout": 0.0, **(given if isinstance(given, dict) else {})}
    parameters |= {"rank": scale.rank, "scale": scale.scaling}
    return Headers(config={"fine_tune_type": "lora", **config, _PARAMETERS: parameters})


MLX = Format(
    name="mlx",
    title="mlx-lm's format",
    factors="mlx-lm's lora_a and lora_b",
    files=(_WEIGHTS, _CONFIG),
    documented=Documented(
        writers="mlx-lm",
        layout="`adapters.safetensors` with `<module>.lora_a` (in, r) and `.lora_b` (r, out), of a SwitchLinear "
        "(experts, r, in) or (experts·r, in) and (experts, out, r), `.m` of DoRA; `adapter_config.json` of its own",
        scale="lora_parameters.scale as it is, whatever the rank; 20 where it is missing",
        source="mlx-lm, `mlx_lm/tuner/lora.py`, `fuse`",
    ),
    recognises=_recognises,
    read=_read,
    place=_place,
    embeddings=True,
    arrange=_arrange,
    one_rank=lambda _: True,
    headers=_headers,
    metadata=lambda _: {"format": "mlx"},
)
