"""Models of PyTorch and PEFT in memory: every report is that of the same model saved to files."""

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from lowrank_core.models import compare, extract, inspect, open_adapter, open_checkpoint, resize, to_json
from tests.interop.models import Transformer
from tests.models.test_in_memory import figures, without_model

TARGETS = ["q_proj", "v_proj", "up"]


def adapted(seed, **options):
    """A small model with an adapter whose B is not zero."""
    torch.manual_seed(0)
    base = Transformer()
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": TARGETS} | options
    model = get_peft_model(base, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_a_pair_of_state_dicts_is_the_pair_of_files(tmp_path, dtype):
    torch.manual_seed(0)
    base = Transformer()
    before = {name: tensor.detach().to(dtype) for name, tensor in base.state_dict().items()}
    step = 0.5 if dtype == torch.float8_e4m3fn else 0.05
    after = {
        name: (tensor.float() + step * torch.randn(tensor.shape)).to(dtype).requires_grad_(dtype.itemsize > 1)
        for name, tensor in before.items()
    }
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    for path, state in zip(paths, (before, after), strict=True):
        save_file(state, path)
    assert figures(to_json(inspect(after, before))) == figures(to_json(inspect(paths[1], paths[0])))
    report, expected = extract(before, after, rank=4), extract(*paths, tmp_path / "adapter", rank=4)
    assert without_model(report) == without_model(expected)
    for name, tensor in after.items():
        read = open_checkpoint(after).tensors[name].read()
        # float64 has every number of these dtypes.
        assert torch.equal(torch.from_numpy(read.astype("float64")), tensor.detach().double())


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "alpha_pattern": {"up": 3}, "rank_pattern": {"up": 2}}, {"use_dora": True}]
)
def test_a_model_of_peft_is_its_saved_folder(tmp_path, options):
    model = adapted(1, **options)
    model.save_pretrained(tmp_path / "saved")
    torch.manual_seed(0)
    base = Transformer()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    on_base = inspect(tmp_path / "saved", tmp_path / "base.safetensors")
    assert figures(to_json(inspect(model, base))) == figures(to_json(on_base))
    assert figures(to_json(inspect(model))) == figures(to_json(inspect(tmp_path / "saved")))
    # The base that PEFT has wrapped in place is still the base.
    assert figures(to_json(inspect(model, model.base_model.model))) == figures(to_json(on_base))
    state, saved = open_adapter(model).state_dict(), open_adapter(tmp_path / "saved").state_dict()
    assert state.keys() == saved.keys()
    assert all((state[name] == saved[name]).all() for name in saved)


def test_reports_of_peft_models_are_those_of_their_folders(tmp_path):
    models = [adapted(seed) for seed in (1, 2)]
    folders = [tmp_path / str(seed) for seed in (1, 2)]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    assert figures(to_json(compare(models))) == figures(to_json(compare(folders)))
    assert compare(models).paths == ("PeftModel", "PeftModel (2)")
    resized, expected = resize(models[0], rank=2), resize(folders[0], tmp_path / "small", rank=2)
    # Only where a model is saved does PEFT add the class of its base.
    given, saved = (without_model(report) for report in (resized, expected))
    assert saved["config"].pop("auto_mapping")["base_model_class"] == "Transformer"
    assert given["config"].pop("auto_mapping") is None
    assert given == saved
    torch.manual_seed(0)
    extracted = extract(Transformer(), models[0], rank=2)
    assert extracted.sources == ("Transformer", "PeftModel")
    assert extracted.complete


def test_a_written_adapter_is_loaded_by_peft(tmp_path):
    from peft import set_peft_model_state_dict

    torch.manual_seed(0)
    base, tuned = Transformer(), Transformer()
    report = extract(base, tuned, rank=4, include=TARGETS)
    model = get_peft_model(Transformer(), LoraConfig(**report.config))
    state = {name: torch.from_numpy(array) for name, array in report.adapter.state_dict().items()}
    loaded = set_peft_model_state_dict(model, state)
    assert not loaded.unexpected_keys
    update = report.adapter.layers[0].update().to_dense()
    layer = model.base_model.model.get_submodule(report.adapter.layers[0].name)
    assert torch.allclose(layer.get_delta_weight("default"), torch.from_numpy(update).float(), atol=1e-6)


def test_the_active_adapter_is_taken():
    model = adapted(1)
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS))
    assert {layer.rank for layer in inspect(model).layers} == {4}
    model.set_adapter("other")
    assert {layer.rank for layer in inspect(model).layers} == {2}
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"of which 2 are active.*set_adapter"):
        inspect(model)


def test_a_merged_model_is_a_checkpoint():
    torch.manual_seed(0)
    base = Transformer()
    merged = adapted(1).merge_and_unload()
    assert {layer.numerical_rank for layer in inspect(merged, base).layers if layer.norm} == {4}


def test_tensors_without_numbers_name_the_way_out():
    with torch.device("meta"):
        model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"^state_dict\['weight'\] is a tensor on meta.*load its weights"):
        open_checkpoint(model)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match=r"sparse.*to_dense"):
            open_checkpoint({"weight": torch.eye(3, dtype=dtype).to_sparse()})


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
        LoHaConfig(r=2, target_modules=TARGETS),
        OFTConfig(oft_block_size=4, target_modules=TARGETS),
        IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_below_an_adapter_of_any_kind_is_the_base(config):
    torch.manual_seed(0)
    base = Transformer()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    tensors = open_checkpoint(get_peft_model(base, config)).tensors
    assert tensors.keys() == open_checkpoint(state).tensors.keys()
    assert all(torch.equal(torch.from_numpy(tensors[name].read()), state[name]) for name in tensors)
