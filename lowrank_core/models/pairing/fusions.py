"""Weights that are one tensor in one checkpoint and several in the other: fused projections, and stacks of experts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from lowrank_core.models.files.tensors import JoinedTensor, StoredTensor, Weight
from lowrank_core.models.pairing.alignment import AlignedNames, Tensors, numbers_in, with_letters_for_numbers

# The names of fused projections, and those of their parts in the order of their rows.
_FUSED = (
    (re.compile(r"(?:to_|W)?qkv(?:_proj|_linear)?|query_key_value|in_proj"), ("q", "k", "v")),
    (re.compile(r"(?:to_|W)?qk(?:_proj)?"), ("q", "k")),
    (re.compile(r"(?:to_|W)?kv(?:_proj)?|key_value"), ("k", "v")),
    (re.compile(r"gate_up(?:_proj)?|w13"), ("gate", "up")),
)
_STEMS = {"q": "q|query", "k": "k|key", "v": "v|value", "gate": "gate|w1", "up": "up|w3"}
_PART_NAME = {
    stem: re.compile(rf"(?:to_|W)?(?:{names})(?:_proj|_lin|_linear|_layer)?") for stem, names in _STEMS.items()
}
# What older modules call the projections of an expert: Mixtral's w2 is down_proj of transformers 5.
_SAME_LEAVES = {"down_proj": ("down_proj", "w2")}
_PARAMETER = re.compile(r"(?P<module>.*?)(?P<separator>[._])(?P<parameter>weight|bias)")
_EXPERTS = re.compile(r"expert|(?:^|[._])moe(?:[._]|$)")
_STACK_AXES = 3


class PartMatch(NamedTuple):
    """A weight whose two sides are parts of tensors, or several of them joined.

    `base_key` and `tuned_key` are the names that it has in either checkpoint: of a stack its own in both. `keys` are
    those of all tensors that it is made of. `expert` is which of how many `experts`.
    """

    base_key: str
    tuned_key: str
    base: Weight
    tuned: Weight
    base_keys: tuple[str, ...]
    tuned_keys: tuple[str, ...]
    expert: int = 0
    experts: int = 0


def is_stack(key: str, shape: Sequence[int]) -> bool:
    """Whether a tensor has a matrix for each expert, or each of another first axis: the kernel of a Conv1d has not."""
    return len(shape) == _STACK_AXES and (not key.endswith(".weight") or _EXPERTS.search(key) is not None)


def split_fused(
    base: Tensors, tuned: Tensors, alike: Callable[[Weight, Weight], bool], *, by_base: bool
) -> Iterator[PartMatch]:
    """Yield the parts of projections that are fused in one checkpoint alone.

    Names do not say in which order the rows are (some models interleave those of the heads), so that their values have
    to be `alike`. Each part is a layer of its own where the checkpoint that names the layers has it so, by BASE or not.
    """
    for parts_side, fused_side, base_has_parts in ((base, tuned, True), (tuned, base, False)):
        groups = _modules_by_owner(parts_side)
        for key, fused in fused_side.items():
            keys = _parts_of(key, fused, groups, parts_side)
            if keys and all(alike(parts_side[part], rows) for part, rows in _cut(fused, keys, parts_side)):
                yield from _fused_matches(
                    key, fused, keys, parts_side, base_has_parts=base_has_parts, by_parts=by_base == base_has_parts
                )


def _fused_matches(
    key: str, fused: StoredTensor, keys: Sequence[str], parts: Tensors, *, base_has_parts: bool, by_parts: bool
) -> Iterator[PartMatch]:
    sides: list[tuple[str, Weight, tuple[str, ...], str, Weight]] = []
    if by_parts:
        sides = [(part, parts[part], (part,), key, rows) for part, rows in _cut(fused, keys, parts)]
    else:
        joined = JoinedTensor(tuple(parts[part] for part in keys))
        sides = [(key, joined, tuple(keys), key, fused)]
    for part_key, part, part_keys, fused_key, rows in sides:
        if base_has_parts:
            yield PartMatch(part_key, fused_key, part, rows, part_keys, (fused_key,))
        else:
            yield PartMatch(fused_key, part_key, rows, part, (fused_key,), part_keys)


def _cut(fused: StoredTensor, keys: Sequence[str], parts: Tensors) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the keys of parts, each with its rows of the fused tensor."""
    ends = list(accumulate(parts[key].shape[0] for key in keys))
    for key, stop in zip(keys, ends, strict=True):
        yield key, fused.along(0, stop - parts[key].shape[0], stop)


class _Owner(NamedTuple):
    """A module by what is the same in both checkpoints: its own name, the numbers in its full one, a parameter."""

    name: str
    numbers: tuple[str, ...]
    parameter: str


def _modules_by_owner(tensors: Tensors) -> dict[_Owner, dict[str, dict[str, str]]]:
    """Return keys by the module that owns their module: for each such, of each full name, keys by their leaf."""
    owners: dict[_Owner, dict[str, dict[str, str]]] = {}
    for key in tensors:
        split = _split(key)
        if split is not None:
            module, parameter = split
            owner, _, leaf = module.rpartition(".")
            place = _Owner(owner.rpartition(".")[2], numbers_in(f"{owner}."), parameter)
            owners.setdefault(place, {}).setdefault(owner, {})[leaf] = key
    return owners


