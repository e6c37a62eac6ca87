"""PEFT's types of adapters beside LoRA, and DoRA on its base: what is read is what PEFT merges into the weights."""

import warnings

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lowrank_core.models import extract, inspect, resize
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.with_base import open_with_base


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(16, 24)
        self.other = nn.Linear(16, 24)
        self.small = nn.Linear(8, 12)
        self.conv = nn.Conv2d(6, 8, 3)
        self.one = nn.Conv2d(6, 8, 1)
        self.conv1d = nn.Conv1d(6, 8, 3)
        self.embed = nn.Embedding(10, 6)


def layers():
    torch.manual_seed(0)
    return Layers()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32))


LINEAR, ALL = ["lin", "other"], ["lin", "small", "conv", "one", "conv1d"]
WITHOUT_BASE = {
    "loha": (layers, peft.LoHaConfig(r=2, alpha=5, target_modules=ALL)),
    "loha, effective": (layers, peft.LoHaConfig(r=2, alpha=5, target_modules=ALL, use_effective_conv2d=True)),
    "loha with patterns": (
        layers,
        peft.LoHaConfig(r=2, target_modules=ALL, rank_pattern={"small": 3}, alpha_pattern={"lin": 7, "conv": 1}),
    ),
    "lokr": (layers, peft.LoKrConfig(r=1, alpha=5, target_modules=ALL)),
    # PEFT's own merge fails for a Conv1d of this kind.
    "lokr, effective": (
        layers,
        peft.LoKrConfig(r=1, alpha=5, target_modules=["lin", "small", "conv"], use_effective_conv2d=True),
    ),
    "lokr, both split": (layers, peft.LoKrConfig(r=1, alpha=5, target_modules=ALL, decompose_both=True)),
    "lokr, whole": (layers, peft.LoKrConfig(r=8, alpha=5, target_modules=ALL)),
    "adalora": (
        layers,
        peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, total_step=10, target_modules=["lin", "small", "conv"]),
    ),
    "adalora of Conv1D": (
        gpt2,
        peft.AdaLoraConfig(init_r=3, lora_alpha=8, total_step=10, target_modules=["c_attn"], fan_in_fan_out=True),
    ),
    "vera": (layers, peft.VeraConfig(r=4, target_modules=["lin"])),
    "vera of Conv1D": (gpt2, peft.VeraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)),
}
WITH_BASE = {
    "vera of several kinds": (layers, peft.VeraConfig(r=4, target_modules=["lin", "small"])),
    "ia3": (layers, peft.IA3Config(target_modules=["lin", "small", "conv"], feedforward_modules=["small"])),
    "ia3 of Conv1D": (gpt2, peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)),
    "dora": (layers, peft.LoraConfig(r=2, lora_alpha=5, use_dora=True, target_modules=ALL)),
    "dora under rsLoRA": (layers, peft.LoraConfig(r=4, use_dora=True, use_rslora=True, target_modules=LINEAR)),
    "dora of Conv1D": (
        gpt2,
        peft.LoraConfig(r=2, use_dora=True, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    ),
}


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        # PEFT warns of flags that it corrects, and of embeddings that it saves.
        warnings.simplefilter("ignore")
        yield


