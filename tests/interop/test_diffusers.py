"""Adapters that diffusers itself saves, and what it makes of those that are written here, on a tiny transformer."""

import logging
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from lowrank_core.models import convert, open_adapter, resize

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders import FluxLoraLoaderMixin
    from diffusers.training_utils import _collate_lora_metadata

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("diffusers").setLevel(logging.ERROR)

TARGETS = ["to_q", "to_k", "to_out.0"]
CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 16},
    "patterns": {"r": 4, "lora_alpha": 16, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 3}},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
}


def transformer():
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )


def adapted(**options):
    model = transformer()
    model.add_adapter(LoraConfig(target_modules=TARGETS, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def save(model, folder, *, metadata=True):
    FluxLoraLoaderMixin.save_lora_weights(
        str(folder),
        transformer_lora_layers=get_peft_model_state_dict(model),
        **(_collate_lora_metadata({"transformer": model}) if metadata else {}),
    )
    return folder / "pytorch_lora_weights.safetensors"


def deltas(model):
    """Return what diffusers adds to each weight."""
    return {
        name: module.double().get_delta_weight(module.active_adapters[0]).detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def loaded(path, prefix="transformer"):
    model = transformer()
    model.load_lora_adapter(
        str(path.parent), prefix=prefix, weight_name=path.name, use_safetensors=True, local_files_only=True
    )
    return deltas(model)


def assert_same(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        assert np.allclose(found[name], update, rtol=0, atol=atol)


def read(path):
    return {layer.name: layer.update().to_dense() for layer in open_adapter(path).layers}


def best(update, rank):
    u, s, vt = np.linalg.svd(update)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_diffusers_saves_is_read_and_written_as_it_applies_it(tmp_path, name):
    model = adapted(**CONFIGS[name])
    path = save(model, tmp_path)
    expected = deltas(model)
    assert_same(read(path), expected)
    resize(path, tmp_path / "smaller.safetensors", rank=2)
    assert_same(
        loaded(tmp_path / "smaller.safetensors"), {key: best(update, 2) for key, update in expected.items()}, 1e-5
    )


def test_a_file_without_metadata_has_the_scale_1(tmp_path):
    model = adapted(r=4, lora_alpha=4, rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 2})
    path = save(model, tmp_path, metadata=False)
    assert_same(read(path), deltas(model))
    assert_same(loaded(path), deltas(model))
    convert(path, tmp_path / "half.safetensors", dtype="float64")
    assert_same(loaded(tmp_path / "half.safetensors"), deltas(model))


def test_an_adapter_saved_by_a_model(tmp_path):
    model = adapted(r=4, lora_alpha=16)
    model.save_lora_adapter(str(tmp_path))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert_same(read(path), deltas(model))
    resize(path, tmp_path / "same.safetensors")
    assert_same(loaded(tmp_path / "same.safetensors", prefix=None), deltas(model), 1e-5)


def test_pefts_adapter_converted_for_diffusers(tmp_path):
    model = adapted(**CONFIGS["patterns"])
    path = save(model, tmp_path)
    convert(path, tmp_path / "peft", format="peft")
    convert(tmp_path / "peft", tmp_path / "back.safetensors", format="diffusers")
    assert_same(loaded(tmp_path / "back.safetensors"), deltas(model), 1e-5)
