"""PEFT's types of adapters other than LoRA, by their formulas, without PEFT."""

import numpy as np
import pytest

from lowrank_core.models import open_adapter


def test_an_update_of_adalora_is_divided_by_the_initial_rank(write_peft, rng):
    B, E, A = rng.standard_normal((5, 2)), rng.standard_normal((2, 1)), rng.standard_normal((2, 7))
    tensors = {"q.lora_B": B, "q.lora_E": E, "q.lora_A": A}
    (layer,) = open_adapter(write_peft(tensors, peft_type="ADALORA", init_r=4, lora_alpha=6)).layers
    assert (layer.name, layer.rank, layer.shape, layer.placement.dims) == ("q", 2, (5, 7), (5, 7))
    assert layer.scaling == pytest.approx(6 / (4 + 1e-5), rel=1e-15)
    assert layer.scaling_source == "alpha 6 (lora_alpha) / (initial rank 4 (init_r) + 1e-5)"
    assert np.allclose(layer.update().to_dense(), 6 / (4 + 1e-5) * (B @ (E * A)), rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ({"alpha": 6}, "alpha 6 (alpha) / rank 2 (r)"),
        ({}, "alpha 8 (alpha) / rank 2 (r)"),
        ({"alpha_pattern": {"q": 3}, "rank_pattern": {"q": 4}}, "alpha 3 (alpha_pattern 'q') / rank 4 (r)"),
    ],
)
def test_the_scale_of_loha_is_of_the_alpha_that_its_configuration_has(write_peft, config, source):
    tensors = {f"q.hada_w{i}_{half}": np.ones((3, 3), np.float32) for i in (1, 2) for half in "ab"}
    (layer,) = open_adapter(write_peft(tensors, peft_type="LOHA", **config)).layers
    assert layer.scaling_source == source
