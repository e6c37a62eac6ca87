"""What an extracted adapter says of the model that it is of: the class that has its experts, and its component."""

import json

import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.models import extract


@pytest.fixture
def write_models(tmp_path, rng):
    """Write the weights of two models of one configuration into folders; return these."""

    def write(shapes, inner=".", **config):
        folders = tmp_path / "base", tmp_path / "tuned"
        for folder in folders:
            (folder / inner).mkdir(parents=True)
            tensors = {key: rng.standard_normal(shape, dtype="f4") for key, shape in shapes.items()}
            save_file(tensors, folder / inner / "model.safetensors")
            (folder / inner / "config.json").write_text(json.dumps(config))
        return folders

    return write


@pytest.mark.parametrize(
    ("model_type", "mapping"),
    [
        (
            "gpt_oss",
            {
                "base_model_class": "GptOssForCausalLM",
                "parent_library": "transformers.models.gpt_oss.modeling_gpt_oss",
            },
        ),
        ("mixtral", None),
    ],
)
def test_stacks_that_are_stored_transposed_have_the_class_that_says_so(write_models, tmp_path, model_type, mapping):
    models = write_models(
        {"l.mlp.experts.down_proj": (3, 6, 5)}, model_type=model_type, architectures=["GptOssForCausalLM"]
    )
    extract(*models, tmp_path / "out", rank=2)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_version"], config.get("auto_mapping")) == ("0.19.1", mapping)


@pytest.mark.parametrize(
    ("format_name", "key"),
    [
        ("kohya", "lora_unet_q.lora_down.weight"),
        ("peft", "base_model.model.q.lora_A.weight"),
        ("diffusers", "transformer.q.lora_A.weight"),
    ],
)
def test_names_have_the_component_of_a_pipeline_in_diffusers_format_alone(write_models, tmp_path, format_name, key):
    models = write_models({"q.weight": (6, 5)}, "transformer")
    for folder in models:
        (folder / "model_index.json").write_text("{}")
    out = tmp_path / ("out" if format_name == "peft" else "out.safetensors")
    extract(*models, out, rank=2, component="transformer", format=format_name)
    assert key in load_file(out / "adapter_model.safetensors" if format_name == "peft" else out)
