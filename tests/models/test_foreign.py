"""Layouts that have no figures to report: each message says what the file is, and what to do."""

import numpy as np
import pytest

from lowrank_core.models import open_adapter


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"), "torchtune.*alpha is not in"),
        (("decoder.layers.0.mlp.linear_fc1.adapter.linear_in.weight",), "Megatron-Bridge or NeMo.*export_adapter_ckpt"),
        (("prompt_embeddings",), "soft prompts"),
        (("bert.encoder.layer.0.output.adapters.x.adapter_up.weight",), "AdapterHub's bottleneck adapters"),
    ],
)
def test_a_foreign_layout_is_named(write_file, keys, reason):
    with pytest.raises(ValueError, match=reason):
        open_adapter(write_file(dict.fromkeys(keys, np.ones((2, 3), np.float32)), "adapter.safetensors"))


def test_a_file_of_no_known_layout_names_its_first_tensor(write_file):
    with pytest.raises(ValueError, match="its first tensor is 'a'"):
        open_adapter(write_file({"a": np.ones((2, 2), np.float32)}, "x.safetensors"))
