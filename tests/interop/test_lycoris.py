"""Every kind of update that LyCORIS trains: what is read from its file is what its own modules add to the weight."""

import logging

import numpy as np
import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors.torch import save_file
from torch import nn

from lowrank_core.models import extract, inspect
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.with_base import open_with_base
from tests.models.models_on_disk import written_updates

SETTINGS = {"linear_dim": 4, "linear_alpha": 2, "conv_dim": 4, "conv_alpha": 2}
WITHOUT_BASE = {
    "locon": ("locon", {}),
    "locon with a Tucker core": ("locon", {"use_tucker": True}),
    "locon under rsLoRA": ("locon", {"rs_lora": True}),
    "locon with a scalar": ("locon", {"use_scalar": True}),
    "loha": ("loha", {}),
    "loha of a low rank": ("loha", {"linear_dim": 2, "conv_dim": 2}),
    "loha with Tucker cores": ("loha", {"use_tucker": True, "linear_dim": 2, "conv_dim": 2}),
    "loha with a scalar": ("loha", {"use_scalar": True}),
    "loha under rsLoRA": ("loha", {"rs_lora": True}),
    "lokr": ("lokr", {"factor": 4}),
    "lokr whole": ("lokr", {"factor": 4, "full_matrix": True}),
    "lokr with both sides split": ("lokr", {"factor": 4, "decompose_both": True, "linear_dim": 1, "conv_dim": 1}),
    "lokr with a split side": ("lokr", {"factor": 2, "linear_dim": 1, "conv_dim": 1}),
    "lokr with a Tucker core": ("lokr", {"factor": 2, "use_tucker": True, "linear_dim": 1, "conv_dim": 1}),
    "lokr with a scalar": ("lokr", {"factor": 4, "use_scalar": True}),
    "full": ("full", {}),
}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(16, 12)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 10, 1)


def trained(path, algorithm, options, prefix="lora_unet_"):
    """Give LyCORIS' modules random parameters, save them, and return the base's tensors and the modules, in float64."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    torch.manual_seed(0)
    LycorisNetwork.apply_preset({"target_module": [Small.__name__], "target_name": [".*"]})
    model = Small()
    base = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    network = create_lycoris(model, 1.0, algo=algorithm, **SETTINGS | options)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    state = {
        key.replace("lycoris_", prefix, 1): value.detach().clone().contiguous()
        for key, value in network.state_dict().items()
    }
    save_file(state, path)
    return base, {module.lora_name.replace("lycoris_", prefix, 1): module.double() for module in network.loras}


def difference(module):
    """Return what a module adds to the weight; LoHa's and LoKr's get_diff_weight apply the scale twice."""
    if module.name in ("loha", "kron"):
        update = module.get_weight(module.shape) * module.scalar
    else:
        update = module.get_diff_weight()[0]
    return update.detach().flatten(1).double().numpy()


def dense(layer):
    update = layer.update()
    return update.astype(float) if isinstance(update, np.ndarray) else update.to_dense()


@pytest.mark.parametrize("kind", WITHOUT_BASE)
def test_a_layers_update_is_that_of_lycoris(tmp_path, kind):
    path = tmp_path / "lycoris.safetensors"
    _, modules = trained(path, *WITHOUT_BASE[kind])
    adapter = open_adapter(path)
    layers = {layer.name: layer for layer in adapter.layers}
    assert set(layers) == set(modules)
    assert {other.name.rpartition(".")[2] for other in adapter.others} <= {"diff_b"}
    for name, module in modules.items():
        # The tensors of the file are those of the modules, in float32, and a scalar is multiplied into one of them.
        assert np.allclose(dense(layers[name]), difference(module), rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("kind", ["locon with a Tucker core", "loha", "loha with Tucker cores", "lokr", "full"])
def test_lycoris_reads_what_is_written_of_it(tmp_path, kind):
    path, out = tmp_path / "lycoris.safetensors", tmp_path / "lora.safetensors"
    base, modules = trained(path, *WITHOUT_BASE[kind], prefix="lycoris_")
    save_file(base, tmp_path / "base.safetensors")
    # The base tells the kernel of a convolution whose factors are flattened.
    extract(tmp_path / "base.safetensors", path, out, rank=3)
    network, _ = create_lycoris_from_weights(1.0, str(out), Small())
    assert {module.lora_name for module in network.loras} == set(modules)
    for module in network.loras:
        U, values, Vt = np.linalg.svd(difference(modules[module.lora_name]), full_matrices=False)
        written = difference(module.double())
        assert np.linalg.norm(written - U[:, :3] * values[:3] @ Vt[:3]) <= 1e-5 * values[0], module.lora_name


WITH_BASE = {
    "dora": ("locon", {"dora_wd": True}),
    "dora on the inputs": ("locon", {"dora_wd": True, "wd_on_output": False}),
    "dora of a loha": ("loha", {"dora_wd": True}),
    "dora of a lokr": ("lokr", {"dora_wd": True, "factor": 4}),
    "glora": ("glora", {}),
    "oft": ("diag-oft", {}),
    "oft with a constraint": ("diag-oft", {"constraint": 0.01}),
    "oft, rescaled": ("diag-oft", {"rescaled": True}),
    "boft": ("boft", {}),
    "boft, rescaled": ("boft", {"rescaled": True, "constraint": 0.02}),
    "ia3": ("ia3", {}),
    "ia3 on the inputs": ("ia3", {"train_on_input": True}),
}


class PowersOfTwo(nn.Module):
    """Modules whose outputs BOFT can divide."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(12, 16)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 4, 1)


def merged_differences(base, modules):
    """Return what each module changes in the weight by its own merge."""
    differences = {}
    for name, module in modules.items():
        weight = base[name.rpartition("_")[2] + ".weight"].double()
        if module.name in ("loha", "kron"):
            merged = module.apply_weight_decompose(weight + module.get_weight(module.shape) * module.scalar)
        else:
            merged = module.get_merged_weight()[0]
        differences[name] = (merged - weight).detach().flatten(1).double().numpy()
    return differences


@pytest.mark.parametrize("kind", WITH_BASE)
def test_with_its_base_an_update_is_what_lycoris_merges(tmp_path, kind, monkeypatch):
    monkeypatch.setitem(globals(), "Small", PowersOfTwo if kind.startswith("boft") else Small)
    path = tmp_path / "lycoris.safetensors"
    base, modules = trained(path, *WITH_BASE[kind])
    save_file(base, tmp_path / "base.safetensors")
    for module in modules.values():
        # LyCORIS inverts in float32, whatever the rest is stored in.
        for each in (module, module.org_module[0]):
            each.to(torch.float32 if "oft" in kind else torch.float64)
    differences = merged_differences(base, modules)
    layers = {layer.name: layer for layer in open_with_base(path, tmp_path / "base.safetensors").layers}
    assert set(layers) == set(modules)
    for name, update in differences.items():
        assert np.allclose(dense(layers[name]), update, rtol=1e-5, atol=3e-6), name
    assert set(inspect(path).failures) == set(modules)
    inspection = inspect(path, tmp_path / "base.safetensors")
    assert (inspection.failures, inspection.totals.layers) == ({}, 3)
    extract(tmp_path / "base.safetensors", path, tmp_path / "out.safetensors", rank=2)
    for name, factors in written_updates(tmp_path / "out.safetensors").items():
        U, values, Vt = np.linalg.svd(differences[name], full_matrices=False)
        assert np.linalg.norm(factors - U[:, :2] * values[:2] @ Vt[:2]) <= 1e-4 * values[0]
