"""Modules by their names: chosen by patterns, and what their names alone say of them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


def matches(name: str, patterns: Iterable[str]) -> bool:
    """
    Hold a module's name against patterns.

    Parameters
    ----------
    name : str
        The module's name.
    patterns : iterable of str
        With *, ? and [...] as in file names; each has to match the whole name, or the end of it after a dot.

    Returns
    -------
    bool
        Whether one matches.

    Examples
    --------
    >>> from lowrank_core.models.module_names import matches
    >>> matches("layers.1.self_attn.q_proj", ["q_proj"]), matches("layers.11.mlp", ["layers.1.*"])
    (True, False)
    """
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def select(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """
    Choose modules by patterns on their names.

    Parameters
    ----------
    names : sequence of str
        All there are.
    include : sequence of str
        Patterns as in :func:`matches`; none takes all.
    exclude : sequence of str
        Patterns that leave out what was included.

    Returns
    -------
    list of str
        In their order.

    Raises
    ------
    ValueError
        If a pattern matches no name, or no name is left.
    """
    for what, patterns in (("include", include), ("exclude", exclude)):
        check_patterns(what, patterns, names)
    chosen = [name for name in names if (not include or matches(name, include)) and not matches(name, exclude)]
    if names and not chosen:
        raise ValueError(f"the patterns leave none of the {len(names)} layers: include {include}, exclude {exclude}")
    return chosen


def check_patterns(what: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """
    Refuse a pattern that matches nothing.

    Parameters
    ----------
    what : str
        What the patterns are for.
    patterns : iterable of str
        As in :func:`matches`.
    names : sequence of str
        The names there are.

    Raises
    ------
    ValueError
        Naming the pattern, and a name as an example.
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            example = f", as {names[0]!r}" if names else ""
            raise ValueError(
                f"{what} {pattern!r} matches none of the {len(names)} layers{example}: a pattern has to match a whole "
                "name, or its end after a dot; * stands for anything"
            )


def is_embedding(name: str) -> bool:
    """
    Tell an embedding by the name that the transformers library gives it.

    Parameters
    ----------
    name : str
        The module's name.

    Returns
    -------
    bool
        Whether its last part is one of :data:`EMBEDDINGS`.
    """
    return name.rpartition(".")[2] in EMBEDDINGS


def is_conv1d(name: str) -> bool:
    """
    Tell a module that GPT-2 and its kin store as (in, out), by its name.

    Parameters
    ----------
    name : str
        The module's name.

    Returns
    -------
    bool
        Whether its last part is one of :data:`CONV1D_MODULES`.
    """
    return name.rpartition(".")[2] in CONV1D_MODULES
