"""Parameters that PEFT targets by name: what is read and written is what PEFT's own ParamWrapper applies."""

import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lowrank_core.models import merge, open_adapter, resize

EXPERTS, HIDDEN, INNER = 3, 6, 4
CASES = [
    {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    {"target_parameters": ["gate_up_proj", "down_proj"]},
    {"target_parameters": ["blocks.0.experts.down_proj", "down_proj"]},
    {"target_parameters": ["experts.gate_up_proj"], "use_rslora": True},
    {"target_parameters": ["router.weight", "experts.down_proj"]},
    {
        "target_parameters": ["gate_up_proj", "down_proj"],
        "rank_pattern": {"experts.gate_up_proj": 3, "experts": 5},
        "alpha_pattern": {".*down_proj": 7},
        "target_modules": ["q_proj"],
    },
    {"target_parameters": ["experts.down_proj"], "target_modules": r".*\.q_proj"},
]


class Experts(nn.Module):
    """Weights of (experts, out, in), as transformers has them; of (experts, in, out) where it is transposed."""

    def __init__(self, *, transposed):
        super().__init__()
        self.is_transposed = transposed
        shapes = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(EXPERTS, *(shape[::-1] if transposed else shape))))

    def forward(self, x):
        return x


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, HIDDEN))

    def forward(self, x):
        return x


class Block(nn.Module):
    def __init__(self, *, transposed):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN)
        self.router, self.experts = Router(), Experts(transposed=transposed)


class Model(nn.Module):
    def __init__(self, *, transposed=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block(transposed=transposed) for _ in range(2))


def save(folder, config, *, transposed=False, seed=0):
    torch.manual_seed(seed)
    config = {"r": 2, "lora_alpha": 5, "target_modules": []} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(Model(transposed=transposed), LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
        model.save_pretrained(folder)


def applied_updates(folder, *, transposed=False):
    """Return what PEFT adds to each weight, by the name of the layer."""
    with warnings.catch_warnings():
        # PEFT applies patterns of parameters, and says that they match no module.
        warnings.filterwarnings("ignore", message=".*did not match any targeted module")
        model = PeftModel.from_pretrained(Model(transposed=transposed), folder).double()
    updates = {}
    for name, module in model.named_modules():
        if getattr(module, "lora_A", None) and hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").detach().numpy()
            layer = name.removeprefix("base_model.model.").partition(".base_layer")[0]
            layer = (
                f"{layer}.{module.parameter_name}".removesuffix(".weight")
                if hasattr(module, "parameter_name")
                else layer
            )
            parts = {f"{layer}[{i}]": part for i, part in enumerate(delta)} if delta.ndim == 3 else {layer: delta}
            assert not updates.keys() & parts.keys()
            updates |= parts
    return updates


def read_updates(folder):
    return {layer.name: layer.update().to_dense() for layer in open_adapter(folder).layers}


@pytest.mark.parametrize("config", CASES)
@pytest.mark.parametrize("transposed", [False, True])
def test_each_expert_is_read_as_peft_applies_it(tmp_path, config, transposed):
    save(tmp_path, config, transposed=transposed)
    expected, read = applied_updates(tmp_path, transposed=transposed), read_updates(tmp_path)
    assert read.keys() == expected.keys()
    for name, update in read.items():
        # Whether the base's weights are (in, out) is not in the file: the map is.
        other = expected[name].T if transposed and "[" in name else expected[name]
        assert np.allclose(update, other, atol=1e-5)


@pytest.mark.parametrize("options", [{"rank": 1}, {}, {"uniform": True}, {"rule": "rslora"}])
@pytest.mark.parametrize("config", CASES)
def test_what_resize_writes_peft_reads(tmp_path, config, options):
    save(tmp_path / "old", config)
    report = resize(tmp_path / "old", tmp_path / "new", **options)
    assert not report.failures
    before, after = applied_updates(tmp_path / "old"), applied_updates(tmp_path / "new")
    assert after.keys() == before.keys()
    for name, update in before.items():
        U, values, Vt = np.linalg.svd(update, full_matrices=False)
        rank = options.get("rank", len(values))
        assert np.allclose(after[name], (U[:, :rank] * values[:rank]) @ Vt[:rank], atol=1e-4 * values[0])


@pytest.mark.parametrize("kept", ["gate_up_proj", "down_proj"])
def test_one_parameter_alone_is_written_under_the_names_that_peft_gives_it_then(tmp_path, kept):
    save(tmp_path / "old", CASES[0])
    resize(tmp_path / "old", tmp_path / "new", include=[f"{kept}[[]?]"])
    before, after = applied_updates(tmp_path / "old"), applied_updates(tmp_path / "new")
    assert after.keys() == {name for name in before if kept in name}
    for name, update in after.items():
        assert np.allclose(update, before[name], atol=1e-5)


def test_merge_of_one_parameter_and_of_two(tmp_path):
    save(tmp_path / "first", {"target_parameters": ["gate_up_proj"]})
    save(tmp_path / "second", CASES[0] | {"r": 3}, seed=1)
    merge([tmp_path / "first", tmp_path / "second"], tmp_path / "sum", weights=[2.0, -1.0])
    first, second, total = (applied_updates(tmp_path / name) for name in ("first", "second", "sum"))
    assert total.keys() == second.keys()
    for name, update in total.items():
        assert np.allclose(update, 2.0 * first.get(name, 0.0) - second[name], atol=1e-4)
