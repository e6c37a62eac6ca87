"""Adapters that were written here, loaded by real PEFT: the model's outputs are those of the best updates."""

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.resizing import resize
from tests.interop.models import Transformer, lora_layers
from tests.interop.outputs import BFLOAT16, FLOAT32, assert_outputs, best, loaded, outputs, tokens

MODULES = [f"layers.{i}.{name}" for i in range(2) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up", "down")]
MIXED = {name: 1 + i % 5 for i, name in enumerate([*MODULES, "head"])}
FORMS = [
    {},
    {"rule": "rslora", "alpha": 3.0},
    {"uniform": True},
    {"rule": "rslora", "dtype": "float64"},
    {"uniform": True, "dtype": "bfloat16"},
    {"dtype": "bfloat16", "alpha": 40.0},
]


class Images(nn.Module):
    """Convolutions, an embedding and a linear layer: tokens become an image and a class."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 36)
        self.conv = nn.Conv2d(4, 6, (3, 2), bias=False)
        self.pointwise = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(60, 7)

    def forward(self, tokens):
        x = self.embed(tokens).reshape(len(tokens), 4, 6, -1)[:, :, :, :4]
        x = self.pointwise(torch.relu(self.conv(x)))
        return self.head(x.flatten(1))


def tuned_from(model, modules, size=0.1):
    """A copy of a model whose named matrices have changed by updates of full rank."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in modules:
            weight = tuned.get_submodule(name).weight
            weight += size * torch.randn(weight.shape, generator=generator)
    return tuned


def with_updates(model, updates):
    """A copy of a model with dense updates added, in the shape of each weight."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, update in updates.items():
            weight = changed.get_submodule(name).weight
            weight.copy_(weight.double() + torch.from_numpy(update).reshape(weight.shape))
    return changed


def weight_updates(base, tuned, modules):
    return {
        name: (tuned.get_submodule(name).weight.double() - base.get_submodule(name).weight.double()).detach().numpy()
        for name in modules
    }


def checkpoints(folder, base, tuned):
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    for model, path in zip((base, tuned), paths, strict=True):
        save_file(model.state_dict(), path)
    return paths


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    base = Transformer()
    return base, tuned_from(base, [*MODULES, "head"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [3, MIXED])
def test_extracted_linear_layers(tmp_path, transformer, form, rank):
    base, tuned = transformer
    report = extract(*checkpoints(tmp_path, base, tuned), tmp_path / "out", rank=rank, **form)
    ranks = rank if isinstance(rank, dict) else dict.fromkeys(MIXED, rank)
    updates = weight_updates(base, tuned, MIXED)
    expected = with_updates(base, {name: best(update, ranks[name]) for name, update in updates.items()})
    model = loaded(base, tmp_path / "out")
    half = form.get("dtype") == "bfloat16"
    assert_outputs(model, expected, tokens(), BFLOAT16 if half else FLOAT32)
    # What the tolerance can tell: without the update, or with all of it, the outputs are others altogether.
    for other in (base, tuned):
        wanted = outputs(expected, tokens())
        assert np.max(np.abs(outputs(other, tokens()) - wanted)) > 10 * BFLOAT16 * np.max(np.abs(wanted))
    layers = lora_layers(model)
    assert {layer.name for layer in report.layers} == set(layers)
    for layer in report.layers:
        module = layers[layer.name]
        assert module.scaling["default"] == pytest.approx(layer.scaling, rel=1e-15)
        assert module.r["default"] == layer.stored_rank
        delta = module.get_delta_weight("default").detach().double().numpy()
        error = np.linalg.norm(delta - updates[layer.name]) / np.linalg.norm(updates[layer.name])
        assert error == pytest.approx(layer.error, abs=2e-7)


@pytest.mark.parametrize("form", FORMS[:4])
def test_extracted_at_full_rank_the_tuned_model_is_back(tmp_path, transformer, form):
    base, tuned = transformer
    extract(*checkpoints(tmp_path, base, tuned), tmp_path / "out", rank=10**6, **form)
    assert_outputs(loaded(base, tmp_path / "out"), tuned, tokens(), FLOAT32)


@pytest.mark.parametrize("rank", [2, 10**6])
@pytest.mark.parametrize("form", FORMS[:3])
def test_extracted_convolutions_and_embeddings(tmp_path, rank, form):
    torch.manual_seed(0)
    base, modules = Images(), ["embed", "conv", "pointwise", "head"]
    tuned = tuned_from(base, modules, size=0.3)
    extract(*checkpoints(tmp_path, base, tuned), tmp_path / "out", rank=rank, embeddings=["embed"], **form)
    updates = weight_updates(base, tuned, modules)
    expected = with_updates(base, {name: best(update, rank) for name, update in updates.items()})
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(length=4), FLOAT32)


@pytest.mark.parametrize("rank", [3, 10**6])
@pytest.mark.parametrize("form", FORMS[:3])
def test_extracted_from_a_transformers_model_stored_as_in_by_out(tmp_path, rank, form):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8))
    modules = [f"transformer.h.{i}.{name}" for i in range(2) for name in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")]
    tuned = tuned_from(base, modules)
    for model, name in ((base, "base"), (tuned, "tuned")):
        model.save_pretrained(tmp_path / name)
    report = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=rank, **form)
    # The two embeddings did not change, and the tied head is not in the file.
    assert report.skipped == {}
    # At their full rank factors are larger than their matrices, which is said.
    assert form == FORMS[1] or all("larger than the matrices" in warning for warning in report.warnings)
    updates = weight_updates(base, tuned, modules)
    expected = with_updates(base, {name: best(update, rank) for name, update in updates.items()})
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)


def adapter(model, folder, seed=0, **config):
    """Adapt a model with PEFT, give every factor random entries, and save."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        peft_model.save_pretrained(folder)
    return folder


def peft_deltas(model, folder):
    """What PEFT itself adds to each weight, in the weight's shape."""
    layers = lora_layers(loaded(model, folder))
    return {name: module.get_delta_weight("default").detach().double().numpy() for name, module in layers.items()}


ADAPTERS = [
    {"use_rslora": False},
    {"use_rslora": True},
    {
        "use_rslora": True,
        "rank_pattern": {"up": 4, "o_proj": 8},
        "alpha_pattern": {".*q_proj": 3, r"layers\.1\.up": 20},
    },
]
TARGETS = ["q_proj", "o_proj", "up", "embed"]


@pytest.mark.parametrize("config", ADAPTERS)
@pytest.mark.parametrize("form", FORMS[:4])
@pytest.mark.parametrize("rank", [None, 2])
def test_resized(tmp_path, transformer, config, form, rank):
    base, _ = transformer
    source = adapter(base, tmp_path / "in", r=6, lora_alpha=10, target_modules=TARGETS, **config)
    resize(source, tmp_path / "out", rank=rank, **form)
    deltas = peft_deltas(base, source)
    expected = with_updates(base, {name: best(delta, 99 if rank is None else rank) for name, delta in deltas.items()})
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)


