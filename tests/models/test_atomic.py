import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lowrank_core.models.files import atomic
from lowrank_core.models.files.atomic import check_replaceable, replacing
from lowrank_core.models.files.streams import header_size, stream_tensors
from lowrank_core.models.operations.extraction import extract
from tests.models.models_on_disk import checkpoint_pair, fingerprint


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("exchange", [True, False])
def test_the_old_output_is_replaced_at_the_end(tmp_path, monkeypatch, folder, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    path = tmp_path / "out"
    for content in ("old", "new"):
        with replacing(path, folder=folder) as temporary:
            assert (content == "new") == path.exists()
            (temporary / "file" if folder else temporary).write_text(content)
        assert (path / "file" if folder else path).read_text() == content
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_the_old_output_and_nothing_of_the_new(tmp_path, folder):
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such step")
def test_on_linux_the_old_folder_and_the_new_one_change_places_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    monkeypatch.setattr(Path, "replace", lambda self, _: pytest.fail(f"{self.name} was moved"))
    with replacing(path, folder=True) as temporary:
        (temporary / "file").write_text("new")
    assert (path / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_failed_move_restores_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    (path / "file").write_text("old")
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
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


@pytest.mark.parametrize("names", [None, ["file"]])
def test_a_link_to_itself_is_refused(tmp_path, names):
    link = tmp_path / "out"
    link.symlink_to(link)
    with pytest.raises(FileExistsError, match="leads to itself"):
        check_replaceable(link, names, force=True)


def test_only_files_and_folders_of_their_own_kind_are_replaced(tmp_path):
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
    with pytest.raises(FileExistsError, match=r"other files than are written \(thesis.tex\)"):
        check_replaceable(folder, own, force=True)
    with pytest.raises(FileNotFoundError, match="does not exist: make it first"):
        check_replaceable(tmp_path / "missing" / "out", own, force=False)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    # Whoever runs the tests as root may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="may not be written to: choose another"):
        check_replaceable(tmp_path / "out", None, force=False)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
@pytest.mark.parametrize("stage", ["layers", "padding", "renaming"])
def test_a_killed_process_leaves_the_old_adapter_whole(tmp_path, rng, out, stage):
    paths, _ = checkpoint_pair(tmp_path, rng)
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path

        from lowrank_core.models.files import atomic
        from lowrank_core.models.operations import storing
        from lowrank_core.models.operations.extraction import extract

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        base, tuned, out, stage = sys.argv[1:]
        extract(base, tuned, out, rank=2)
        print("written", flush=True)
        if stage == "padding":
            storing._padded = die
        if stage == "renaming":
            atomic._exchange = Path.replace = die
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


@pytest.mark.skipif(os.name != "posix", reason="process IDs cannot be checked on this system")
@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_of_a_killed_process_are_removed_by_the_next_run(tmp_path, folder):
    path = tmp_path / "out"
    killed, under_way = (writing_process(path, folder) for _ in range(2))
    try:
        killed.kill()
        killed.communicate()
        elsewhere = f".out.00000000-{killed.pid}-00000000.part"
        others = [tmp_path / name for name in ("other", ".out.part", elsewhere)]
        for other in others:
            other.touch()
        with replacing(path, folder=folder) as temporary:
            (temporary / "file" if folder else temporary).write_text("new")
        # What the running process writes remains, as does what a process of another machine may be writing.
        left = {entry.name for entry in tmp_path.iterdir()} - {path.name} - {other.name for other in others}
        assert [re.sub(r"\.[0-9a-f]{8}-(\d+)-[0-9a-f]{8}\.", r".\1.", name) for name in left] == [
            f".out.{under_way.pid}.part"
        ]
        assert all(other.exists() for other in others)
    finally:
        under_way.kill()
        under_way.communicate()
    with replacing(path, folder=folder) as temporary:
        (temporary / "file" if folder else temporary).write_text("new")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, *(other.name for other in others)}


def writing_process(path, folder):
    """Return a process that has written half of an output, and waits."""
    script = """
import sys
from pathlib import Path
from lowrank_core.models.files.atomic import replacing

with replacing(Path(sys.argv[1]), folder=sys.argv[2] == "True") as temporary:
    (temporary / "file" if temporary.is_dir() else temporary).write_text("half of the n")
    print("half", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(path), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    return process


def test_the_last_of_two_runs_to_one_output_in_one_process_is_the_output(tmp_path):
    path = tmp_path / "out"
    with replacing(path, folder=False) as first:
        first.write_text("first")
        with replacing(path, folder=False) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"No space left on device, for '.*out': 13 bytes of it were written, and [\d,]+ bytes are free"),
        (errno.EDQUOT, r"uota exceeded, for '.*out': 13 bytes of it were written; make space"),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_a_full_disk_names_the_output_and_sizes(tmp_path, code, message, folder):
    path = tmp_path / "out"

    def write():
        with replacing(path, folder=folder) as temporary:
            (temporary / "file" if folder else temporary).write_text("half of the n")
            raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=message) as raised:
        write()
    assert raised.value.errno == code
    assert not list(tmp_path.iterdir())


def test_another_error_of_the_system_remains_as_it_is(tmp_path):
    error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output") as raised, replacing(tmp_path / "out", folder=False):
        raise error
    assert raised.value is error


@pytest.mark.skipif(os.name != "posix", reason="no limit of file sizes on this system")
def test_a_tensor_beyond_the_largest_file_names_the_output(tmp_path):
    import resource

    path, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        with replacing(path, folder=False) as temporary, stream_tensors(temporary, ["a"], {}) as stream:
            stream.add("a", np.zeros(100_000))

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"File too large, for '.*out': 4,096 bytes of it were written, of at least 80\d,\d+ that"
        ):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="no limit of file sizes on this system")
@pytest.mark.parametrize("size", [0, 7_000])
def test_of_two_outputs_the_one_that_does_not_fit_is_named(tmp_path, size):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    needed = f"up to {size:,}" if size else f"at least {header_size(['a'], {}) + 8 * 800:,}"

    def write():
        with (
            replacing(tmp_path / "large", folder=False, size=size) as large,
            stream_tensors(large, ["a"], {}) as first,
            replacing(tmp_path / "small", folder=False) as small,
            stream_tensors(small, ["a"], {}) as second,
        ):
            second.add("a", np.zeros(10))
            first.add("a", np.zeros(800))

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"for '.*large': 4,096 bytes of it were written, of {needed}"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def contents(path):
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
