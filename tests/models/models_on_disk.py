"""Small checkpoints and adapters on disk, and the dense updates that they hold, read by safetensors alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

LINEAR = ("layers.0.q_proj", "layers.0.up", "layers.1.q_proj")


def checkpoint_pair(folder, rng, *, shapes=None, dtype=np.float32, size=0.01, others=()):
    """Write base.safetensors and tuned.safetensors; return their paths, and each weight's update by module."""
    shapes = shapes or {LINEAR[0]: (12, 8), LINEAR[1]: (20, 8), LINEAR[2]: (12, 8)}
    base = {f"{name}.weight": rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    changes = {key: size * rng.standard_normal(weight.shape) for key, weight in base.items()}
    tuned = {key: (weight + changes[key]).astype(dtype) for key, weight in base.items()}
    for key, before, after in others:
        base[key], tuned[key] = before, after
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    save_file(base, paths[0])
    save_file(tuned, paths[1])
    updates = {
        name: tuned[f"{name}.weight"].astype(np.float64) - base[f"{name}.weight"].astype(np.float64) for name in shapes
    }
    return paths, updates


def written_updates(path, transposed=()):
    """Multiply the factors of a written adapter as its own configuration or alphas say: no code of the library's."""
    path = Path(path)
    if path.is_dir():
        return _peft_updates(path, transposed)
    tensors, updates = load_file(path), {}
    for key in tensors:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            down, up = (tensors[f"{name}.lora_{part}.weight"].astype(np.float64) for part in ("down", "up"))
            scaling = float(tensors[f"{name}.alpha"]) / len(down)
            updates[name] = scaling * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return updates


def _peft_updates(folder, transposed):
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    updates = {}
    for key in tensors:
        for a, b in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
            if key.endswith(a):
                name = key.removesuffix(f".{a}").removeprefix("base_model.model.")
                A, B = tensors[key].astype(np.float64), tensors[key.removesuffix(a) + b].astype(np.float64)
                escaped = "^" + name.replace(".", r"\.")
                rank = config.get("rank_pattern", {}).get(escaped, config["r"])
                alpha = config.get("alpha_pattern", {}).get(escaped, config["lora_alpha"])
                assert rank == len(A)
                scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
                update = scaling * B.reshape(len(B), -1) @ A.reshape(rank, -1)
                updates[name] = update.T if name in transposed or "embedding" in a else update
    return updates


def naive_figures(update, written, rank):
    """Variance kept, best error, error and storage error of a layer, by NumPy's SVD of the dense update."""
    U, values, Vt = np.linalg.svd(update)
    best = (U[:, :rank] * values[:rank]) @ Vt[:rank]
    norm = np.linalg.norm(update)
    return {
        "variance_captured": np.sum(values[:rank] ** 2) / norm**2,
        "best_error": np.linalg.norm(values[rank:]) / norm,
        "error": np.linalg.norm(written - update) / norm,
        "storage_error": np.linalg.norm(written - best) / norm,
    }


def assert_figures(layer, update, written):
    """Compare a layer's report with the naive figures, and the written product with the best one."""
    expected = naive_figures(update, written, layer.rank)
    # The update is rounded once, to float32: no figure moves by more than 2⁻²⁴ of the norm, best_error's square root
    # of a rounded difference aside, which is zero where the rank is full.
    for name, figure in expected.items():
        assert abs(getattr(layer, name) - figure) <= 2e-7, (layer.name, name, getattr(layer, name), figure)
    # Eckart–Young on the one side, the triangle inequality on the other.
    assert -1e-7 <= expected["error"] - expected["best_error"] <= expected["storage_error"] + 1e-7
    return expected


def fingerprint(path):
    """Digest of a file, or of all files in a folder, names included."""
    path = Path(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
