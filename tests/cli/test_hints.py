"""Options that help texts and messages name: each is one of the verb's own, or of the command that it is named in."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import lowrank_core
from lowrank_core.cli.program import VERBS, program_of

PACKAGE = Path(lowrank_core.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
COMMAND = re.compile(r"lowrank (?P<verb>[a-z]+)(?P<rest>[^,;:)\n]*)")
WRITING = {"extract", "resize", "convert", "merge"}
TWO_CHECKPOINTS = {"inspect", "compare", "extract", "plan"}
LAYER_TABLES = {"inspect", "compare", *WRITING, "apply", "verify"}
# Which verbs may print the messages of a module that name options, and those options.
SPEAKERS = [
    ("cli/layer_tables.py", LAYER_TABLES, {"--full", "--csv", "--json"}),
    ("cli/output.py", {"demo", "inspect", "compare", *WRITING}, {"--figure"}),
    ("cli/program.py", {"inspect"}, {"--base"}),
    ("cli/rank_choice.py", {"extract", "resize", "merge"}, {"--rank"}),
    ("cli/reports/verified_tables.py", {"verify"}, {"--full", "--json"}),
    ("cli/tables.py", LAYER_TABLES | {"plan"}, {"--full", "--json"}),
    ("cli/written.py", {"extract", "resize"}, {"--figure", "--rank"}),
    ("cli/reports/census_tables.py", {"inspect"}, {"--full", "--csv", "--json", "--jsonl"}),
    ("cli/reports/comparison_tables.py", {"compare"}, {"--json"}),
    ("cli/reports/history_tables.py", {"compare"}, {"--full", "--csv", "--json"}),
    ("cli/reports/inspection_tables.py", {"inspect"}, {"--json"}),
    ("cli/reports/plan_tables.py", {"plan"}, {"--full", "--json", "--out"}),
    ("models/files/atomic.py", WRITING | {"apply"}, {"--force"}),
    ("models/files/checkpoints.py", TWO_CHECKPOINTS, {"--component"}),
    ("models/files/folders.py", TWO_CHECKPOINTS, {"--component"}),
    ("models/formats/gguf_adapter.py", WRITING, {"--alpha", "--uniform"}),
    ("models/formats/peft_experts.py", WRITING, {"--uniform"}),
    ("models/inspection/layers.py", {"inspect"}, {"--base", "--component", "--intruders", "--match", "--rule"}),
    ("models/operations/factor_warnings.py", WRITING | {"plan"}, {"--exclude"}),
    ("models/operations/factor_warnings.py", {"extract"}, {"--sides"}),
    (
        "models/operations/extraction.py",
        {"extract"},
        {"--above-noise", "--component", "--embedding", "--match", "--names", "--transposed"},
    ),
    ("models/operations/extraction_tasks.py", {"extract"}, {"--embedding"}),
    ("models/operations/model_config.py", {"extract"}, {"--transposed"}),
    ("models/operations/placing.py", {"resize", "convert", "merge"}, {"--base", "--base-restored"}),
    ("models/operations/planning.py", {"plan"}, {"--include"}),
    ("models/pairing/changes.py", TWO_CHECKPOINTS, {"--match"}),
    ("models/pairing/pairs.py", TWO_CHECKPOINTS, {"--match"}),
]
# A command of another program, and what declares options: its texts are in the help texts.
ELSEWHERE = {"models/files/recognition.py", "cli/options.py"}


def own_options(verb: str) -> set[str]:
    command = import_module("typer.main").get_command(program_of(verb)).commands[verb]
    return {name for parameter in command.params for name in parameter.opts} | {"--help"}


OWN = {verb: own_options(verb) for verb in VERBS}


def not_of_a_command(text: str) -> str:
    """Return a text without the commands in it, whose options are checked to be those of the command's verb."""
    for match in COMMAND.finditer(text):
        if match["verb"] in VERBS:
            assert set(OPTION.findall(match["rest"])) <= OWN[match["verb"]], match[0]
    return COMMAND.sub(lambda match: "" if match["verb"] in VERBS else match[0], text)


def messages(path: Path) -> list[str]:
    """Return the texts of a file without its docstrings; of an f-string, all that is written out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = (ast.Module, ast.ClassDef, ast.FunctionDef)
    skipped = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, described) and ast.get_docstring(node)
    }
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in ast.walk(node) if isinstance(part, ast.Constant)}
    texts = ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values) for node in joined]
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return texts + [node.value for node in constants if id(node) not in skipped | parts]


@pytest.mark.parametrize("verb", VERBS)
def test_help_texts_name_the_verbs_own_options(verb: str) -> None:
    command = import_module("typer.main").get_command(program_of(verb)).commands[verb]
    texts = [command.help or "", command.epilog or "", *(getattr(each, "help", "") or "" for each in command.params)]
    for text in texts:
        assert set(OPTION.findall(not_of_a_command(text))) <= OWN[verb], text


@pytest.mark.parametrize("verb", VERBS)
def test_messages_of_a_verb_name_its_own_options(verb: str) -> None:
    module = Path(import_module(f"lowrank_core.cli.verbs.{verb}").__file__ or "")
    named = {option for text in messages(module) for option in OPTION.findall(not_of_a_command(text))}
    assert named <= OWN[verb]


def test_messages_of_every_module_name_options_that_each_verb_that_prints_them_has() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in ELSEWHERE or name.startswith("cli/verbs/"):
            continue
        # What declares an option is no message.
        named = {each for text in messages(path) for each in OPTION.findall(not_of_a_command(text)) if text != each}
        if named:
            found[name] = named
    expected: dict[str, set[str]] = {}
    for name, _, named in SPEAKERS:
        expected[name] = expected.get(name, set()) | named
    assert found == expected
    for name, verbs, named in SPEAKERS:
        for verb in verbs:
            assert named <= OWN[verb], (name, verb)
