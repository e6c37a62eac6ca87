import json
import shutil

import numpy as np
import pytest

from lowrank_core.models.formats import open_adapter

PEFT = {"proj.lora_A.weight": np.ones((2, 6), np.float32), "proj.lora_B.weight": np.ones((4, 2), np.float32)}
KOHYA = {"lora_te_x.lora_down.weight": np.ones((2, 6)), "lora_te_x.lora_up.weight": np.ones((4, 2))}


def test_an_adapter_is_found_by_folder_file_configuration_or_the_folder_above(write_peft):
    path = write_peft(PEFT, "outer/inner")
    opened = open_adapter(path)
    assert opened.format == "peft"
    for other in (path / "adapter_model.safetensors", path / "adapter_config.json", path.parent, str(path)):
        assert open_adapter(other) == opened


def test_a_kohya_file_is_recognised_by_its_content_and_found_in_its_folder(write_file):
    path = write_file(KOHYA, "some/name.safetensors")
    assert open_adapter(path).format == "kohya"
    assert open_adapter(path.parent) == open_adapter(path)


def test_a_kohya_file_with_pefts_name_is_read_as_kohyas(write_file):
    assert open_adapter(write_file(KOHYA, "adapter_model.safetensors")).format == "kohya"


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"peft_type": "LOHA"}])
def test_a_configuration_belongs_to_adapter_model_safetensors_alone(write_peft, write_file, config):
    # PEFT reads no other file of the folder, and a scale from its configuration would be another file's.
    folder = write_peft(PEFT, lora_alpha=64, **config)
    named = {f"transformer.{key}": tensor for key, tensor in PEFT.items()}
    for name in ("pytorch_lora_weights.safetensors", "adapter_model_2.safetensors"):
        (layer,) = open_adapter(write_file(named, f"{folder.name}/{name}")).layers
        assert (layer.scaling, layer.scaling_source) == (1.0, "no alpha in the file: scale 1")
    alone = open_adapter(write_file(KOHYA, "alone.safetensors"))
    beside = open_adapter(write_file(KOHYA, f"{folder.name}/beside.safetensors"))
    assert [layer.scaling for layer in beside.layers] == [layer.scaling for layer in alone.layers] == [1.0]


def test_a_folder_with_several_adapters_is_refused(write_peft):
    write_peft(PEFT, "outer/one")
    with pytest.raises(ValueError, match=r"contains several adapters \(one, two\)"):
        open_adapter(write_peft(PEFT, "outer/two").parent)


def test_factors_without_a_configuration_have_no_scale(write_peft):
    path = write_peft(PEFT)
    (path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json.*the scale of the update is unknown"):
        open_adapter(path)


def test_a_configuration_without_factors_names_the_missing_file(write_peft):
    path = write_peft(PEFT)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        open_adapter(path)
    (path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model.bin' is empty"):
        open_adapter(path)


def test_the_configuration_names_another_type_of_adapter(write_peft):
    path = write_peft({"proj.miss_block": np.ones((2, 2), np.float32)}, peft_type="MISS")
    with pytest.raises(ValueError, match="peft_type 'MISS'"):
        open_adapter(path)


def test_a_checkpoint_is_not_an_adapter(write_file):
    path = write_file({"a.weight": np.ones((2, 2))})
    with pytest.raises(ValueError, match="is a model checkpoint, not an adapter"):
        open_adapter(path.parent)
    with pytest.raises(ValueError, match=r"contains no LoRA factors \(its first tensor is 'a.weight'\)"):
        open_adapter(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^no adapter in"):
        open_adapter(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no file .*absent"):
        open_adapter(tmp_path / "absent")


def test_a_mutated_adapter_is_read_or_refused_with_a_message(write_peft, tmp_path, rng):
    path = write_peft(PEFT)
    files = {name: (path / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")}
    refused = 0
    for _ in range(200):
        broken = tmp_path / "broken"
        shutil.copytree(path, broken)
        name = str(rng.choice(list(files)))
        content = bytearray(files[name])
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
        (broken / name).write_bytes(
            content[: int(rng.integers(1, len(content) + 1))] if rng.random() < 0.3 else content
        )
        try:
            for layer in open_adapter(broken).layers:
                layer.update()
        except (ValueError, FileNotFoundError):
            refused += 1
        shutil.rmtree(broken)
    assert 50 < refused < 200


def test_unknown_entries_of_a_configuration_are_ignored(write_peft):
    path = write_peft(PEFT, some_new_option={"a": 1})
    assert json.loads((path / "adapter_config.json").read_text())["some_new_option"]
    assert open_adapter(path).layers[0].scaling == 4.0
