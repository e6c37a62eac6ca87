"""What a truncation of whole models may miss, as its caller says."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import extract


def test_a_tolerance_outside_0_to_1_is_refused(tmp_path):
    paths = [tmp_path / name for name in ("base.safetensors", "tuned.safetensors", "adapter")]
    for i, path in enumerate(paths[:2]):
        save_file({"proj.weight": np.eye(3) * i}, path)
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        extract(*paths, rank=1, tolerance=2.0)
    assert extract(*paths, rank=1, tolerance=0).layers[0].rank == 1
