"""The program: its verbs, each a module that is imported only when it runs, and groups of options."""

import subprocess
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pytest
import typer

from lowrank_core.cli import program, verbs
from lowrank_core.cli.app import main
from lowrank_core.cli.options import ungrouped

# Modules of verbs that have no entry of their own.
PARTS = {"__init__", "census"}
# What takes time to import, and what a verb may not need at all.
HEAVY = {"lowrank_core.models", "matplotlib", "ml_dtypes", "numba", "rich", "safetensors"}


def imported_by(*arguments: str) -> set[str]:
    """Modules that a run of the program imports."""
    code = (
        "import sys; from lowrank_core.cli.app import main; code = main(sys.argv[1:]); "
        "print('\\n', *sys.modules, file=sys.stderr); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


def test_every_module_of_verbs_is_a_verb() -> None:
    modules = {path.stem for path in Path(verbs.__path__[0]).glob("*.py")}
    assert modules - PARTS == set(program.VERBS)


def test_help_lists_every_verb_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for verb, summary in program.VERBS.items():
        assert [verb, *summary.split()] in lines


@pytest.mark.parametrize("verb", program.VERBS)
def test_every_verb_has_its_own_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    module = import_module(f"lowrank_core.cli.verbs.{verb}")
    first_paragraph = getattr(module, verb).__doc__.partition("\n\n")[0]
    assert printed.startswith(f"Usage: lowrank {verb} ")
    assert " ".join(first_paragraph.split()) in printed


def test_help_imports_nothing_that_takes_time() -> None:
    assert HEAVY.isdisjoint(imported_by("--help"))
    assert HEAVY.isdisjoint(imported_by("--version"))


def test_an_inspection_imports_no_matplotlib_and_no_other_verb(adapter: Path) -> None:
    modules = imported_by("inspect", str(adapter))
    assert "matplotlib" not in modules
    assert "lowrank_core.cli.verbs.extract" not in modules


def test_arithmetic_on_scales_needs_no_kernels_and_no_files() -> None:
    assert {"matplotlib", "numba", "safetensors"}.isdisjoint(imported_by("alpha", "--rank", "8", "--alpha", "16"))


@dataclass(frozen=True)
class Group:
    """Two options."""

    size: Annotated[int, typer.Option(help="A size.")] = 3
    names: Annotated[list[str], typer.Option(help="Names.")] = field(default_factory=list)


def test_a_group_of_options_becomes_one_argument() -> None:
    received = []

    def verb(path: Annotated[str, typer.Argument()], *, group: Group, full: bool = False) -> None:
        received.append((path, group, full))

    app = typer.Typer()
    app.command()(ungrouped(verb))
    for arguments in (["a"], ["a", "--size", "5", "--names", "x", "--names", "y", "--full"]):
        app(args=arguments, standalone_mode=False)
    assert received == [("a", Group(3, []), False), ("a", Group(5, ["x", "y"]), True)]


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["compile"]])
def test_help_has_a_short_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--help"]) == 0
    long = capsys.readouterr().out
    assert main([*arguments, "-h"]) == 0
    assert capsys.readouterr().out == long


@pytest.mark.parametrize(
    ("line", "completed"), [("lowrank insp", ["inspect"]), ("lowrank inspect --recurs", ["--recursive"])]
)
def test_a_shell_completes_verbs_and_their_options(
    line: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "_LOWRANK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    assert capsys.readouterr().out.split() == completed


def test_the_words_of_a_line_matter_only_where_a_shell_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "lowrank nothing")
    assert main([]) == 0


@pytest.mark.parametrize("verb", program.VERBS)
def test_examples_fit_a_terminal_of_80_columns(verb: str) -> None:
    lines = import_module(f"lowrank_core.cli.verbs.{verb}").EXAMPLES.splitlines()
    # The help indents them by two more.
    assert [line for line in lines if len(line) > 78] == []
