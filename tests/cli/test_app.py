"""The program as a whole: exit codes, one line for what went wrong, and what a missing extra says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_core import __version__
from lowrank_core.cli.app import main

RUN = "import sys; from lowrank_core.cli.app import main; sys.exit(main(sys.argv[1:]))"


def program(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{RUN}", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["demo", "--frobnicate"], "No such option: --frobnicate"),
        (["demo", "--size", "3"], "--size"),
        (["demo", "--size", "many"], "--size"),
        (["demo", "--ranks", "2;4"], "whole numbers separated by commas, such as 2,4,8; got '2;4'"),
        (["demo", "--ranks", ""], "whole numbers separated by commas"),
        (["demo", "--ranks", "0,2"], "between 1 and the size, 64; got 0"),
        (["demo", "--ranks", "2,65"], "between 1 and the size, 64; got 65"),
        (["demo", "--alpha", "0"], "alpha must be finite and positive; got 0.0"),
        (["demo", "--alpha", "nan"], "alpha must be finite and positive; got nan"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--figure", "demo.txt"], "'demo.txt': its ending says the format; take .png, .pdf, .svg"),
        (["demo", "--figure", "-"], "'-': its ending says the format"),
        (["demo", "--json", "no/such/demo.json"], "the folder 'no/such' for"),
        (["demo", "--json", "."], "is a folder"),
        (["inspect"], "Missing argument 'PATH'"),
        (["inspect", "no-such-adapter"], "no-such-adapter"),
        (["inspect", "x", "--json", "-", "--csv", "-"], "only one file can go to standard output"),
        (["inspect", "x", "--ranks", "two"], "whole numbers separated by commas, such as 2,4,8; got 'two'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lowrank: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device on this system")
def test_a_full_disk_is_one_line_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alpha", "--rank", "8", "--alpha", "16", "--json", "/dev/full"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "No space left on device, for '/dev/full': 0 bytes of it were written" in captured.err


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "lowrank_core", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f"lowrank {__version__}\n"


def test_the_package_as_a_module_says_what_to_install():
    code = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('lowrank_core', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert 'pip install "lowrank_core[cli]"' in ran.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lowrank {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        ([], "lowrank inspect TUNED --base BASE"),
        (["--help"], "lowrank inspect TUNED --base BASE"),
        (["demo", "--help"], "lowrank demo --size 32 --ranks 1,2,4,8 --seed 7"),
        (["inspect", "--help"], "lowrank inspect tuned/ --base base/ --ranks 4,16,64"),
        (["extract", "--help"], "lowrank extract base/ tuned/ my-adapter/ --rank 32"),
        (["resize", "--help"], "lowrank resize my-adapter/ smaller/ --rank 8"),
        (["merge", "--help"], "lowrank merge one/ two.safetensors both/ --weights 1,-0.5 --rank 16"),
    ],
)
def test_every_help_text_has_an_example_on_a_line_of_its_own(
    arguments: list[str], example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert any(line.strip().startswith(example) for line in captured.out.splitlines())
    assert captured.err == ""


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("typer", ["demo"]), ("rich", ["demo"]), ("matplotlib", ["demo", "--figure", "demo.png"])],
)
def test_a_missing_extra_names_the_line_that_installs_it(missing: str, arguments: list[str]) -> None:
    run = program(*arguments, before=f"import sys; sys.modules[{missing!r}] = None")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        f'lowrank: the command line needs {missing}, which is not installed: pip install "lowrank_core[cli]"\n'
    )


def test_a_missing_safetensors_names_the_line_that_installs_it(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    run = program("inspect", str(tmp_path), before="import sys; sys.modules['safetensors'] = None")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert 'pip install "lowrank_core[models]"' in run.stderr


def test_a_bug_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("no module", name="lowrank_core.absent")

    monkeypatch.setattr("lowrank_core.cli.demo.experiments.run", broken)
    with pytest.raises(ModuleNotFoundError, match="no module"):
        main(["demo"])


def test_the_demo_loads_no_matplotlib_without_a_figure() -> None:
    run = program("demo", "--size", "4", before="import sys; sys.modules['matplotlib'] = None")
    assert run.returncode == 0, run.stderr


def test_a_message_of_several_lines_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise ValueError("first line\n  second line")

    monkeypatch.setattr("lowrank_core.cli.demo.experiments.run", refused)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "lowrank: first line second line\n"


def test_a_warning_is_one_line_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size", "8", "--ranks", "2", "--alpha", "2000"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("lowrank: warning: gradient descent diverged at learning_rate=0.001")
    assert all(line.startswith("lowrank: warning: ") for line in captured.err.splitlines())
    assert "diverged" in captured.out
    assert "UNDECIDED" in captured.out


def test_an_interrupt_has_its_usual_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowrank_core.cli.demo.experiments.run", interrupted)
    assert main(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["alpha", "--rank", "8", "--alpha", "16", "--json", "all.json"]])
def test_a_closed_pipe_has_its_usual_exit_code(arguments, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *arguments], stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    # The file is written all the same.
    assert (tmp_path / "all.json").is_file() == ("all.json" in arguments)
