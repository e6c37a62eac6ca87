"""The program ``lowrank``: its verbs, of which only the one that runs is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

import lowrank_core
from lowrank_core.cli.options import examples, ungrouped

_EXAMPLES = examples(
    "lowrank demo                               the question, on a small simulation",
    "lowrank inspect ADAPTER                    a LoRA adapter, layer by layer",
    "lowrank inspect TUNED --base BASE          a fine-tune: two checkpoints",
    "lowrank compare ADAPTER ADAPTER            whether two share directions",
    "lowrank extract BASE TUNED OUT --rank 32   an adapter of it",
    "lowrank resize ADAPTER OUT --rank 8        a smaller adapter",
    "lowrank apply BASE ADAPTER OUT             the model with its updates added",
    "lowrank verify BASE ADAPTER MERGED         whether a model is right",
    "lowrank plan BASE TUNED --parameters N     a rank for each layer, as PEFT takes it",
    "lowrank alpha --rank 8 --alpha 16 --to-rank 64   the alpha that keeps the scale",
)
# Each is a module of `verbs` with a function of the verb's name, and _EXAMPLES.
VERBS = {
    "demo": "The question, on a small simulation.",
    "inspect": "An adapter or a fine-tune, layer by layer.",
    "compare": "Whether adapters, or fine-tunes, share directions.",
    "extract": "An adapter from two checkpoints.",
    "resize": "A smaller adapter from an adapter.",
    "convert": "The same adapter in another format, dtype or rule.",
    "merge": "One adapter from the weighted sum of several.",
    "apply": "A model from its base and an adapter.",
    "verify": "Whether a merged model is its base with an adapter.",
    "plan": "A rank and an alpha for each layer, within a budget.",
    "alpha": "The alpha that keeps the scale at another rank or rule.",
    "compile": "Every kernel, before it is needed: for images and clusters.",
}


_SETTINGS = {"help_option_names": ["-h", "--help"]}
# What a shell sets when it asks the program for completions.
_COMPLETING = "_LOWRANK_COMPLETE"


def run(arguments: Sequence[str]) -> int:
    """Run the verb that arguments name and return the exit code: 0, or 1 where some layers failed."""
    verb = next((argument for argument in (*arguments, *_words_to_complete()) if not argument.startswith("-")), "")
    try:
        # Without its own error handling, because typer reports bad usage in several lines.
        code = program_of(verb)(args=list(arguments), prog_name="lowrank", standalone_mode=False)
    except SystemExit as error:
        if not error.code:  # a shell asked for completions, and has them
            return 0
        # Typer itself exits for no other reason, whatever its mode: a reader closed standard output.
        raise BrokenPipeError from error
    except Exception as error:
        # typer's usage errors come from click, or from a copy of click inside typer, by version: their shape is one.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if verb == "inspect" and "unexpected extra argument" in message:
            message += ". Did you mean --base? One PATH is inspected, and the checkpoint it was tuned from is an option"
        raise ValueError(message) from error
    return code if isinstance(code, int) else 0


def program_of(chosen: str) -> typer.Typer:
    """Return the program with one verb that can run; the others are only listed, because importing them takes time."""
    program = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=_SETTINGS)
    program.callback(invoke_without_command=True, epilog=_EXAMPLES)(_without_verb)
    for name, summary in VERBS.items():
        if name == chosen:
            module = import_module(f"lowrank_core.cli.verbs.{name}")
            program.command(name, epilog=module.EXAMPLES, context_settings=_SETTINGS)(ungrouped(getattr(module, name)))
        else:
            program.command(name, short_help=summary)(_listed)
    return program


def _words_to_complete() -> list[str]:
    """Return the words after the program's name on a line that a shell asks to complete; none in other runs."""
    line = os.environ.get("_TYPER_COMPLETE_ARGS", os.environ.get("COMP_WORDS", ""))
    return line.split()[1:] if _COMPLETING in os.environ else []


def _listed() -> None:
    """Do nothing: a verb that is not called."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowrank {lowrank_core.__version__}")
        raise typer.Exit


def _without_verb(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """How much of a weight update fits a low rank, and what a scaling rule does to it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
