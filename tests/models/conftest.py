import json

import ml_dtypes  # noqa: F401 - registers bfloat16, which safetensors needs to write it
import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def write_peft(tmp_path):
    """Write a PEFT adapter: tensors named without their prefix, and entries of the configuration."""

    def write(tensors, folder="adapter", **config):
        path = tmp_path / folder
        path.mkdir(parents=True)
        named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        save_file(named, path / "adapter_model.safetensors", metadata={"format": "pt"})
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config))
        return path

    return write


@pytest.fixture
def write_file(tmp_path):
    def write(tensors, name="model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: np.asarray(tensor) for key, tensor in tensors.items()}, path)
        return path

    return write
