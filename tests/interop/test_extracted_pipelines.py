"""Adapters extracted from pipelines of diffusers, loaded by the pipeline and by the transformer itself."""

import copy
import logging
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lowrank_core.models.operations.extraction import extract
from tests.interop.outputs import FLOAT32, FULL, trained, with_best_updates

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
        UNet2DConditionModel,
    )

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("diffusers").setLevel(logging.ERROR)


def pipeline():
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
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
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        AutoencoderKL(block_out_channels=(32,), latent_channels=1),
        CLIPTextModel(CLIPTextConfig(**shape, vocab_size=32, projection_dim=16)),
        None,
        T5EncoderModel(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=32)),
        None,
        transformer,
    )


@torch.no_grad()
def output(transformer):
    generator = torch.Generator().manual_seed(1)
    found = transformer.eval()(
        hidden_states=torch.randn(2, 4, 4, generator=generator),
        encoder_hidden_states=torch.randn(2, 3, 16, generator=generator),
        pooled_projections=torch.randn(2, 16, generator=generator),
        timestep=torch.tensor([0.3, 0.7]),
        img_ids=torch.zeros(4, 3),
        txt_ids=torch.zeros(3, 3),
    )
    return found.sample.double().numpy()


def difference(transformer, expected):
    wanted = output(expected)
    return np.max(np.abs(output(transformer) - wanted)) / np.max(np.abs(wanted))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A pipeline and its folder, the folder of one with another transformer, and that transformer."""
    folder = tmp_path_factory.mktemp("pipelines")
    base = pipeline()
    base.save_pretrained(folder / "base")
    weights = [name for name, each in base.transformer.named_parameters() if each.ndim > 1]
    tuned = trained(base.transformer, weights)
    changed = pipeline()
    changed.transformer.load_state_dict(tuned.state_dict())
    changed.save_pretrained(folder / "tuned")
    return base.transformer, folder / "base", folder / "tuned", tuned


@pytest.mark.parametrize("component", ["transformer", None])
@pytest.mark.parametrize("rank", [3, FULL])
def test_the_pipeline_and_its_transformer_load_the_adapter(tmp_path, pipelines, component, rank):
    base, *paths, tuned = pipelines
    path = tmp_path / "lora.safetensors"
    report = extract(*paths, path, rank=rank, format="diffusers", component=component)
    assert report.complete
    expected = with_best_updates(base, tuned, rank)
    whole, alone = pipeline(), pipeline().transformer
    whole.load_lora_weights(str(tmp_path), weight_name=path.name)
    alone.load_lora_adapter(str(tmp_path), prefix="transformer", weight_name=path.name, use_safetensors=True)
    for transformer in (whole.transformer, alone):
        assert difference(transformer, expected) <= FLOAT32
    assert difference(base, expected) > 0.1


@pytest.mark.parametrize("rank", [3, FULL])
def test_peft_loads_the_adapter_of_a_component(tmp_path, pipelines, rank):
    base, *paths, tuned = pipelines
    extract(*paths, tmp_path / "out", rank=rank, component="transformer")
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out")
    assert difference(model, with_best_updates(base, tuned, rank)) <= FLOAT32


def test_an_unet_is_loaded_by_its_own_name(tmp_path):
    """Two pipelines whose only component is an UNet, as a LoRA of Stable Diffusion has them."""
    torch.manual_seed(0)
    base = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    tuned = trained(base, [name for name, each in base.named_parameters() if each.ndim > 1])
    for model, name in ((base, "base"), (tuned, "tuned")):
        model.save_pretrained(tmp_path / name / "unet")
        (tmp_path / name / "model_index.json").write_text("{}")
    paths = tmp_path / "base", tmp_path / "tuned"
    extract(*paths, tmp_path / "lora.safetensors", rank=3, format="diffusers", component="unet")
    model = copy.deepcopy(base)
    model.load_lora_adapter(str(tmp_path), prefix="unet", weight_name="lora.safetensors", use_safetensors=True)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 3, 16)
    with torch.no_grad():
        found, wanted = (each.eval()(*inputs).sample for each in (model, with_best_updates(base, tuned, 3)))
    assert (found - wanted).abs().max() <= FLOAT32 * wanted.abs().max()
