"""The demo's figures, computed once, and small files to inspect."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.cli.demo.experiments import Experiments, Settings, run

MODULES = {"self_attn.q_proj": (12, 8), "mlp.down_proj": (8, 20)}


@pytest.fixture(scope="session")
def results() -> Experiments:
    """The demo as it runs by default."""
    return run(Settings())


@pytest.fixture
def small() -> Experiments:
    """A demo that costs little."""
    return run(Settings(size=8, ranks=(2, 4), seed=1))


def write_adapter(folder: Path, layers: int = 2, rank: int = 3, seed: int = 0, **config: object) -> Path:
    """Write a PEFT adapter with two modules a layer."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module, (m, n) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, n)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((m, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A PEFT adapter of four layers, 12×8 and 8×20, of rank 3."""
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a tuned checkpoint: two matrices, one of them with NaN in the tuned one, and a bias."""
    rng = np.random.default_rng(1)
    base = {"h.0.proj.weight": rng.standard_normal((6, 9)), "h.1.proj.weight": rng.standard_normal((6, 9))}
    base["h.0.proj.bias"] = np.zeros(6)
    tuned = {name: weight + rng.standard_normal(weight.shape) for name, weight in base.items()}
    tuned["h.1.proj.weight"][2, 3] = np.nan
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    for path, tensors in zip(paths, (base, tuned), strict=True):
        save_file({name: weight.astype(np.float32) for name, weight in tensors.items()}, path)
    return paths


@pytest.fixture
def tuning(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a tuned checkpoint of four matrices, 12×8 and 8×20, an embedding and a norm that changed as well."""
    rng = np.random.default_rng(2)
    shapes = {f"layers.{layer}.{module}.weight": shape for layer in range(2) for module, shape in MODULES.items()}
    shapes |= {"embed_tokens.weight": (10, 8), "norm.weight": (8,)}
    base = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    tuned = {name: weight + rng.standard_normal(weight.shape) for name, weight in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        plain = {key: weight.astype(np.float32) for key, weight in tensors.items()}
        save_file(plain, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "base", tmp_path / "tuned"