def _split(key: str) -> tuple[str, str] | None:
    """Return a module and the name of its parameter, as "attn.in_proj" and "weight"; None for other parameters."""
    match = _PARAMETER.fullmatch(key)
    return (match["module"], match["parameter"]) if match else None


def _parts_of(
    key: str, fused: StoredTensor, groups: Mapping[_Owner, Mapping[str, Mapping[str, str]]], tensors: Tensors
) -> tuple[str, ...]:
    """Return the keys of the parts of a fused projection in their order; none unless one module alone has them."""
    split = _split(key)
    if split is None:
        return ()
    owner, _, leaf = split[0].rpartition(".")
    modules = groups.get(_Owner(owner.rpartition(".")[2], numbers_in(f"{owner}."), split[1]), {})
    fitting = [parts for leaves in modules.values() if (parts := _fitting(leaf, fused.shape, leaves, tensors))]
    return fitting[0] if len(fitting) == 1 else ()


def _fitting(leaf: str, shape: tuple[int, ...], leaves: Mapping[str, str], tensors: Tensors) -> tuple[str, ...]:
    """Return the keys of parts that make up a fused tensor of this name and shape."""
    stems = next((stems for pattern, stems in _FUSED if pattern.fullmatch(leaf)), ())
    keys = [next((key for name, key in leaves.items() if _PART_NAME[stem].fullmatch(name)), "") for stem in stems]
    if not keys or not all(keys):
        return ()
    shapes = [tensors[key].shape for key in keys]
    fits = all(len(each) == len(shape) and each[1:] == shape[1:] for each in shapes)
    return tuple(keys) if fits and sum(each[0] for each in shapes) == shape[0] else ()


def match_experts(base: Tensors, tuned: Tensors) -> Iterator[PartMatch]:
    """Yield the experts of stacks in one checkpoint that are modules of their own in the other."""
    for separate, stacks, base_is_separate in ((base, tuned, True), (tuned, base, False)):
        groups = _experts_by_owner(separate)
        for key, stack in stacks.items():
            if not is_stack(key, stack.shape):
                continue
            for expert, keys in enumerate(_experts_of(key, stack, groups, separate)):
                parts = tuple(separate[part] for part in keys)
                apart: Weight = parts[0] if len(parts) == 1 else JoinedTensor(parts)
                own, experts = stack.at(expert), stack.shape[0]
                if base_is_separate:
                    yield PartMatch(key, key, apart, own, keys, (key,), expert, experts)
                else:
                    yield PartMatch(key, key, own, apart, (key,), keys, expert, experts)


_Experts = dict[str, list[dict[str, str]]]


def _experts_by_owner(tensors: Tensors) -> dict[tuple[str, ...], _Experts]:
    """Return the keys of separate experts: for the numbers of their block, of each list of them, keys by leaf."""
    groups: dict[tuple[str, ...], dict[str, dict[int, dict[str, str]]]] = {}
    for key in tensors:
        split = _split(key)
        if split is None or split[1] != "weight":
            continue
        module, _, leaf = split[0].rpartition(".")
        owner, _, expert = module.rpartition(".")
        if expert.isdecimal() and _EXPERTS.search(owner):
            group = groups.setdefault(numbers_in(f"{owner}."), {}).setdefault(owner, {})
            group.setdefault(int(expert), {})[leaf] = key
    return {
        numbers: {owner: [members[expert] for expert in sorted(members)] for owner, members in owners.items()}
        for numbers, owners in groups.items()
    }


def _experts_of(
    key: str, stack: StoredTensor, groups: Mapping[tuple[str, ...], _Experts], tensors: Tensors
) -> list[tuple[str, ...]]:
    """Return the keys of each expert's part of a stack; none unless one list of as many experts alone has them."""
    owner, _, leaf = key.removesuffix(".weight").rpartition(".")
    fitting = []
    for experts in groups.get(numbers_in(f"{owner}."), {}).values():
        keys = [_of_expert(leaf, stack.shape[1:], leaves, tensors) for leaves in experts]
        if len(keys) == stack.shape[0] and all(keys):  # an expert that is missing leaves fewer
            fitting.append(keys)
    return fitting[0] if len(fitting) == 1 else []


def _of_expert(leaf: str, shape: tuple[int, ...], leaves: Mapping[str, str], tensors: Tensors) -> tuple[str, ...]:
    """Return the keys of one expert that are its slice of a stack: one of this name and shape, or fused ones."""
    names = _SAME_LEAVES.get(leaf, (leaf,))
    own = [key for name, key in leaves.items() if name in names and tensors[key].shape == shape]
    return (own[0],) if len(own) == 1 else _fitting(leaf, shape, leaves, tensors)


def describe_parts(parts: Iterable[PartMatch]) -> list[AlignedNames]:
    """Return which names of one checkpoint are parts of those of the other, and of how many."""
    counts = Counter((_pattern(part.base_keys), _pattern(part.tuned_keys)) for part in parts)
    return [AlignedNames(*patterns, count) for patterns, count in counts.items()]


def _pattern(keys: Sequence[str]) -> str:
    """Return the names of parts as one, as "layers.N.{q_proj,k_proj}.weight"."""
    names = [with_letters_for_numbers(key).split(".") for key in keys]
    columns = [list(dict.fromkeys(column)) for column in zip(*names, strict=False)]
    return ".".join(column[0] if len(column) == 1 else "{" + ",".join(column) + "}" for column in columns)
