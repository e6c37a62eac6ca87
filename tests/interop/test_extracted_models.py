"""Adapters extracted from checkpoints whose names differ, on the classes of transformers whose names they have."""

import copy
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from lowrank_core.models.operations.extraction import extract
from tests.interop.outputs import FLOAT32, FULL, assert_outputs, difference, loaded, tokens, trained, with_best_updates

# torch.compile imports what warns of torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}
RANKS = [3, FULL]
WRAPPERS = {"_orig_mod.": torch.compile, "module.": nn.DataParallel}


def projections(model, pattern=r"proj|lm_head"):
    return [name for name, each in model.named_parameters() if each.ndim > 1 and re.search(pattern, name)]


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    return base, trained(base, projections(base))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_models_state_against_its_base(tmp_path, llama, wrapper, rank):
    base, tuned = llama
    state = WRAPPERS[wrapper](copy.deepcopy(tuned)).state_dict()
    assert all(key.startswith(wrapper) for key in state)
    save_file(state, tmp_path / "tuned.safetensors")
    report = extract(saved(base, tmp_path / "base"), tmp_path / "tuned.safetensors", tmp_path / "out", rank=rank)
    assert report.complete
    model = loaded(base, tmp_path / "out")
    assert_outputs(model, with_best_updates(base, tuned, rank), tokens(), FLOAT32)
    assert difference(base, tuned, tokens()) > 0.1


@pytest.mark.parametrize("rank", RANKS)
def test_a_compiled_models_own_names(tmp_path, llama, rank):
    base, tuned = llama
    save_file(torch.compile(tuned).state_dict(), tmp_path / "tuned.safetensors")
    extract(saved(base, tmp_path / "base"), tmp_path / "tuned.safetensors", tmp_path / "out", rank=rank, names="tuned")
    model = loaded(torch.compile(base, backend="eager"), tmp_path / "out")
    assert_outputs(model, with_best_updates(base, tuned, rank), tokens(), FLOAT32)


@pytest.fixture(scope="module")
def vision():
    """A text model, and a vision-language model around a tuned copy of it."""
    torch.manual_seed(0)
    shape = SHAPE | {
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    sight = {"depth": 1, "hidden_size": 16, "out_hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
    text = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))
    tuned = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=shape, vision_config=sight | {"patch_size": 4, "deepstack_visual_indexes": [0]})
    )
    changed = trained(text, projections(text))
    tuned.model.language_model.load_state_dict(changed.model.state_dict())
    tuned.lm_head.load_state_dict(changed.lm_head.state_dict())
    return text, tuned, changed


@pytest.mark.parametrize("rank", RANKS)
def test_a_text_model_against_the_vision_language_model_around_it(tmp_path, vision, rank):
    text, tuned, changed = vision
    paths = saved(text, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    expected = with_best_updates(text, changed, rank)
    extract(*paths, tmp_path / "out", rank=rank)
    assert_outputs(loaded(text, tmp_path / "out"), expected, tokens(), FLOAT32)
    whole = copy.deepcopy(tuned)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    extract(*paths, tmp_path / "vision", rank=rank, names="tuned")
    assert_outputs(loaded(whole, tmp_path / "vision"), expected, tokens(), FLOAT32)


@pytest.mark.parametrize("rank", RANKS)
def test_an_encoder_against_a_classifier_upon_it(tmp_path, rank):
    torch.manual_seed(0)
    shape = {key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "rms_norm_eps")}
    tuned = BertForSequenceClassification(BertConfig(**shape)).eval()
    encoder = BertModel(BertConfig(**shape)).eval()
    changed = trained(encoder, projections(encoder, r"query|key|value|dense"))
    tuned.bert.load_state_dict(changed.state_dict())
    paths = saved(encoder, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    expected = with_best_updates(encoder, changed, rank)
    extract(*paths, tmp_path / "out", rank=rank)
    model = loaded(encoder, tmp_path / "out")
    found, wanted = (each.eval()(tokens()).last_hidden_state for each in (model, expected))
    assert (found - wanted).abs().max() <= FLOAT32 * wanted.abs().max()
    classifier = copy.deepcopy(tuned)
    classifier.bert.load_state_dict(encoder.state_dict())
    extract(*paths, tmp_path / "head", rank=rank, names="tuned")
    whole = copy.deepcopy(tuned)
    whole.bert.load_state_dict(expected.state_dict())
    assert_outputs(loaded(classifier, tmp_path / "head"), whole, tokens(), FLOAT32)


def as_llama(phi3):
    """The same model with separate projections: a Llama, whose attention and gated units are Phi-3's."""
    split = LlamaForCausalLM(LlamaConfig(**SHAPE))
    state = {}
    for key, tensor in phi3.state_dict().items():
        if "qkv_proj" in key:
            parts = dict(zip("qkv", tensor.split([16, 8, 8]), strict=True))
            state |= {key.replace("qkv_proj", f"{part}_proj"): rows for part, rows in parts.items()}
        elif "gate_up_proj" in key:
            parts = dict(zip(("gate", "up"), tensor.chunk(2), strict=True))
            state |= {key.replace("gate_up_proj", f"{part}_proj"): rows for part, rows in parts.items()}
        else:
            state[key] = tensor
    split.load_state_dict(state)
    return split


@pytest.fixture(scope="module")
def phi3():
    torch.manual_seed(0)
    base = Phi3ForCausalLM(Phi3Config(**SHAPE))
    return base, trained(base, projections(base))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("names", ["base", "tuned"])
@pytest.mark.parametrize("split", ["base", "tuned"])
def test_fused_projections_against_separate_ones(tmp_path, phi3, split, names, rank):
    fused = dict(zip(("base", "tuned"), phi3, strict=True))
    separate = {name: as_llama(model) for name, model in fused.items()}
    assert difference(separate["tuned"], fused["tuned"], tokens()) <= FLOAT32
    pair = {name: separate[name] if name == split else fused[name] for name in ("base", "tuned")}
    paths = [saved(model, tmp_path / name) for name, model in pair.items()]
    report = extract(*paths, tmp_path / "out", rank=rank, names=names)
    assert report.complete
    models = separate if names == split else fused
    expected = with_best_updates(models["base"], models["tuned"], rank)
    assert_outputs(loaded(models["base"], tmp_path / "out"), expected, tokens(), FLOAT32)
