"""Inspect what was trained for real: fully, and with PEFT's LoRA under both scaling rules."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lowrank_core.models.inspection.layers import inspect
from tests.interop.models import Transformer, lora_layers, train

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up", "down"]


def singular_values(delta):
    return np.linalg.svd(delta.detach().double().numpy().reshape(delta.shape[0], -1), compute_uv=False)


def assert_spectrum(layer, expected):
    found = np.zeros_like(expected)
    found[: layer.singular_values.size] = layer.singular_values
    assert np.max(np.abs(found - expected)) <= 1e-5 * expected[0]


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return Transformer()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_that_peft_trained(base, tmp_path, use_rslora):
    config = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, use_rslora=use_rslora, rank_pattern={"up": 4})
    model = train(get_peft_model(copy.deepcopy(base), config))
    model.save_pretrained(tmp_path)
    peft = lora_layers(model)
    found = inspect(tmp_path)
    assert not found.failures
    assert {layer.name for layer in found.layers} == set(peft)
    assert len(found.layers) == 12
    for layer in found.layers:
        module = peft[layer.name]
        assert layer.scaling == pytest.approx(module.scaling["default"], rel=1e-15)
        assert (layer.rank, layer.alpha) == (module.r["default"], module.lora_alpha["default"])
        delta = module.get_delta_weight("default")
        assert layer.shape == tuple(delta.shape)
        assert_spectrum(layer, singular_values(delta))
        assert layer.norm == pytest.approx(delta.norm().item(), rel=1e-5)
    assert found.totals.adapter_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_checkpoints_before_and_after_training(base, tmp_path, dtype):
    tuned = train(copy.deepcopy(base))
    before, after = ({k: v.to(dtype) for k, v in model.state_dict().items()} for model in (base, tuned))
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    found = inspect(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors")
    matrices = {key.removesuffix(".weight") for key, weight in before.items() if weight.ndim == 2}
    assert {layer.name for layer in found.layers} == matrices
    assert not found.failures
    for layer in found.layers:
        key = f"{layer.name}.weight"
        assert_spectrum(layer, singular_values(after[key].double() - before[key].double()))
        assert layer.dtype == str(dtype).removeprefix("torch.")
    assert set(found.not_low_rank) == {
        key for key, weight in before.items() if weight.ndim == 1 and not torch.equal(weight, after[key])
    }
    assert "head.bias" in found.not_low_rank


def test_a_merged_adapter_is_the_difference_of_the_checkpoints(base, tmp_path):
    model = train(get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR)))
    model.save_pretrained(tmp_path / "adapter")
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    save_file(model.merge_and_unload().state_dict(), tmp_path / "merged.safetensors")
    adapter = {layer.name: layer for layer in inspect(tmp_path / "adapter").layers}
    for layer in inspect(tmp_path / "merged.safetensors", tmp_path / "base.safetensors").layers:
        if layer.name not in adapter:
            assert layer.norm == 0.0
            continue
        expected = adapter[layer.name]
        # Merging rounds each weight to float32; what that adds stands above rank 4.
        assert layer.singular_values[:4] == pytest.approx(expected.singular_values, abs=1e-5 * expected.norm)
        assert np.all(layer.singular_values[4:] < 1e-5 * expected.norm)
        assert layer.best_error[1] < 1e-4


def test_another_adapter_of_the_same_model_is_found_in_its_subfolder(base, tmp_path):
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name="style")
    train(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "style" / "adapter_config.json").exists()
    found = inspect(tmp_path)
    peft = lora_layers(model)
    assert len(found.layers) == 2
    for layer in found.layers:
        assert_spectrum(layer, singular_values(peft[layer.name].get_delta_weight("style")))


def test_an_initialisation_that_alters_the_base_is_reported(base, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert "init_lora_weights 'pissa' altered the base" in found.warnings[0]
    # Nothing was trained, and yet the factors have the norm of the base's leading part.
    assert found.totals.norm > 1.0


# PEFT warns of loading an adapter beside PiSSA's, which is what its conversion does.
@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_an_adapter_that_peft_converted_from_pissa_stands_alone(base, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    model = get_peft_model(copy.deepcopy(base), config)
    start = tmp_path / "start"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = "pissa"
    train(model)
    model.save_pretrained(tmp_path / "stands", path_initial_model_for_weight_conversion=str(start))
    found = inspect(tmp_path / "stands")
    assert not any("altered the base" in warning for warning in found.warnings)
    assert all(layer.rank == 8 for layer in found.layers)
    tuned = model.merge_and_unload().state_dict()
    for layer in found.layers:
        key = f"{layer.name}.weight"
        expected = singular_values(tuned[key].double() - base.state_dict()[key].double())
        assert np.max(np.abs(layer.singular_values - expected[:8])) < 1e-4 * expected[0]


def test_dora_and_modules_to_save_are_reported_and_not_dropped(base, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, modules_to_save=["head"])
    model = train(get_peft_model(copy.deepcopy(base), config))
    model.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert sorted(found.not_low_rank) == [
        "head.bias",
        "head.weight",
        "layers.0.q_proj.lora_magnitude_vector",
        "layers.1.q_proj.lora_magnitude_vector",
    ]
    head = model.base_model.model.head.modules_to_save["default"].weight
    assert f"norm {head.norm().item():.4g}" in found.not_low_rank["head.weight"]
    assert any(warning.startswith("use_dora") for warning in found.warnings)


# PEFT takes the bias of lora_B for a factor that lost an axis, and warns of it.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 4 LoRA tensor.s. have invalid shape")
def test_every_tensor_that_peft_saved_is_reported(base, tmp_path):
    config = LoraConfig(r=4, target_modules=["up", "down"], lora_bias=True, bias="lora_only", modules_to_save=["head"])
    model = train(get_peft_model(copy.deepcopy(base), config))
    model.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    saved = {key.removeprefix("base_model.model.") for key in load_file(tmp_path / "adapter_model.safetensors")}
    factors = {f"{layer.name}.lora_{part}.weight" for layer in found.layers for part in "AB"}
    # What replaces a tensor of the base is named as that: PEFT saves the biases of wrapped layers under the wrapper.
    assert factors | set(found.not_low_rank) == {key.replace(".base_layer.", ".") for key in saved}
    assert len(factors) == 8
    assert {"layers.0.up.bias", "layers.0.up.lora_B.bias", "head.weight"} <= set(found.not_low_rank)
    up = lora_layers(model)["layers.0.up"]
    scaled = (up.lora_B["default"].bias * up.scaling["default"]).norm().item()
    assert f"norm {scaled:.4g}" in found.not_low_rank["layers.0.up.lora_B.bias"]


def test_the_variance_of_pefts_initial_factors_is_as_the_documentation_says():
    """1/(3n) by default, 1/r² for "gaussian": a uniform law on ±1/√n, a normal one of deviation 1/r."""
    n, rank = 900, 16
    torch.manual_seed(0)
    for initialisation, variance in ((True, 1 / (3 * n)), ("gaussian", 1 / rank**2)):
        model = torch.nn.Sequential(torch.nn.Linear(n, 4))
        config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights=initialisation)
        A = get_peft_model(model, config).base_model.model[0].lora_A["default"].weight.detach().numpy()
        # The variance of n·r draws is off by a part in √(n·r/2), 1.2 %, or less.
        assert math.isclose(float(np.mean(A**2)), variance, rel_tol=0.06)
        assert initialisation != True or np.max(np.abs(A)) <= 1 / math.sqrt(n)  # noqa: E712 - "gaussian" is true too