def saved(make, config, folder):
    """Give an adapter random entries and save it, beside the base; the adapters' configurations are changed by PEFT."""
    save_file({key: value.contiguous() for key, value in unshared(make()).items()}, folder.with_suffix(".safetensors"))
    model = peft.get_peft_model(make(), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder.with_suffix(".safetensors")


def unshared(model):
    return {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}


def merged_updates(make, folder):
    """Merge an adapter in float64, and return what changed in each weight, as a matrix."""
    before = {key: value.double() for key, value in make().state_dict().items()}
    after = peft.PeftModel.from_pretrained(make(), folder).double().merge_and_unload().state_dict()
    changes = {key.removesuffix(".weight"): (after[key] - before[key]).detach().numpy() for key in before}
    return {
        key: change.reshape(len(change), -1)
        for key, change in changes.items()
        if change.ndim > 1 and np.abs(change).max() > 1e-12
    }


def dense(layer):
    update = layer.update()
    return update.astype(float) if isinstance(update, np.ndarray) else update.to_dense()


def assert_updates(adapter, updates):
    found = {layer.name: layer for layer in adapter.layers}
    assert set(found) == set(updates)
    for name, update in updates.items():
        assert np.allclose(dense(found[name]), update, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("kind", WITHOUT_BASE)
def test_the_update_is_pefts_and_becomes_a_lora(tmp_path, kind):
    make, config = WITHOUT_BASE[kind]
    saved(make, config, tmp_path / "adapter")
    updates = merged_updates(make, tmp_path / "adapter")
    adapter = open_adapter(tmp_path / "adapter")
    assert (adapter.format, adapter.incomplete) == ("peft", {})
    assert_updates(adapter, updates)
    # Factors of a kernel that is flattened do not tell its size, which a LoRA of PEFT has to have.
    flattened = {layer.name for layer in adapter.layers if len(layer.placement.dims) == 2} & {"conv", "one", "conv1d"}
    updates = {name: update for name, update in updates.items() if name not in flattened}
    resize(tmp_path / "adapter", tmp_path / "lora", rank=2, include=list(updates))
    written = merged_updates(make, tmp_path / "lora")
    assert set(written) == set(updates)
    for name, update in updates.items():
        U, values, Vt = np.linalg.svd(update, full_matrices=False)
        assert np.linalg.norm(written[name] - U[:, :2] * values[:2] @ Vt[:2]) <= 1e-5 * values[0], name


@pytest.mark.parametrize("kind", WITH_BASE)
def test_with_its_base_an_update_is_what_peft_merges(tmp_path, kind):
    make, config = WITH_BASE[kind]
    base = saved(make, config, tmp_path / "adapter")
    updates = merged_updates(make, tmp_path / "adapter")
    assert_updates(open_with_base(tmp_path / "adapter", base), updates)
    assert set(inspect(tmp_path / "adapter").failures) == set(updates)
    assert inspect(tmp_path / "adapter", base).failures == {}
    extract(base, tmp_path / "adapter", tmp_path / "lora", rank=2)
    for name, update in merged_updates(make, tmp_path / "lora").items():
        U, values, Vt = np.linalg.svd(updates[name], full_matrices=False)
        assert np.linalg.norm(update - U[:, :2] * values[:2] @ Vt[:2]) <= 1e-5 * values[0], name


def test_magnitudes_of_an_embedding_are_of_its_columns(tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=5, use_dora=True, target_modules=["embed"])
    base = saved(layers, config, tmp_path / "adapter")
    (layer,) = open_with_base(tmp_path / "adapter", base).layers
    model = peft.PeftModel.from_pretrained(layers(), tmp_path / "adapter").double()
    tokens = torch.arange(10)
    change = model.base_model.model.embed(tokens) - layers().double().embed(tokens)
    assert np.allclose(dense(layer), change.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_part_of_no_rank_changes_nothing(tmp_path):
    make, config = WITHOUT_BASE["adalora"]
    saved(make, config, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    for end in ("lora_A", "lora_E"):
        tensors[f"base_model.model.lin.{end}"] = tensors[f"base_model.model.lin.{end}"][:0].clone()
    tensors["base_model.model.lin.lora_B"] = tensors["base_model.model.lin.lora_B"][:, :0].clone()
    save_file(tensors, path)
    adapter = open_adapter(tmp_path / "adapter")
    assert {layer.name for layer in adapter.layers} == {"small", "conv"}
    assert adapter.incomplete == {}


def test_projections_that_are_drawn_are_named(tmp_path):
    saved(layers, peft.VeraConfig(r=4, target_modules=["lin"], save_projection=False), tmp_path / "adapter")
    with pytest.raises(ValueError, match="drawn from projection_prng_key"):
        open_adapter(tmp_path / "adapter")
