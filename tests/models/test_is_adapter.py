"""What `open_adapter` reads is an adapter to every other function, however its path names it."""

import shutil

import numpy as np
import pytest

from lowrank_core.models import extract, inspect, open_adapter
from lowrank_core.models.formats import is_adapter
from lowrank_core.models.formats.with_base import open_base

LAYER = {"proj.lora_A.weight": np.eye(2, 6, dtype=np.float32), "proj.lora_B.weight": np.ones((4, 2), np.float32)}
KOHYA = {"lora_unet_proj.lora_down.weight": np.eye(2, 6), "lora_unet_proj.lora_up.weight": np.ones((4, 2))}
DIFFUSERS = {f"unet.{key}": factor for key, factor in LAYER.items()}


@pytest.fixture
def base(write_file):
    return write_file({"proj.weight": np.ones((4, 6), np.float32)}, "base/model.safetensors").parent


def in_the_hub_cache(write_peft, _write_file):
    write_peft(LAYER, "models--org--lora/snapshots/0123")
    return "models--org--lora"


def in_the_folder_above(write_peft, _write_file):
    write_peft(LAYER, "run/adapter")
    return "run"


def of_one_kohya_file(_write_peft, write_file):
    write_file(KOHYA, "style/style.safetensors")
    return "style"


def of_one_diffusers_file(_write_peft, write_file):
    write_file(DIFFUSERS, "style/pytorch_lora_weights.safetensors")
    return "style"


def of_a_configuration(write_peft, _write_file):
    write_peft(LAYER)
    return "adapter/adapter_config.json"


PLACES = [in_the_hub_cache, in_the_folder_above, of_one_kohya_file, of_one_diffusers_file, of_a_configuration]


@pytest.mark.parametrize("place", PLACES)
def test_each_path_to_an_adapter_is_one_everywhere(place, base, write_peft, write_file, tmp_path):
    path = tmp_path / place(write_peft, write_file)
    assert len(open_adapter(path).layers) == 1
    assert is_adapter(path)
    assert inspect(path, base).complete
    assert extract(base, path, rank=1).complete
    with pytest.raises(ValueError, match=r"is an adapter, as 'x' is"):
        open_base(path, "x")


@pytest.mark.parametrize("name", ["adapter.bin", "style.pt"])
def test_a_pickled_adapter_is_one(name, base, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / name
    torch.save({key: torch.from_numpy(factor) for key, factor in DIFFUSERS.items()}, path)
    assert is_adapter(path)
    assert inspect(path, base).complete


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "model_index.json"])
def test_a_model_with_an_adapter_in_its_folder_is_a_model(name, base, write_peft, tmp_path):
    shutil.move(base / "model.safetensors", tmp_path / "weights.safetensors")
    (base / name).write_text("{}")
    write_peft(LAYER, "base/adapter")
    assert not is_adapter(base)
    with pytest.raises(ValueError, match="is a model checkpoint, not an adapter"):
        open_adapter(base)


@pytest.mark.parametrize("files", [["a.safetensors"], ["a.safetensors", "a.fp16.safetensors"], []])
def test_a_folder_of_other_weights_or_of_none_is_not_an_adapter(files, write_file, tmp_path):
    for name in files:
        write_file({"proj.weight": np.ones((4, 6))}, f"folder/{name}")
    assert not is_adapter(tmp_path / "folder")
