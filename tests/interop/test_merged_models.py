"""Merged models beside PEFT's: verify finds every planted fault and no other, and apply writes what PEFT merges."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from lowrank_core.models import apply, verify

from . import test_peft_experts as experts

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TARGETS = ["embed", "q_proj", "up", "conv", "conv1"]
RUNS = 100


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.q_proj, self.up = nn.Linear(8, 8, bias=False), nn.Linear(8, 12)
        self.conv, self.conv1 = nn.Conv2d(3, 4, 3), nn.Conv1d(5, 6, 2)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)


@pytest.fixture(autouse=True)
def no_model_cards(monkeypatch):
    """Writing one takes PEFT longer than all else that is done here."""
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)


def draw(seed, dtype):
    """A model in a dtype, and a configuration of LoRA for all kinds of its layers."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rank = int(rng.integers(2, 8))
    config = LoraConfig(
        r=rank,
        lora_alpha=float(rng.integers(1, 30)),
        use_rslora=bool(rng.integers(2)),
        target_modules=TARGETS,
        rank_pattern={"up": rank + 1},
    )
    return rng, Model().to(dtype), config


def wrap(model, config, **options):
    with warnings.catch_warnings():
        # Of parameters that are targeted, PEFT says that their patterns match no module.
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config, **options)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return peft_model


def save(model, path):
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_fault_in_merges_by_peft(tmp_path, dtype):
    """A third of the hundred in each dtype: of factors in float32 and in the model's dtype, added in either way."""
    for seed in range(RUNS)[list(DTYPES).index(dtype) :: len(DTYPES)]:
        rng, model, config = draw(seed, DTYPES[dtype])
        base, adapter = save(model, tmp_path / "base.safetensors"), tmp_path / f"adapter{seed}"
        again = copy.deepcopy(model)
        peft_model = wrap(model, config, autocast_adapter_dtype=bool(rng.integers(2)))
        peft_model.save_pretrained(adapter)
        if rng.integers(2):
            peft_model = PeftModel.from_pretrained(again, adapter, autocast_adapter_dtype=bool(rng.integers(2)))
        merged = peft_model.merge_and_unload(safe_merge=bool(rng.integers(2)))
        report = verify(base, adapter, save(merged, tmp_path / "merged.safetensors"))
        assert report.right, (seed, [layer for layer in report.layers if not layer.right], report)
        assert len(report.layers) == len(TARGETS)


def merged_twice(peft_model, config, layer):
    layer.scaling["default"] *= 2
    return "applied twice"


def scaled_twice(peft_model, config, layer):
    layer.scaling["default"] **= 2
    return "the scale applied twice"


def missed(peft_model, config, layer):
    layer.scaling["default"] = 0.0
    return "not merged"


def other_rule(peft_model, config, layer):
    root = layer.r["default"] ** 0.5
    layer.scaling["default"] *= 1 / root if config.use_rslora else root
    return "rsLoRA read as α/r" if config.use_rslora else "α/r read as rsLoRA"


def transposed(peft_model, config, layer):
    update = layer.get_delta_weight
    layer.get_delta_weight = lambda adapter: update(adapter).T
    return "the update is transposed"


FAULTS = [merged_twice, scaled_twice, missed, other_rule, transposed]