def test_resized_to_mixed_ranks_and_through_kohyas_format(tmp_path, transformer):
    base, tuned = transformer
    source = adapter(base, tmp_path / "in", r=6, lora_alpha=10, target_modules=TARGETS[:3], use_rslora=True)
    deltas = peft_deltas(base, source)
    ranks = {name: 1 + i % 4 for i, name in enumerate(deltas)}
    resize(source, tmp_path / "mixed", rank=ranks)
    expected = with_updates(base, {name: best(delta, ranks[name]) for name, delta in deltas.items()})
    assert_outputs(loaded(base, tmp_path / "mixed"), expected, tokens(), FLOAT32)
    path, _ = checkpoints(tmp_path, base, tuned)
    resize(tmp_path / "mixed", tmp_path / "kohya.safetensors", rule="rslora")
    resize(tmp_path / "kohya.safetensors", tmp_path / "back", base=path)
    assert_outputs(loaded(base, tmp_path / "back"), expected, tokens(), FLOAT32)


def test_resized_convolutions_and_embeddings(tmp_path):
    torch.manual_seed(0)
    base = Images()
    source = adapter(base, tmp_path / "in", r=4, lora_alpha=6, target_modules=["embed", "conv", "pointwise", "head"])
    resize(source, tmp_path / "out", rank=2)
    expected = with_updates(base, {name: best(delta, 2) for name, delta in peft_deltas(base, source).items()})
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(length=4), FLOAT32)


def test_resized_weights_stored_as_in_by_out(tmp_path):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8))
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    source = adapter(base, tmp_path / "in", **config)
    resize(source, tmp_path / "out", rank=2)
    merge([source, tmp_path / "out"], tmp_path / "sum", weights=[1, -1])
    deltas = peft_deltas(base, source)
    expected = with_updates(base, {name: best(delta, 2) for name, delta in deltas.items()})
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)
    expected = with_updates(base, {name: delta - best(delta, 2) for name, delta in deltas.items()})
    assert_outputs(loaded(base, tmp_path / "sum"), expected, tokens(), FLOAT32)


