import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from lowrank_core.models.files import writing
from lowrank_core.models.files.writing import check_replaceable, replacing, stream_tensors
from lowrank_core.models.operations.extraction import extract
from tests.models.models_on_disk import checkpoint_pair, fingerprint

TENSORS = {
    "double": np.arange(6.0).reshape(2, 3),
    "single": np.full((3, 1, 2), 1.5, np.float32),
    "scalar": np.array(7.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "brain": np.array([1.0, -2.0, 3.0], ml_dtypes.bfloat16),
    "half": np.array([0.1], np.float16),
    "flags": np.array([True, False]),
}


def write(path, tensors, keys=None, metadata=None):
    with stream_tensors(path, tensors if keys is None else keys, metadata or {}) as stream:
        for key, tensor in tensors.items():
            stream.add(key, tensor)


def test_safetensors_itself_reads_what_was_streamed(tmp_path):
    path = tmp_path / "file.safetensors"
    write(path, TENSORS, [*TENSORS, "never added"], {"format": "pt"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        assert found[key].tobytes() == tensor.tobytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_torch_reads_it_too(tmp_path):
    torch_file = pytest.importorskip("safetensors.torch")
    path = tmp_path / "file.safetensors"
    write(path, TENSORS)
    found = torch_file.load_file(path)
    assert found["brain"].float().tolist() == [1.0, -2.0, 3.0]
    assert found["double"].numpy().tolist() == TENSORS["double"].tolist()


def test_strided_foreign_and_read_only_arrays(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "every other": np.arange(10.0)[::2],
        "big-endian": np.arange(3).astype(">f8"),
        "broadcast": np.broadcast_to(np.float64(2), (3, 2)),
    }
    write(path, tensors)
    for key, tensor in load_file(path).items():
        assert np.array_equal(tensor, tensors[key])


def test_metadata_may_grow_by_a_few_entries(tmp_path):
    path = tmp_path / "file.safetensors"
    with stream_tensors(path, ["a"], {}) as stream:
        stream.add("a", TENSORS["single"])
        stream.metadata["ss_network_dim"] = "Dynamic"
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"ss_network_dim": "Dynamic"}


def test_names_of_any_script_and_length(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = dict.fromkeys(("层.0", '"quoted"\n', "x" * 3000, *map(str, range(500))), TENSORS["single"])
    write(path, tensors)
    assert load_file(path).keys() == tensors.keys()


def test_two_layers_of_one_name_and_tensors_out_of_order(tmp_path):
    with stream_tensors(tmp_path / "file", ["a", "b"], {}) as stream:
        stream.add("a", TENSORS["half"])
        with pytest.raises(ValueError, match="'a' would be written twice"):
            stream.add("a", TENSORS["half"])
        with pytest.raises(ValueError, match="'b' would not be aligned"):
            stream.add("b", TENSORS["single"])


def test_a_header_beyond_its_room(tmp_path):
    with (
        pytest.raises(ValueError, match="the header takes"),
        stream_tensors(tmp_path / "file", [], {}) as stream,
    ):
        stream.metadata["long"] = "x" * 10_000


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("exchange", [True, False])
def test_what_was_there_is_replaced_at_the_end_alone(tmp_path, monkeypatch, folder, exchange):
    if not exchange:
        monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    path = tmp_path / "out"
    for content in ("old", "new"):
        with replacing(path, folder=folder) as temporary:
            assert (content == "new") == path.exists()
            (temporary / "file" if folder else temporary).write_text(content)
        assert (path / "file" if folder else path).read_text() == content
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_the_old_and_no_trace_of_the_new(tmp_path, folder):
    path = tmp_path / "out"
    with replacing(path, folder=folder) as temporary:
        (temporary / "file" if folder else temporary).write_text("old")
    before = fingerprint(path)

    def fail():
        with replacing(path, folder=folder) as temporary:
            (temporary / "file" if folder else temporary).write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert fingerprint(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_move_that_fails_between_the_two_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    (path / "file").write_text("old")
    monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: real(self, to) if ".part" not in self.name else refuse())

    def refuse():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), replacing(path, folder=True):
        pass
    assert (path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "store" / "real")
    with replacing(tmp_path / "out", folder=False) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "store" / "real").read_text() == "new"


def test_what_may_be_replaced(tmp_path):
    own = ("config", "weights")
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    for name in (*own, "README.md"):
        (folder / name).touch()
    check_replaceable(tmp_path / "new", own, force=False)
    check_replaceable(folder, own, force=True)
    check_replaceable(file, None, force=True)
    for path, names in ((folder, own), (file, None)):
        with pytest.raises(FileExistsError, match="exists already: --force"):
            check_replaceable(path, names, force=False)
    with pytest.raises(FileExistsError, match="is a folder, where a file is to be written"):
        check_replaceable(folder, None, force=True)
    with pytest.raises(FileExistsError, match="is a file, where a folder is to be written"):
        check_replaceable(file, own, force=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds other files than an adapter's \(thesis.tex\)"):
        check_replaceable(folder, own, force=True)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_replaceable(tmp_path / "missing" / "out", own, force=False)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    # Whoever runs the tests as root may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="may not be written to: choose another"):
        check_replaceable(tmp_path / "out", None, force=False)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
@pytest.mark.parametrize("stage", ["layers", "padding", "renaming"])
def test_a_kill_in_the_middle_leaves_the_old_adapter_whole(tmp_path, rng, out, stage):
    paths, _ = checkpoint_pair(tmp_path, rng)
    script = textwrap.dedent(
        """
        import os, signal, sys
        from lowrank_core.models.files import writing
        from lowrank_core.models.operations import pipeline as layerwise
        from lowrank_core.models.operations.extraction import extract

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        base, tuned, out, stage = sys.argv[1:]
        extract(base, tuned, out, rank=2)
        print("written", flush=True)
        if stage == "padding":
            layerwise.pad_rank = die
        if stage == "renaming":
            writing._exchange = writing.Path.replace = die
        ranks = {"layers.0.q_proj": 1, "layers.0.up": 2, "layers.1.q_proj": 3}
        after = die if stage == "layers" else None
        extract(base, tuned, out, rank=ranks, uniform=True, force=True, progress=after)
        """
    )
    command = [sys.executable, "-c", script, *map(str, paths), str(tmp_path / out), stage]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert run.stdout == "written\n"
    expected = tmp_path / ("expected" + Path(out).suffix)
    extract(*paths, expected, rank=2)
    assert contents(tmp_path / out) == contents(expected)


def contents(path):
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
