"""kohya's format: one safetensors file, with lora_down, lora_up and alpha for each layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, standard
from lowrank_core.models.files.tensors import StoredTensor, read_tensors
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    OtherTensor,
    Placement,
    both_factors,
    build_of,
    by_module,
    followed_module,
)
from lowrank_core.models.formats.format import AdapterFile, Format, Headers, LossyNames, StoredScale, as_factors

_DOWN, _UP, _MID, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha"
_PREFIXES = ("lora_unet", "lora_te1", "lora_te2", "lora_te")
_OTHER_KINDS = ("hada_", "lokr_", "oft_", "glora_", "a1.", "a2.", "b1.", "b2.")
_MAGNITUDES = "dora_scale"
_MEANINGS = {
    _MAGNITUDES: "DoRA magnitudes, which rescale each row of base plus update; the figures are of γBA alone",
    "diff": "a full difference, with no factors",
    "diff_b": "a full difference of the bias",
}


def _recognises(file: AdapterFile) -> bool:
    return any(key.endswith((_DOWN, _UP)) for key in file.tensors) or _other_kind(file.tensors) is not None


def _other_kind(keys: Iterable[str]) -> str | None:
    """Return the first tensor of the LyCORIS family that is not a LoRA factor: of LoHa, LoKr, OFT, GLoRA."""
    return min((key for key in keys if key.partition(".")[2].startswith(_OTHER_KINDS)), default=None)


def _read(file: AdapterFile) -> Adapter:
    """Return the adapter, each layer scaled by α/r; a missing or zero α means r."""
    if not any(key.endswith((_DOWN, _UP)) for key in file.tensors):
        raise ValueError(
            f"{str(file.path)!r} is a LyCORIS adapter of another kind than LoRA ({_other_kind(file.tensors)!r}): its "
            "update is not a product of two factors"
        )
    modules, rest = by_module(file.tensors, (_DOWN, _UP, _MID, _ALPHA))
    unsupported = _unsupported(modules, rest)
    plain = {module: tensors for module, tensors in sorted(modules.items()) if module not in unsupported}
    alphas = _read_alphas(plain)
    return Adapter(
        path=file.path,
        format=KOHYA.name,
        layers=tuple(_layer(module, tensors, alphas.get(module)) for module, tensors in plain.items()),
        unsupported=unsupported,
        others=tuple(
            OtherTensor(
                tensor,
                key,
                _MEANINGS.get(key.partition(".")[2], "unknown to LoRA"),
                follows=followed_module(key, plain, ("lora_", "dora_")),
                magnitudes=_MAGNITUDES in key,
            )
            for key, tensor in rest.items()
            if key.partition(".")[0] not in unsupported
        ),
        metadata=file.metadata,
    )


def _unsupported(modules: Mapping[str, Mapping[str, StoredTensor]], rest: Iterable[str]) -> dict[str, str]:
    reasons = {
        module: "has a lora_mid: a Tucker decomposition, whose update is not a product of two matrices"
        for module, tensors in sorted(modules.items())
        if _MID in tensors
    }
    for key in rest:
        module, _, part = key.partition(".")
        if part.startswith(_OTHER_KINDS):
            reasons.setdefault(
                module, f"is of another kind than LoRA ({part}): its update is not a product of two factors"
            )
    return reasons


def _layer(module: str, tensors: Mapping[str, StoredTensor], stored_alpha: float | None) -> AdapterLayer:
    A, B = both_factors(module, tensors, (_DOWN, _UP))
    build, fixed = build_of(module, A, B)
    rank = A.shape[0]
    alpha = stored_alpha or float(rank)
    if stored_alpha:
        source = f"alpha {alpha:g} (.alpha) / rank {rank} (lora_down)"
    else:
        given = "no alpha in the file" if stored_alpha is None else "alpha 0 in the file"
        source = f"{given}, which stands for the rank {rank} (lora_down): scale 1"
    try:
        scaling = float(standard(alpha, rank))
    except ValueError as error:
        raise ValueError(f"{module!r} has alpha {alpha:g}: {error}") from error
    return AdapterLayer(
        placement=_placement(module, module, (B.shape[0], *A.shape[1:])),
        rank=rank,
        alpha=alpha,
        rule="standard",
        scaling=scaling,
        scaling_source=source,
        tensors=(B, A),
        build=build,
        fixed=fixed,
    )


def _read_alphas(modules: Mapping[str, Mapping[str, StoredTensor]]) -> dict[str, float]:
    stored = {module: tensors[_ALPHA] for module, tensors in modules.items() if _ALPHA in tensors}
    for tensor in stored.values():
        if tensor.size != 1:
            raise ValueError(f"{tensor.key!r} has shape {tensor.shape}, but alpha is one number")
    alphas = read_tensors(stored.values())
    return {module: float(alpha.reshape(())) for module, alpha in zip(stored, alphas, strict=True)}


def _placement(key: str, name: str, dims: tuple[int, ...]) -> Placement:
    return Placement(KOHYA.name, name, key, (key + _DOWN, key + _UP, key + _ALPHA), dims)


def _place(name: str, dims: tuple[int, ...], prefix: str | None, _embedding: bool) -> Placement:
    key = f"{_PREFIXES[0] if prefix is None else prefix}_{name}".replace(".", "_")
    return _placement(key, name, dims)


def _modules(names: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """Return the modules that names stand for, without the names that stand for none; several are an error."""
    meant: dict[str, list[str]] = {}
    for module in sorted(set(modules)):
        meant.setdefault(module.replace(".", "_"), []).append(module)
    candidates = {name: meant[_without_prefix(name)] for name in names if _without_prefix(name) in meant}
    for name, modules_meant in candidates.items():
        if len(modules_meant) > 1:
            raise ValueError(
                f"kohya's name {name!r} stands for each of {', '.join(modules_meant)}: underscores in a module's own "
                f"name cannot be told from dots. Leave the layer out, or write {KOHYA.output}"
            )
    named = {name: module for name, (module,) in candidates.items()}
    if len(set(named.values())) < len(named):
        raise ValueError("several kohya names stand for one module: layers of one part of the model are needed")
    return named


def _without_prefix(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(f"{prefix}_")), None)
    return name if prefix is None else name[len(prefix) + 1 :]


def _arrange(update: LowRankUpdate, dims: tuple[int, ...], alpha: float) -> Sequence[NDArray[Any]]:
    return (*as_factors(update, dims, alpha), np.array(alpha, dtype=update.B.dtype))


def _scale(alpha: float, rule: str, rank: int, dtype: np.dtype[Any]) -> StoredScale:
    # Readers know α/r alone, so that α√r stands for the other rule; and alpha is a tensor of the factors' dtype.
    stored = float(np.asarray(alpha * (math.sqrt(rank) if rule == "rslora" else 1.0), dtype=dtype))
    return StoredScale(rank, stored, float(standard(stored, rank)))


def _headers(
    stored: Mapping[Placement, StoredScale], _rule: str, _settings: Mapping[str, Any], _modules: Collection[str]
) -> Headers:
    """Return what the metadata says of ranks; "Dynamic" where there are several, as kohya's own tools write it."""
    ranks, alphas = ({str(scale.rank) for scale in stored.values()}, {f"{scale.alpha:g}" for scale in stored.values()})
    return Headers(
        metadata={
            "ss_network_module": "networks.lora",
            "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
            "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
        }
    )


KOHYA = Format(
    name="kohya",
    title="kohya's format",
    factors="kohya's lora_down and lora_up",
    recognises=_recognises,
    read=_read,
    lossy_names=LossyNames("have underscores for dots, which cannot be undone", _modules),
    place=_place,
    arrange=_arrange,
    rules=("standard",),
    scale=_scale,
    headers=_headers,
)
