"""PyTorch reads what was streamed tensor by tensor."""

import ml_dtypes
import numpy as np
from safetensors.torch import load_file

from lowrank_core.models.files.streams import stream_tensors


def test_each_dtype_is_read_as_its_numbers(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = {
        "double": np.arange(6.0).reshape(2, 3),
        "single": np.full((3, 1, 2), 1.5, np.float32),
        "bfloat16": np.array([1.0, -2.0, 3.0], ml_dtypes.bfloat16),
        "half": np.array([0.1], np.float16),
        "boolean": np.array([True, False]),
    }
    with stream_tensors(path, tensors, {}) as stream:
        for key, tensor in tensors.items():
            stream.add(key, tensor)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].shape == tensor.shape
        assert found[key].double().tolist() == tensor.astype(np.float64).tolist()