@pytest.mark.parametrize("fault", [*FAULTS, "merged in bfloat16"])
def test_every_planted_fault_is_found_and_named(tmp_path, fault):
    """Each of six faults in a sixth of the hundred, in all dtypes that can have it."""
    kinds = [*FAULTS, "merged in bfloat16"]
    for seed in range(RUNS)[kinds.index(fault) :: len(kinds)]:
        in_bfloat16 = fault == "merged in bfloat16"
        dtype = torch.float32 if in_bfloat16 else list(DTYPES.values())[seed // len(kinds) % 3]
        rng, model, config = draw(seed, dtype)
        base = save(model, tmp_path / "base.safetensors")
        peft_model = wrap(model, config)
        peft_model.save_pretrained(tmp_path / f"adapter{seed}")
        name = "q_proj" if fault is transposed else str(rng.choice(TARGETS))
        if in_bfloat16:
            planted, expected = set(TARGETS), "all its values are numbers of bfloat16"
            before = load_file(base)
            wrong = peft_model.bfloat16().merge_and_unload().float()
            for key, tensor in wrong.state_dict().items():
                if key.rpartition(".")[0] not in TARGETS or not key.endswith("weight"):
                    tensor.copy_(torch.from_numpy(before[key]))
        else:
            planted = {name}
            expected = fault(peft_model, config, getattr(peft_model.base_model.model, name))
            wrong = peft_model.merge_and_unload()
        report = verify(base, tmp_path / f"adapter{seed}", save(wrong, tmp_path / "merged.safetensors"))
        found = {layer.name: layer for layer in report.layers if not layer.right}
        assert found.keys() == planted, (seed, fault)
        assert not report.right
        for layer in found.values():
            assert expected in layer.diagnosis, (seed, layer)
            assert layer.wrong_entries > 0
            assert layer.max_ulps > (0.5 if in_bfloat16 else 1.0)


def wide(tensor):
    return tensor.astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_writes_what_peft_merges_but_for_its_roundings(tmp_path, dtype):
    _, model, config = draw(7, DTYPES[dtype])
    config.lora_bias, config.modules_to_save = False, ["head", "norm"]
    base = save(model, tmp_path / "base.safetensors")
    peft_model = wrap(model, config)
    for name, parameter in peft_model.named_parameters():
        if "modules_to_save" in name:
            nn.init.normal_(parameter)
    peft_model.save_pretrained(tmp_path / "adapter")
    report = apply(base, tmp_path / "adapter", tmp_path / "out.safetensors")
    assert report.complete
    assert len(report.replaced) == 4
    layers = {name: copy.deepcopy(getattr(peft_model.base_model.model, name)) for name in TARGETS}
    merged = save(peft_model.merge_and_unload(), tmp_path / "merged.safetensors")
    ours, theirs, before = (load_file(path) for path in (tmp_path / "out.safetensors", merged, base))
    assert ours.keys() == theirs.keys()
    eps = torch.finfo(DTYPES[dtype]).eps
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype
        name, _, parameter = key.rpartition(".")
        if name not in TARGETS or parameter != "weight":
            assert tensor.tobytes() == theirs[key].tobytes()
            continue
        # Half a step of either result, and of PEFT's sum and update in float32 as well as its product of rank r.
        factors = {name: parameter.detach().double().numpy() for name, parameter in layers[name].named_parameters()}
        A, B = (next(each for name, each in factors.items() if f"_{part}." in name) for part in "AB")
        product = layers[name].scaling["default"] * np.abs(B.reshape(len(B), -1)) @ np.abs(A.reshape(len(A), -1))
        product = (product.T if "embed" in key else product).reshape(tensor.shape)
        largest = np.maximum(np.abs(wide(tensor)), np.abs(wide(theirs[key])))
        bound = eps * largest + 2.0**-24 * ((len(A) + 4) * product + np.abs(wide(before[key])))
        assert (np.abs(wide(tensor) - wide(theirs[key])) <= bound).all(), key
    for model_path in (tmp_path / "out.safetensors", merged):
        assert verify(base, tmp_path / "adapter", model_path).right


def adapted(kind, targets):
    if kind == "LoHa":
        return LoHaConfig(r=3, alpha=5, target_modules=targets)
    if kind == "LoKr":
        return LoKrConfig(r=2, alpha=5, target_modules=targets, decompose_both=True)
    options = {
        "DoRA": {"use_dora": True},
        "bias of lora_B": {"lora_bias": True},
        "trained biases": {"bias": "all"},
        "trained tokens": {"trainable_token_indices": {"embed": [5, 0, 7]}},
    }
    return LoraConfig(r=3, lora_alpha=5, target_modules=targets, **options[kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA", "bias of lora_B", "trained biases", "trained tokens"])
def test_other_adapters_are_applied_and_verified(tmp_path, kind, dtype):
    torch.manual_seed(3)
    model = Model().to(DTYPES[dtype])
    base = save(model, tmp_path / "base.safetensors")
    with warnings.catch_warnings():
        # PEFT takes the bias of lora_B for a factor that was not gathered, and saves it.
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, adapted(kind, ["up", "head", "conv"]))
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                nn.init.normal_(parameter, std=0.3)
        peft_model.save_pretrained(tmp_path / "adapter")
    report = apply(base, tmp_path / "adapter", tmp_path / "out.safetensors")
    assert report.complete, (report.failures, report.skipped)
    merged = save(peft_model.merge_and_unload(), tmp_path / "merged.safetensors")
    for path in (tmp_path / "out.safetensors", merged):
        verification = verify(base, tmp_path / "adapter", path)
        assert verification.right, verification
    before = verify(base, tmp_path / "adapter", base)
    # What was trained in full is no layer: where the model has the base's, that is a difference.
    assert bool(before.differences) == (kind in ("trained biases", "trained tokens"))
    assert before.wrong_layers == len(before.layers) == len(report.layers)


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_that_peft_adapts_as_parameters(tmp_path, transposed):
    config = {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], "target_parameters": ["down_proj", "gate_up_proj"]}
    torch.manual_seed(0)
    model = experts.Model(transposed=transposed)
    base = save(model, tmp_path / "base.safetensors")
    peft_model = wrap(model, LoraConfig(**config))
    peft_model.save_pretrained(tmp_path / "adapter")
    merged = save(peft_model.merge_and_unload(), tmp_path / "merged.safetensors")
    report = verify(base, tmp_path / "adapter", merged)
    assert report.right
    assert len(report.layers) == 2 * (1 + 2 * experts.EXPERTS)
    assert apply(base, tmp_path / "adapter", tmp_path / "out.safetensors").complete
    assert verify(base, tmp_path / "adapter", tmp_path / "out.safetensors").right
    tensors = load_file(merged)
    tensors["blocks.1.experts.down_proj"][2] = load_file(base)["blocks.1.experts.down_proj"][2]
    save_file({key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, merged)
    wrong = [layer for layer in verify(base, tmp_path / "adapter", merged).layers if not layer.right]
    assert [(layer.name, layer.diagnosis[:10]) for layer in wrong] == [("blocks.1.experts.down_proj[2]", "not merged")]


def llama(**options):
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        **options,
    )
    torch.manual_seed(2)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_what_is_written_like_its_own_folder(tmp_path, tied):
    model = llama(tie_word_embeddings=tied).bfloat16()
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    peft_model = wrap(model, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj", "embed_tokens"]))
    with warnings.catch_warnings():
        # It says that it saves the embedding, and that a tied one would need its twin.
        warnings.simplefilter("ignore")
        peft_model.save_pretrained(tmp_path / "adapter")
        merged = peft_model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    report = apply(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert report.complete
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), merged.named_parameters(), strict=True):
        # A step of bfloat16 is what one rounding and PEFT's two may differ by.
        assert (ours - theirs).abs().max() <= 2**-7 * theirs.abs().max(), name
    for path in ("out", "merged"):
        assert verify(tmp_path / "base", tmp_path / "adapter", tmp_path / path).right


def test_pickled_shards_become_shards_of_safetensors(tmp_path):
    model = llama()
    state = model.state_dict()
    names = sorted(state)
    (tmp_path / "base").mkdir()
    model.config.save_pretrained(tmp_path / "base")
    shards = {f"pytorch_model-0000{place + 1}-of-00002.bin": names[place::2] for place in range(2)}
    for shard, keys in shards.items():
        torch.save({key: state[key] for key in keys}, tmp_path / "base" / shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (tmp_path / "base" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    peft_model = wrap(model, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"]))
    peft_model.save_pretrained(tmp_path / "adapter")
    report = apply(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(report.files) == ["config.json", *shards, "model.safetensors.index.json"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for key, tensor in peft_model.merge_and_unload().state_dict().items():
        assert (loaded[key] - tensor).abs().max() <= 2**-22 * tensor.abs().max(), key
    assert verify(tmp_path / "base", tmp_path / "adapter", tmp_path / "out").right
