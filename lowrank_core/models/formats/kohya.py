"""kohya's format: one safetensors file, with lora_down, lora_up and alpha for each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lowrank_core import standard
from lowrank_core.models.formats.adapter import Adapter, Placement
from lowrank_core.models.formats.format import (
    AdapterFile,
    Documented,
    Format,
    Headers,
    Kept,
    LossyNames,
    StoredScale,
    applied_scale,
)
from lowrank_core.models.formats.single_file import ALPHA, Ends, Scale, has_factors, read_factors

_PAIRS: tuple[Ends, ...] = ((".lora_down.weight", ".lora_up.weight"),)
_TUCKER_CORE = ".lora_mid.weight"
_PREFIXES = ("lora_unet", "lora_te1", "lora_te2", "lora_te", "lora_transformer", "lycoris")


def _recognises(file: AdapterFile) -> bool:
    return has_factors(file.tensors, _PAIRS)


def _read(file: AdapterFile) -> Adapter:
    def is_factor(key: str) -> bool:
        # With a core between them, down and up alone are not the update.
        return f"{key.rpartition('.lora_')[0]}{_TUCKER_CORE}" not in file.tensors

    adapter = read_factors(file, KOHYA.name, _PAIRS, scale_of=_scale_of, is_factor=is_factor, stores_alpha=True)
    return replace(adapter, warnings=tuple(_warnings(file.metadata)))


def _warnings(metadata: Mapping[str, str]) -> Iterator[str]:
    if re.search(r'"split_qkv": *"?true', metadata.get("ss_network_args", ""), re.IGNORECASE):
        yield (
            "split_qkv: q, k and v were trained as three pairs of rank r under α/r, and are stored as one of rank 3r "
            "with the same α: readers apply α/(3r), a third of what training did"
        )


def _scale_of(_module: str, rank: int, alpha: float | None) -> Scale:
    """Return α/r, where a missing or zero α means r."""
    if alpha:
        source = f"alpha {alpha:g} (.alpha) / rank {rank} (lora_down)"
        return Scale(alpha, "standard", applied_scale(alpha, "standard", rank), source)
    given = "no alpha in the file" if alpha is None else "alpha 0 in the file"
    return Scale(float(rank), "standard", 1.0, f"{given}, which stands for the rank {rank} (lora_down): scale 1")


def _place(name: str, dims: tuple[int, ...], prefix: str | None, _embedding: bool) -> Placement:
    key = f"{_PREFIXES[0] if prefix is None else prefix}_{name}".replace(".", "_")
    return Placement(KOHYA.name, name, key, tuple(key + end for end in (*_PAIRS[0], ALPHA)), dims)


def _is_lossy(module: str) -> bool:
    return "." not in module


def _modules(names: Collection[str], modules: Collection[str]) -> dict[str, str]:
    """Return the modules that names stand for, without the names that stand for none; several are an error."""
    meant: dict[str, list[str]] = {}
    for module in sorted(set(modules)):
        meant.setdefault(module.replace(".", "_"), []).append(module)
    candidates = {name: meant[_without_prefix(name)] for name in names if _without_prefix(name) in meant}
    candidates |= {name: [name] for name in names if name in modules}
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


def _scale(alpha: float, rule: str, rank: int, dtype: np.dtype[Any]) -> StoredScale:
    # Readers know α/r alone, so that α√r stands for the other rule; and alpha is a tensor of the factors' dtype.
    stored = float(np.asarray(alpha * (math.sqrt(rank) if rule == "rslora" else 1.0), dtype=dtype))
    return StoredScale(rank, stored, float(standard(stored, rank)))


def _headers(stored: Mapping[Placement, StoredScale], _rule: str, _kept: Kept) -> Headers:
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
    documented=Documented(
        writers="sd-scripts, musubi-tuner, OneTrainer, LyCORIS (LoCon); ComfyUI's converters",
        layout="`<module>.lora_down.weight` (r, in), `.lora_up.weight` (out, r), `.alpha`; underscores for the dots "
        "of a module's name behind `lora_unet`, `lora_te`, …, or its dots behind a component as `diffusion_model.`",
        scale="`.alpha`/r; an alpha that is missing or 0 stands for r",
        source="sd-scripts, `networks/lora.py`, `LoRAModule`",
    ),
    recognises=_recognises,
    read=_read,
    lossy_names=LossyNames("have underscores for dots, which cannot be undone", _is_lossy, _modules),
    place=_place,
    rules=("standard",),
    scale=_scale,
    headers=_headers,
)
