"""Whole models as files: extraction and resizing beside what a user would write with torch or PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case, Contender
from lowrank_core._dtypes import as_dtype
from lowrank_core._validation import as_workers
from lowrank_core.models import extract, open_adapter, open_checkpoint, pair_checkpoints, resize
from lowrank_core.models.files.streams import stream_tensors

ATTENTION, MLP = (1024, 1024), (1024, 4096)
# Components of an update beside its noise, and the norm of the noise over theirs.
COMPONENTS, NOISE = 256, 0.2
# The norm of an update over that of its weight, as in typical fine-tunes.
MOVED = 0.02
ADAPTER_RANK, ALPHA = 64, 16.0
# The largest relative excess over the best possible error at the rank.
ALLOWED = 1e-4


def make_checkpoints(
    folder: Path, blocks: int, *, shapes: Sequence[tuple[int, int]], dtype: str, power: float
) -> tuple[Path, Path]:
    """Write a base and a tuned checkpoint of as many blocks, each with a layer of every shape.

    An update's singular values fall as i^-power down to noise, as those of fine-tunes do.
    """
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    for tuned, path in enumerate(paths):
        with stream_tensors(path, [f"{name}.weight" for name in _names(blocks, shapes)], {"format": "pt"}) as stream:
            for seed, name in enumerate(_names(blocks, shapes)):
                weight, update = weight_and_update(shapes[seed % len(shapes)], power, seed)
                stream.add(f"{name}.weight", (weight + update if tuned else weight).astype(as_dtype(dtype)))
    return paths


def make_adapter(
    folder: Path, blocks: int, *, shapes: Sequence[tuple[int, int]], rank: int = ADAPTER_RANK, seed: int = 0
) -> Path:
    """Write a PEFT adapter whose components fall in size."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, rank + 1, dtype=np.float32) ** -0.7
    names = _names(blocks, shapes)
    keys = [f"base_model.model.{name}.lora_{factor}.weight" for name in names for factor in "AB"]
    with stream_tensors(folder / "adapter_model.safetensors", keys, {"format": "pt"}) as stream:
        for place, name in enumerate(names):
            m, n = shapes[place % len(shapes)]
            A, B = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rank, n), (m, rank)))
            stream.add(f"base_model.model.{name}.lora_A.weight", A / np.float32(n**0.5))
            stream.add(f"base_model.model.{name}.lora_B.weight", 0.1 * B * sizes)
    _write_config(folder, names, rank, ALPHA)
    return folder


def extraction(folder: Path, paths: tuple[Path, Path], rank: int, *, checked: Iterable[str] = ()) -> Case:
    """An adapter of two checkpoints."""
    base, tuned = paths
    updates = {layer.name: layer.update for layer in pairs_of(paths) if layer.name in set(checked)}
    best = {name: _best_error(update().astype(np.float64), rank) for name, update in updates.items()}

    def error(adapter: Path) -> float:
        stored = {layer.name: layer.update for layer in open_adapter(adapter).layers}
        return max(_excess(update(), stored[name]().to_dense(), best[name]) for name, update in updates.items())

    def ours() -> Path:
        extract(base, tuned, folder / "ours", rank=rank, force=True)
        return folder / "ours"

    return Case(
        f"extract rank {rank}",
        Contender("lowrank_core", ours),
        (Contender("torch.linalg.svd loop", lambda: _torch_extract(base, tuned, folder / "torch", rank), ("torch",)),),
        error,
        "above the best",
        ALLOWED,
        peer_bound=ALLOWED,
    )


def resizing(folder: Path, adapter: Path, rank: int, *, checked: Iterable[str] = ()) -> Case:
    """A smaller adapter from an adapter."""
    updates = {layer.name: layer.update().to_dense() for layer in open_adapter(adapter).layers if layer.name in checked}
    best = {name: _best_error(update, rank) for name, update in updates.items()}

    def error(resized: Path | dict[str, Any]) -> float:
        stored = _products(resized) if isinstance(resized, dict) else _read_products(resized)
        return max(_excess(update, stored[name], best[name]) for name, update in updates.items())

    def ours() -> Path:
        # A thread a core over the layers, as --workers has it; the peers' products use as many within a layer.
        with ThreadPoolExecutor(as_workers(None)) as executor:
            resize(adapter, folder / "resized", rank=rank, force=True, executor=executor)
        return folder / "resized"

    return Case(
        f"resize rank {open_adapter(adapter).layers[0].rank} to {rank}",
        Contender("lowrank_core", ours),
        (
            Contender(
                "B·A and torch.linalg.svd loop", lambda: _torch_resize(adapter, folder / "torch", rank), ("torch",)
            ),
            Contender("peft.convert_to_lora", _converter(adapter, rank), ("torch", "peft")),
        ),
        error,
        "above the best",
        ALLOWED,
        peer_bound=ALLOWED,
    )


def _names(blocks: int, shapes: Sequence[tuple[int, int]]) -> list[str]:
    kinds = ("self_attn.q_proj", "mlp.up_proj")
    return [f"model.layers.{block:02}.{kinds[i]}" for block in range(blocks) for i in range(len(shapes))]


