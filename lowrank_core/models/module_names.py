"""Modules by their names: chosen by patterns, and what a name says of its module."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the names of a model that it wraps."""

# Modules that look tokens or positions up: what the transformers library calls them.
EMBEDDINGS = frozenset(
    {
        *("embed_tokens", "wte", "wpe", "tokens_embed", "positions_embed", "word_embeddings", "position_embeddings"),
        *("token_type_embeddings", "embed_positions", "shared", "tok_embeddings", "token_embedding", "embed_in"),
        *("position_embedding", "relative_attention_bias", "word_embedding", "embed", "embedding", "embeddings"),
    }
)
# Model types whose weights of these names are transformers' Conv1D: stored as (in, out).
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
CONV1D_MODULES = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})
_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")


def kind(name: str) -> str:
    """Return the kind of a layer: its name with stars for numbers.

    Examples
    --------
    >>> kind("model.layers.11.self_attn.q_proj")
    'model.layers.*.self_attn.q_proj'
    """
    return _NUMBER.sub("*", name)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, with *, ? and [...] as in file names, is the whole name or its end after a dot."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def select(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the names that match `include`, or all without one, less those that match `exclude`."""
    for option, patterns in (("include", include), ("exclude", exclude)):
        check_patterns(option, patterns, names)
    selected = [name for name in names if (not include or matches(name, include)) and not matches(name, exclude)]
    if names and not selected:
        raise ValueError(f"the patterns leave none of the {len(names)} layers: include {include}, exclude {exclude}")
    return selected


def check_patterns(option: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names."""
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            example = f", as {names[0]!r}" if names else ""
            raise ValueError(
                f"{option} {pattern!r} matches none of the {len(names)} layers{example}: a pattern has to match a "
                "whole name, or its end after a dot; * stands for anything"
            )


def is_embedding(name: str) -> bool:
    """Whether the transformers library gives this name to an embedding."""
    return name.rpartition(".")[2] in EMBEDDINGS


def is_conv1d(name: str) -> bool:
    """Whether GPT-2 and similar models give this name to a weight that they store as (in, out)."""
    return name.rpartition(".")[2] in CONV1D_MODULES


def followed_module(name: str, modules: Collection[str], beginnings: tuple[str, ...]) -> str:
    """Return the module that a tensor's name begins with, if its own part begins so; empty if there is none."""
    module = name
    while "." in module:
        module = module.rpartition(".")[0]
        if module in modules:
            return module if name[len(module) + 1 :].startswith(beginnings) else ""
    return ""
