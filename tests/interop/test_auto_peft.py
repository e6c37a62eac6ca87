"""What extract writes is loaded by PEFT's AutoPeftModel…, which finds base and task in the configuration."""

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import GPT2Config, GPT2LMHeadModel

from lowrank_core.models import extract, resize


# Of transformers, as PEFT calls it.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_extracted_adapter_is_loaded_with_its_base(tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 16}
    base = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    base.save_pretrained(tmp_path / "base")
    tuned = GPT2LMHeadModel(base.config)
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        weight = tuned.transformer.h[0].attn.c_attn.weight
        change = torch.outer(torch.randn(len(weight)), torch.randn(weight.shape[1]))
        weight += change
    tuned.save_pretrained(tmp_path / "tuned")
    prefix = {"prefix": "transformer"} if not _has_prefix(tmp_path / "base") else {}
    paths = tmp_path / "base" / "model.safetensors", tmp_path / "tuned"
    extract(*paths, tmp_path / "adapter", rank=1, include=["*c_attn"], **prefix)
    resize(tmp_path / "adapter", tmp_path / "resized", rank=1)
    for adapter in ("adapter", "resized"):
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / adapter)
        delta = loaded.base_model.model.transformer.h[0].attn.c_attn.get_delta_weight("default").detach()
        assert np.allclose(delta, change, atol=1e-5)


def _has_prefix(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as file:
        return any(key.startswith("transformer.") for key in file.keys())  # noqa: SIM118 - not a mapping
