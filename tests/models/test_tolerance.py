"""What a truncation of whole models may miss, as its caller says."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import extract
from lowrank_core.models.operations import factoring


def test_a_tolerance_outside_0_to_1_is_refused(tmp_path):
    paths = [tmp_path / name for name in ("base.safetensors", "tuned.safetensors", "adapter")]
    for i, path in enumerate(paths[:2]):
        save_file({"proj.weight": np.eye(3) * i}, path)
    with pytest.raises(ValueError, match=r"^tolerance must lie between 0 and 1"):
        extract(*paths, rank=1, tolerance=2.0)
    assert extract(*paths, rank=1, tolerance=0).layers[0].rank == 1


@pytest.fixture
def dora(write_file, write_peft, rng):
    """A base and an adapter whose update is dense beside it."""
    tensors = {"proj.lora_A.weight": rng.standard_normal((2, 6)), "proj.lora_B.weight": rng.standard_normal((8, 2))}
    tensors |= {"proj.lora_magnitude_vector": np.ones(8)}
    base = write_file({"proj.weight": rng.standard_normal((8, 6))}, "base.safetensors")
    return base, write_peft(tensors, use_dora=True)


def test_a_tolerance_outside_0_to_1_is_refused_of_an_adapter_too(dora):
    with pytest.raises(ValueError, match=r"^tolerance must lie between 0 and 1"):
        extract(*dora, rank=1, tolerance=-3.0)


def test_an_adapters_dense_update_is_truncated_with_the_given_tolerance(dora, monkeypatch):
    tolerances = []

    def spy(*arguments, tolerance, workers):
        tolerances.append(tolerance)
        return best_factors_and_values(*arguments, tolerance=tolerance, workers=workers)

    best_factors_and_values = factoring.best_factors_and_values
    monkeypatch.setattr(factoring, "best_factors_and_values", spy)
    extract(*dora, rank=1, tolerance=0.25)
    assert tolerances == [0.25]
