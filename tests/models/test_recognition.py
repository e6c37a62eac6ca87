"""What is wrong with a path or a file is said in its owner's words, and nothing that is sound is called damaged."""

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import open_adapter
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import open_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return file.getvalue()


PAGE = "is a web page, probably an error or a login page saved in its place: download the file itself again"
MISTAKES = {
    "pointer": (LFS, "is a git LFS pointer, not the file itself: fetch that with git lfs pull"),
    "empty": (b"", "is empty: fetch or save it again"),
    "page": (b"<!DOCTYPE html>\n<html><head>", PAGE),
    "page in upper case": (b"\n <HTML>", PAGE),
    "gzip": (gzip.compress(b"x"), "is compressed with gzip: unpack it first"),
    "bzip2": (bz2.compress(b"x"), "is compressed with bzip2: unpack it first"),
    "tar": (tar(), "is a tar archive: unpack it first"),
    "xz": (lzma.compress(b"x"), "is compressed with xz: unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard: unpack it first"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive: unpack it first"),
    "RAR": (b"Rar!\x1a\x07", "is a RAR archive: unpack it first"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras): save the model's weights with safetensors"),
    "array": (
        b"\x93NUMPY\x01\x00",
        "is a NumPy array without a name: save the weights with safetensors.numpy.save_file",
    ),
}


@pytest.mark.parametrize("name", [*MISTAKES])
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".bin"])
def test_a_file_without_tensors_is_called_what_it_is(tmp_path, name, suffix):
    content, message = MISTAKES[name]
    path = tmp_path / f"adapter_model{suffix}"
    path.write_bytes(content)
    for read in (open_file, open_checkpoint, open_adapter, read_json):
        with pytest.raises(ValueError, match=re.escape(f"{str(path)!r} {message}") + "($|[.;:])"):
            read(path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(write_file, monkeypatch):
    path = write_file({"a": np.ones(1)})

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"model\.safetensors' may not be read"):
        open_file(path)


def test_a_folder_is_not_a_file(tmp_path):
    for read in (open_file, read_json):
        with pytest.raises(IsADirectoryError, match="is a folder"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "org/my_adapter"])
def test_an_id_of_the_hub_is_told_to_be_downloaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for read in (open_adapter, open_checkpoint):
        with pytest.raises(FileNotFoundError) as refused:
            read(name)
        assert str(refused.value) == (
            f"no file or folder {name!r}; it looks like a Hugging Face id, of which the cache on this machine has no "
            f"copy, and files are read from the disk alone: download it first (hf download {name} --local-dir "
            f"{name.partition('/')[2]}) and give the folder"
        )


@pytest.mark.parametrize("name", ["org/model.safetensors", "a/b/c", "model", "here/name", "/org/name"])
def test_a_missing_file_is_not_called_an_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(FileNotFoundError) as refused:
        open_checkpoint(name)
    assert str(refused.value) == f"no file {name!r}"


def test_json_may_begin_with_a_byte_order_mark_and_have_numbers_of_its_own(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": NaN, "b": -Infinity, "c": 1e400}')
    assert str(read_json(path)) == "{'a': nan, 'b': -inf, 'c': inf}"


@pytest.fixture
def cache(tmp_path):
    """Return the folder of a cached model with one snapshot, whose files are links to blobs."""
    model = tmp_path / "hub" / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    save_file({"layer.weight": np.ones((2, 2), np.float32)}, model / "blobs" / "0a1b")
    snapshot = model / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(Path("..", "..", "blobs", "0a1b"))
    return model


def test_the_one_snapshot_of_a_cached_model_is_opened(cache):
    for path in (cache, cache / "snapshots", cache / "snapshots" / "c0ffee"):
        assert list(open_checkpoint(path).tensors) == ["layer.weight"]


def test_of_several_snapshots_the_one_that_main_refers_to_is_opened(cache):
    (cache / "snapshots" / "beef").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("c0ffee\n")
    assert list(open_checkpoint(cache).tensors) == ["layer.weight"]


@pytest.mark.parametrize(
    ("variable", "value"), [("HF_HUB_CACHE", "hub"), ("HF_HOME", "."), ("XDG_CACHE_HOME", "cache"), ("HOME", "home")]
)
def test_a_cached_model_is_found_by_its_id_where_huggingface_hub_keeps_it(
    cache, tmp_path, monkeypatch, variable, value
):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    if variable in {"XDG_CACHE_HOME", "HOME"}:
        parts = ["cache"] if variable == "XDG_CACHE_HOME" else ["home", ".cache"]
        above = tmp_path.joinpath(*parts, "huggingface")
        above.mkdir(parents=True)
        cache.parent.rename(above / "hub")
    monkeypatch.setenv(variable, str(tmp_path / value))
    assert list(open_checkpoint("org/name").tensors) == ["layer.weight"]


def test_several_snapshots_none_and_the_cache_itself_are_named(cache):
    (cache / "snapshots" / "beef").mkdir()
    for read in (open_checkpoint, open_adapter):
        with pytest.raises(ValueError, match=r"2 snapshots.*snapshots/beef"):
            read(cache)
        with pytest.raises(ValueError, match=r"cache of Hugging Face.*models--org--name"):
            read(cache.parent)
    for folder in ("beef", "c0ffee"):
        (cache / "snapshots" / folder).rename(cache / folder)
    with pytest.raises(ValueError, match="no snapshot: the download is incomplete"):
        open_checkpoint(cache)


def test_an_adapter_in_the_cache_is_opened(cache):
    snapshot = cache / "snapshots" / "c0ffee"
    (snapshot / "model.safetensors").unlink()
    factors = {"q.lora_A.weight": np.ones((2, 3), np.float32), "q.lora_B.weight": np.ones((4, 2), np.float32)}
    save_file(factors, snapshot / "adapter_model.safetensors")
    (snapshot / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    assert [layer.name for layer in open_adapter(cache).layers] == ["q"]