def weight_and_update(shape: tuple[int, int], power: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    m, n = shape
    weight = rng.standard_normal(shape, dtype=np.float32) * np.float32(n**-0.5)
    sizes = np.arange(1, COMPONENTS + 1, dtype=np.float32) ** -power
    left, right = (rng.standard_normal(part, dtype=np.float32) for part in ((m, COMPONENTS), (COMPONENTS, n)))
    signal, noise = (left * sizes) @ right, rng.standard_normal(shape, dtype=np.float32)
    update = signal + noise * np.float32(NOISE * np.linalg.norm(signal) / np.linalg.norm(noise))
    return weight, update * np.float32(MOVED * np.linalg.norm(weight) / np.linalg.norm(update))


def pairs_of(paths: tuple[Path, Path]) -> tuple[Any, ...]:
    return pair_checkpoints(*(open_checkpoint(path) for path in paths)).layers


def _best_error(update: NDArray[Any], rank: int) -> float:
    values = np.linalg.svd(update, compute_uv=False)
    return float(np.linalg.norm(values[rank:]))


def _excess(update: NDArray[Any], stored: NDArray[Any], best: float) -> float:
    return float(np.linalg.norm(update - stored)) / best - 1.0


def _read_products(adapter: Path) -> dict[str, NDArray[Any]]:
    return {layer.name: layer.update().to_dense() for layer in open_adapter(adapter).layers}


def _products(tensors: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the updates of convert_to_lora's result, which has torch tensors and the scale 1."""
    arrays = {key.removeprefix("base_model.model."): tensor.double().numpy() for key, tensor in tensors.items()}
    modules = {key.split(".lora_")[0] for key in arrays}
    return {name: arrays[f"{name}.lora_B.weight"] @ arrays[f"{name}.lora_A.weight"] for name in modules}


def _write_config(folder: Path, names: list[str], rank: int, alpha: float) -> None:
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": names, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _torch_extract(base: Path, tuned: Path, out: Path, rank: int) -> Path:
    """Write an adapter as a sensible script does: layer by layer, the difference in float32, √Σ in both factors."""
    import torch
    from safetensors import safe_open

    factors: dict[str, Any] = {}
    with safe_open(base, "pt") as before, safe_open(tuned, "pt") as after, torch.no_grad():
        for key in before.keys():  # noqa: SIM118 - no dict: it cannot be iterated over
            update = after.get_tensor(key).float() - before.get_tensor(key).float()
            factors |= _torch_factors(key.removesuffix(".weight"), update, rank)
    return _torch_save(factors, out, rank)


def _torch_resize(adapter: Path, out: Path, rank: int) -> Path:
    import torch
    from safetensors import safe_open

    scaling = ALPHA / ADAPTER_RANK
    factors: dict[str, Any] = {}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file, torch.no_grad():
        for key in file.keys():  # noqa: SIM118
            if not key.endswith(".lora_A.weight"):
                continue
            update = scaling * file.get_tensor(key.replace("lora_A", "lora_B")) @ file.get_tensor(key)
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            factors |= _torch_factors(name, update, rank)
    return _torch_save(factors, out, rank)


def _torch_factors(name: str, update: Any, rank: int) -> dict[str, Any]:
    import torch

    U, values, Vt = torch.linalg.svd(update, full_matrices=False)
    root = values[:rank].sqrt()
    return {
        f"base_model.model.{name}.lora_A.weight": (root[:, None] * Vt[:rank]).contiguous(),
        f"base_model.model.{name}.lora_B.weight": (U[:, :rank] * root).contiguous(),
    }


def _torch_save(factors: dict[str, Any], out: Path, rank: int) -> Path:
    from safetensors.torch import save_file

    out.mkdir(exist_ok=True)
    save_file(factors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    names = [key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in factors if "lora_A" in key]
    _write_config(out, names, rank, float(rank))
    return out


def _converter(adapter: Path, rank: int) -> Any:
    """Return PEFT's conversion as a call; loading the model is not in its time, nor is saving the result."""
    loaded: list[Any] = []

    def convert() -> dict[str, Any]:
        from peft import convert_to_lora

        if not loaded:
            loaded.append(_peft_model(adapter))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Converting a PEFT adapter to LoRA that is already a LoRA adapter")
            tensors: dict[str, Any] = convert_to_lora(loaded[0], rank=rank)[1]
        return tensors

    return convert


def _peft_model(adapter: Path) -> Any:
    """Return the adapter loaded into a model of linear layers, whose own weights do not matter."""
    import torch
    from peft import PeftModel

    model = torch.nn.Module()
    for layer in open_adapter(adapter).layers:
        module = model
        *parents, last = layer.name.split(".")
        for name in parents:
            if name not in dict(module.named_children()):
                module.add_module(name, torch.nn.Module())
            module = module.get_submodule(name)
        m, n = layer.shape
        module.add_module(last, torch.nn.Linear(n, m, bias=False))
    return PeftModel.from_pretrained(model, adapter)