def test_a_resized_dora_adapter_keeps_its_magnitudes(tmp_path, transformer):
    base, _ = transformer
    source = adapter(base, tmp_path / "in", r=6, target_modules=["q_proj", "up"], use_dora=True)
    resize(source, tmp_path / "same", alpha=5.0, rule="rslora")
    assert_outputs(loaded(base, tmp_path / "same"), loaded(base, source), tokens(), FLOAT32)


def test_a_resized_bias_of_lora_b_follows_its_layers_scale(tmp_path, transformer):
    base, _ = transformer
    source = adapter(base, tmp_path / "in", r=6, lora_alpha=20, target_modules=["q_proj", "up"], lora_bias=True)
    resize(source, tmp_path / "same", rank=6)
    assert_outputs(loaded(base, tmp_path / "same"), loaded(base, source), tokens(), FLOAT32)


WEIGHTS = [0.7, -0.4]


@pytest.mark.parametrize("form", FORMS[:4])
@pytest.mark.parametrize("rank", [None, 3])
def test_merged(tmp_path, transformer, form, rank):
    base, _ = transformer
    sources = [
        adapter(base, tmp_path / "one", seed=1, r=6, lora_alpha=10, target_modules=TARGETS, use_rslora=True),
        adapter(base, tmp_path / "two", seed=2, r=4, lora_alpha=7, target_modules=[*TARGETS, "down"]),
    ]
    merge(sources, tmp_path / "out", weights=WEIGHTS, rank=rank, **form)
    one, two = (peft_deltas(base, source) for source in sources)
    sums = {name: WEIGHTS[0] * one.get(name, 0.0) + WEIGHTS[1] * delta for name, delta in two.items()}
    expected = with_updates(base, {name: best(update, 99 if rank is None else rank) for name, update in sums.items()})
    assert_outputs(loaded(base, tmp_path / "out"), expected, tokens(), FLOAT32)


def pefts_sum(base, sources, combination, **options):
    """The deltas that PEFT's own weighted combination gives."""
    model = PeftModel.from_pretrained(copy.deepcopy(base), sources[0], adapter_name="one")
    model.load_adapter(sources[1], adapter_name="two")
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type=combination, **options)
    return {name: layer.get_delta_weight("sum").detach().double().numpy() for name, layer in lora_layers(model).items()}


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("rank", [3, 12])
def test_pefts_own_svd_and_cat_merges_are_the_same_under_the_standard_rule_alone(
    tmp_path, transformer, use_rslora, rank
):
    base, _ = transformer
    config = {"r": 6, "lora_alpha": 10, "target_modules": ["q_proj", "up"], "use_rslora": use_rslora}
    sources = [adapter(base, tmp_path / name, seed=seed, **config) for seed, name in enumerate(("one", "two"))]
    merge(sources, tmp_path / "out", weights=WEIGHTS, rank=rank)
    ours, (one, two) = peft_deltas(base, tmp_path / "out"), (peft_deltas(base, source) for source in sources)
    # Their factors hold the sum with its scale, and the merged adapter's rule scales it once more: α = r makes that 1
    # under α/r, and √r under α/√r.
    excess = rank**0.5 if use_rslora else 1.0
    svd = pefts_sum(base, sources, "svd", svd_rank=rank)
    for name, delta in ours.items():
        exact = WEIGHTS[0] * one[name] + WEIGHTS[1] * two[name]
        assert np.linalg.norm(delta - best(exact, rank)) <= 1e-6 * np.linalg.norm(exact)
        assert np.linalg.norm(svd[name] - excess * delta) <= 1e-5 * np.linalg.norm(excess * delta)
    if rank == 12:
        cat = pefts_sum(base, sources, "cat")
        for name, delta in ours.items():
            assert np.linalg.norm(cat[name] - excess * delta) <= 1e-6 * np.linalg.norm(excess * delta)


def test_pefts_linear_merge_is_not_a_weighted_sum(tmp_path, transformer):
    # (√w₁·B₁ + √w₂·B₂)(√w₁·A₁ + √w₂·A₂) has products of one adapter's B with the other's A besides.
    base, _ = transformer
    config = {"r": 6, "lora_alpha": 10, "target_modules": ["q_proj", "up"]}
    sources = [adapter(base, tmp_path / name, seed=seed, **config) for seed, name in enumerate(("one", "two"))]
    merge(sources, tmp_path / "out", weights=WEIGHTS)
    ours, theirs = peft_deltas(base, tmp_path / "out"), pefts_sum(base, sources, "linear")
    for name, delta in ours.items():
        assert np.linalg.norm(theirs[name] - delta) > 0.5 * np.linalg.norm(delta)
