"""Names of the files of a checkpoint that is written like another."""

from pathlib import Path

import pytest

from lowrank_core.models.files.checkpoint_files import files_like
from lowrank_core.models.files.checkpoints import Checkpoint
from lowrank_core.models.files.tensors import StoredTensor


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("model.safetensors.index.json", "model.safetensors.index.json"),
        ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
        ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_the_index_is_named_as_the_shards_are(name, written):
    tensors = {"a": StoredTensor(Path("a.safetensors"), "a", (1,), "float32")}
    assert files_like(Checkpoint(Path(name), tensors), []).index == written


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("pytorch_model.bin", "model"),
        ("pytorch_model.fp16.bin", "model.fp16"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model"),
        ("consolidated.00.pth", "consolidated.00"),
        ("style.safetensors", "style"),
        ("weights.gguf", "model"),
    ],
)
def test_a_shard_has_the_name_of_its_file_in_the_base(name, written):
    base = Checkpoint(Path(name), {key: StoredTensor(Path(name), key, (1,), "float32") for key in "ab"})
    assert files_like(base, ["c"]).shards == {f"{written}.safetensors": ["a", "b", "c"]}


def test_shards_of_several_files_are_not_merged_into_one():
    files = [Path(f"consolidated.{place:02}.pth") for place in range(2)]
    tensors = {file.stem: StoredTensor(file, file.stem, (1,), "float32") for file in files}
    shards = files_like(Checkpoint(Path("consolidated.index.json"), tensors), []).shards
    assert shards == {f"{file.stem}.safetensors": [file.stem] for file in files}
