"""Every kind of layer that PEFT adapts: the dense update that is read is the one that PEFT computes."""

import re
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.adapter import GroupedProduct
from lowrank_core.models.formats.patterns import ModulePatterns
from lowrank_core.models.inspection.layers import inspect
from tests.interop.models import Transformer, lora_layers

MODULE = "model.layers.11.self_attn.q_proj"
PATTERNS = [
    ["q_proj"],
    [".*q_proj"],
    ["^" + MODULE],
    ["^q_proj"],
    ["attn.q_proj"],
    ["layers.1.self_attn.q_proj"],
    [".*.1.self_attn.q_proj"],
    ["self_attn.q_proj", "q_proj"],
    ["^q_proj", "k_proj", "q_proj"],
    [r"layers\.(1|2)\..*", r"layers\.1[0-9]\..*"],
    ["model|q_proj"],
    ["^" + re.escape(MODULE)],
    ["^" + re.escape("model.layers.1.self_attn.q_proj")],
    ["layers.1..self_attn.q_proj"],
    [],
]


def pattern_key(patterns, module):
    return next(iter(ModulePatterns(dict.fromkeys(patterns)).matching(module)), module)


class EveryKind(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.embed = nn.Embedding(20, 6)
        self.conv = nn.Conv2d(4, 6, (3, 2))
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.conv1d = nn.Conv1d(4, 6, 3)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.attention = nn.MultiheadAttention(8, 2)


def saved(model, config, folder, dtype=torch.float32):
    """Adapt a model, give every factor random entries, save, and load again as PEFT's users do."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # PEFT warns of flags that it corrects, of groups that it cannot merge, and of embeddings that it saves.
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config).to(dtype)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
        peft_model.save_pretrained(folder)
        return lora_layers(PeftModel.from_pretrained(peft_model.unload(), folder))


def assert_layers_are_pefts(folder, peft):
    layers = {layer.name: layer for layer in open_adapter(folder).layers}
    assert set(layers) == set(peft)
    for name, module in peft.items():
        layer, delta = layers[name], module.get_delta_weight("default").detach().double().numpy()
        dense = layer.update().to_dense()
        assert layer.scaling == pytest.approx(module.scaling["default"], rel=1e-15)
        assert layer.shape == dense.shape == (delta.shape[0], delta[0].size)
        # Each entry of PEFT's float32 product of rank r is within (r + 2)·2⁻²⁴ of the sum of the terms' magnitudes.
        factors = layer.update()
        size = abs(layer.scaling) * (np.abs(factors.B).astype(float) @ np.abs(factors.A).astype(float))
        assert np.all(np.abs(dense - delta.reshape(dense.shape)) <= (layer.rank + 2) * 2.0**-24 * size)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    "patterns",
    [{}, {"rank_pattern": {"linear": 2, "conv": 6}, "alpha_pattern": {".*conv": 3, "^embed": 40, "onv1d": 5}}],
)
def test_linear_embedding_and_convolution(tmp_path, use_rslora, patterns):
    targets = ["linear", "embed", "conv", "pointwise", "conv1d"]
    config = LoraConfig(r=4, lora_alpha=10, target_modules=targets, use_rslora=use_rslora, **patterns)
    assert_layers_are_pefts(tmp_path, saved(EveryKind(), config, tmp_path))


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["c_attn", "wte"]])
def test_conv1d_stored_as_in_by_out(tmp_path, targets):
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=8))
    config = LoraConfig(r=4, lora_alpha=10, target_modules=targets, fan_in_fan_out=True, use_rslora=True)
    peft = saved(model, config, tmp_path)
    assert_layers_are_pefts(tmp_path, peft)
    assert {layer.name.rpartition(".")[2]: layer.shape for layer in open_adapter(tmp_path).layers}["c_attn"] == (16, 48)


def test_a_grouped_convolution_is_what_its_forward_pass_computes(tmp_path):
    # PEFT's own get_delta_weight fails on groups, so its layer is asked what it adds to an output.
    module = saved(EveryKind(), LoraConfig(r=4, lora_alpha=10, target_modules=["grouped"]), tmp_path)["grouped"]
    (layer,) = open_adapter(tmp_path).layers
    assert layer.build == GroupedProduct(2)
    with torch.no_grad():
        patches = torch.randn(50, 8, 3, 3)
        added = (module(patches) - module.base_layer(patches)).squeeze(-1).squeeze(-1).double().numpy()
    expected = patches.double().numpy().reshape(50, -1) @ layer.update().to_dense().T
    assert np.max(np.abs(added - expected)) < 1e-5 * np.max(np.abs(expected))


def test_attention_with_its_inner_projection(tmp_path):
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["attention"], alpha_pattern={"attention": 6})
    peft = saved(EveryKind(), config, tmp_path)
    names = {name.replace(".base_layer.", "."): module for name, module in peft.items()}
    assert sorted(names) == ["attention", "attention.out_proj"]
    assert_layers_are_pefts(tmp_path, names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_are_multiplied_exactly(tmp_path, dtype):
    peft = saved(Transformer(), LoraConfig(r=4, target_modules=["up", "embed"]), tmp_path, dtype)
    for layer in open_adapter(tmp_path).layers:
        module = peft[layer.name]
        embedding = hasattr(module, "lora_embedding_A") and "default" in module.lora_embedding_A
        A = (module.lora_embedding_A["default"] if embedding else module.lora_A["default"].weight).double()
        B = (module.lora_embedding_B["default"] if embedding else module.lora_B["default"].weight).double()
        exact = module.scaling["default"] * ((B @ A).T if embedding else B @ A).detach().numpy()
        assert layer.dtype == str(dtype).removeprefix("torch.")
        assert np.allclose(layer.update().to_dense(), exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("patterns", PATTERNS)
@pytest.mark.parametrize("module", [MODULE, "q_proj", "model.layers.1.self_attn.q_proj", "q_proj.extra", "xq_proj"])
def test_patterns_resolve_as_pefts_own_function_does(patterns, module):
    assert pattern_key(patterns, module) == get_pattern_key(patterns, module)


@pytest.mark.parametrize(
    ("pattern", "applies"),
    [
        ("q_proj", True),
        (".*q_proj", True),
        ("^" + MODULE, True),
        ("^" + re.escape(MODULE), True),
        ("model.layers.1..self_attn.q_proj", True),
        ("^q_proj", False),
        ("attn.q_proj", False),
        ("layers.1.self_attn.q_proj", False),
    ],
)
def test_which_patterns_apply(pattern, applies):
    assert pattern_key([pattern], MODULE) == get_pattern_key([pattern], MODULE) == (pattern if applies else MODULE)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    ("rank_pattern", "alpha_pattern"),
    [
        ({"q_proj": 2}, {}),
        ({}, {".*q_proj": 3}),
        ({"layers.0.q_proj": 2, "q_proj": 3}, {"^layers.1.q_proj": 5}),
        ({"^q_proj": 2}, {"ayers.1.q_proj": 5}),
        ({"q.proj": 6, "up|down": 2}, {"layers.[01].(up|q_proj)": 7, "q_proj": 9}),
    ],
)
def test_ranks_and_alphas_are_those_that_peft_loads(tmp_path, use_rslora, rank_pattern, alpha_pattern):
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up", "down"],
        use_rslora=use_rslora,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    peft = saved(Transformer(), config, tmp_path)
    found = inspect(tmp_path)
    assert {layer.name for layer in found.layers} == set(peft)
    for layer in found.layers:
        module = peft[layer.name]
        assert (layer.rank, layer.alpha) == (module.r["default"], module.lora_alpha["default"])
        assert layer.scaling == pytest.approx(module.scaling["default"], rel=1e-15)
    assert_layers_are_pefts(tmp_path, peft)


def test_the_order_of_patterns_that_peft_saves_is_not_that_of_training(tmp_path):
    # PEFT sorts the entries of the configuration it writes, and takes the first that matches when it loads them again.
    config = LoraConfig(r=4, target_modules=["q_proj"], alpha_pattern={"q_proj": 4, ".*q_proj": 16})
    trained = lora_layers(get_peft_model(Transformer(), config))["layers.0.q_proj"].scaling["default"]
    loaded = saved(Transformer(), config, tmp_path)["layers.0.q_proj"].scaling["default"]
    assert (trained, loaded) == (1.0, 4.0)
    adapter = open_adapter(tmp_path)
    assert all(layer.scaling == 4.0 for layer in adapter.layers)
    assert any("match several alpha patterns" in warning for warning in adapter.warnings)
