"""Adapters of experts, extracted from checkpoints that have them stacked or not, on the classes of transformers 5."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lowrank_core.models.operations.extraction import extract
from tests.interop.outputs import (
    FLOAT32,
    FULL,
    assert_outputs,
    best,
    difference,
    loaded,
    tokens,
    trained,
    with_best_updates,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, moe_intermediate_size=20, num_experts=3)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=3)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SHAPE, num_local_experts=3)),
}


def pair_of(model):
    """A model, and a copy with other experts, routers, attention and head."""
    torch.manual_seed(0)
    base = MODELS[model]()
    named = [(name, each.ndim) for name, each in base.named_parameters()]
    return base, trained(
        base, [name for name, axes in named if axes > 1 and "bias" not in name and "embed" not in name]
    )


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    return pair_of(request.param)


@pytest.fixture(scope="module", params=["qwen3_moe", "mixtral"])
def converted(request):
    """A pair whose experts save_pretrained writes as transformers 4 has them, each a module of its own."""
    return pair_of(request.param)


def stacked(model, folder):
    """Save a model as it is in memory, as trainers do that save its state."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def as_written(model, folder):
    model.save_pretrained(folder)
    return folder


def with_best_updates_as_written(model, base, tuned, rank, folder):
    """A model from a checkpoint with the best update of a rank added to each of its weights."""
    shutil.copytree(base, folder)
    before, after = (load_file(path / "model.safetensors") for path in (base, tuned))
    for key, weight in before.items():
        update = (after[key].double() - weight.double()).numpy()
        if update.any():
            before[key] = (weight.double() + torch.from_numpy(best(update, rank))).float()
    save_file(before, folder / "model.safetensors", metadata={"format": "pt"})
    return type(model).from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("rank", [2, FULL])
def test_stacks(tmp_path, pair, rank):
    base, tuned = pair
    report = extract(stacked(base, tmp_path / "base"), stacked(tuned, tmp_path / "tuned"), tmp_path / "out", rank=rank)
    assert report.complete
    expected = with_best_updates(base, tuned, rank)
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)
    assert difference(base, expected, tokens()) > 0.1
    assert any(name.endswith(("gate.weight", "router.weight")) for name in report.config["target_parameters"])


@pytest.mark.parametrize("rank", [2, FULL])
@pytest.mark.parametrize("names", ["base", "tuned"])
def test_stacks_against_separate_experts(tmp_path, converted, names, rank):
    base, tuned = converted
    save = (stacked, as_written) if names == "base" else (as_written, stacked)
    paths = save[0](base, tmp_path / "base"), save[1](tuned, tmp_path / "tuned")
    report = extract(*paths, tmp_path / "out", rank=rank, names=names)
    assert report.complete
    assert any("experts.N." in each.base + each.tuned for each in report.alignment)
    expected = with_best_updates(base, tuned, rank)
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)


@pytest.mark.parametrize("unchanged", ["none", ".experts.1."])
@pytest.mark.parametrize("rank", [2, FULL])
def test_separate_experts_are_stacked_by_peft_where_all_have_one_rank(tmp_path, converted, rank, unchanged):
    base, tuned = converted
    paths = as_written(base, tmp_path / "base"), as_written(tuned, tmp_path / "tuned")
    before, after = (load_file(path / "model.safetensors") for path in paths)
    after |= {key: weight for key, weight in before.items() if unchanged in key}
    save_file(after, paths[1] / "model.safetensors", metadata={"format": "pt"})
    report = extract(*paths, tmp_path / "out", rank=rank, uniform=True)
    assert report.complete
    assert not any("stacks" in warning for warning in report.warnings)
    expected = with_best_updates_as_written(base, *paths, rank, tmp_path / "expected")
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)


REASONS = {
    "6 have others than r and lora_alpha": {},
    "2 have others than r and lora_alpha, as 'model.layers.0.": {"rank": 5, "include": ["*experts*", "*.gate"]},
    "6 have none": {"rank": 2, "exclude": ["experts.1.*"]},
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_peft_cannot_stack_is_said(tmp_path, converted, reason):
    base, tuned = converted
    paths = as_written(base, tmp_path / "base"), as_written(tuned, tmp_path / "tuned")
    options = REASONS[reason]
    if not options:
        layers = extract(*paths, tmp_path / "all", rank=2).layers
        options = {"rank": {layer.name: 1 if "experts.1." in layer.name else 2 for layer in layers}}
    report = extract(*paths, tmp_path / "out", **options)
    assert any(reason in warning and "stacks" in warning for warning in report.warnings)
    with pytest.raises(RuntimeError):
        loaded(base, tmp_path / "out")
