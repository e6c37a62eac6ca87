"""A run that is ended leaves nothing beside its outputs; a full disk names the output that it was, and its size."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_core.cli.app import main

RUN = "import sys; from lowrank_core.cli.app import main; sys.exit(main(sys.argv[1:]))"
# After the first layer has been written to every output.
ENDED = """
import os, signal
from lowrank_core.models.operations import pipeline
add = pipeline._add_layers
def add_and_end(stream, factored):
    add(stream, factored)
    os.kill(os.getpid(), signal.{name})
pipeline._add_layers = add_and_end
"""
posix = pytest.mark.skipif(os.name != "posix", reason="no such signals on this system")


def extracting(tuning: tuple[Path, Path], out: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Run an extraction of three ranks in a process of its own."""
    command = ["extract", *map(str, tuning), str(out), "--rank", "2,4,8", "--exclude", "embed_tokens", "--force"]
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{RUN}", *command], capture_output=True, text=True, check=False
    )


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_a_run_that_is_ended_leaves_nothing(
    tuning: tuple[Path, Path], tmp_path: Path, name: str, code: int, ending: str
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "README").write_text("mine")
    # Background jobs of some shells ignore SIGINT, and nohup SIGHUP, which Python then does too.
    handled = "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    before = f"import signal; {handled}{ENDED.format(name=name)}"
    run = extracting(tuning, folder / f"out{ending}", before)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    if name != "SIGINT":
        assert run.stderr == f"lowrank: ended by {name}\n"
    assert [path.name for path in folder.iterdir()] == ["README"]


@posix
def test_a_signal_that_is_ignored_remains_so(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + ENDED.format(name="SIGHUP")
    assert extracting(tuning, tmp_path / "out", before).returncode == 0
    assert {path.name for path in tmp_path.glob("out*")} == {"out-r2", "out-r4", "out-r8"}


@posix
def test_handlers_are_as_before_after_a_run() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["alpha", "--rank", "8", "--alpha", "16", "--quiet"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@posix
@pytest.mark.parametrize(("ending", "largest"), [("", 5000), (".safetensors", 6500)])
def test_a_full_disk_names_the_output_that_was_too_large(
    tuning: tuple[Path, Path], tmp_path: Path, ending: str, largest: int
) -> None:
    # Enough for the header and factors of rank 4, and not for those of rank 8.
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))"
    run = extracting(tuning, tmp_path / f"out{ending}", limit)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert f"File too large, for '{tmp_path}/out-r8{ending}'" in run.stderr
    written, needed = (int(number.replace(",", "")) for number in re.findall(r"(?:: |up to )([\d,]+) ", run.stderr))
    # Four layers of rank 8, with 12 + 8 and 8 + 20 rows and columns in pairs, and what is beside them.
    assert written == largest
    assert 2 * 8 * 4 * (20 + 28) < needed < 10_000
    assert not list(tmp_path.glob("*out*"))
