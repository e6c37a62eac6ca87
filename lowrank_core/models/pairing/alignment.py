"""Names of two checkpoints of one model, aligned: which tensors of the one are which of the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lowrank_core.models.files.tensors import StoredTensor

Tensors = Mapping[str, StoredTensor]

# Components that wrappers put into the names of a module's parameters: torch.compile, DataParallel, FSDP, activation
# checkpointing, and a PEFT model that was merged but not unloaded.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
# The least that two names have in common at their ends: a module's own name and that of its parameter.
_LEAST_COMMON = 2


@dataclass(frozen=True)
class AlignedNames:
    """A way in which names of one checkpoint stand for those of the other, and for how many tensors of it.

    Attributes
    ----------
    base, tuned : str
        The names in either, with N for a number and * for the rest: ``"*"`` and ``"_orig_mod.*"``.
    tensors : int
        Number of the tensors of TUNED that were aligned so, or of their parts.
    """

    base: str
    tuned: str
    tensors: int


class Match(NamedTuple):
    """One tensor of each checkpoint that are the same weight."""

    base: str
    tuned: str


class Alignment(NamedTuple):
    """Tensors that are aligned, and for each of the others that has several candidates what these are."""

    matches: list[Match]
    ambiguous: dict[str, str]


def align_names(
    base: Tensors,
    tuned: Tensors,
    given: Mapping[str, str],
    alike: Callable[[StoredTensor, StoredTensor], bool],
) -> Alignment:
    """Match tensors by their names: as given, by the same name, and by the longest common end of one shape.

    `given` are beginnings of names of BASE with those of TUNED. `alike` says by their values whether two tensors may be
    the same weight, and is asked where neither beginning contains the other.
    """
    matches = _given(base, tuned, given)
    left, right = _without(base, tuned, matches)
    matches += [Match(key, key) for key in left if key in right]
    left, right = _without(base, tuned, matches)
    matches += _by_unwrapped_name(left, right)
    left, right = _without(base, tuned, matches)
    by_end = _by_common_end(left, right, alike)
    matches += by_end
    left, right = _without(base, tuned, matches)
    matches += _by_renames(left, right, _renames(by_end))
    left, right = _without(base, tuned, matches)
    return Alignment(matches, _ambiguous(left, right))


def describe_matches(matches: Iterable[Match]) -> list[AlignedNames]:
    """Return the ways in which names differ, the most frequent first."""
    counts = Counter(_rename_patterns(match) for match in matches if match.base != match.tuned)
    return [AlignedNames(*patterns, count) for patterns, count in counts.most_common()]


def numbers_in(name: str) -> tuple[str, ...]:
    """Return the components of a dotted name that are numbers: of blocks and of experts."""
    return tuple(_NUMBER.findall(name))


def with_letters_for_numbers(name: str) -> str:
    """Return a name with N for each component that is a number."""
    return _NUMBER.sub("N", name)


def _without(base: Tensors, tuned: Tensors, matches: Collection[Match]) -> tuple[Tensors, Tensors]:
    """Return the tensors of both that are not matched."""
    left, right = {match.base for match in matches}, {match.tuned for match in matches}
    return (
        {key: tensor for key, tensor in base.items() if key not in left},
        {key: tensor for key, tensor in tuned.items() if key not in right},
    )


def _given(base: Tensors, tuned: Tensors, given: Mapping[str, str]) -> list[Match]:
    matches: dict[str, Match] = {}
    for old, new in given.items():
        found = {key: _renamed(key, old.rstrip("."), new.rstrip(".")) for key in base}
        matched = {key: Match(key, name) for key, name in found.items() if name is not None and name in tuned}
        if not matched:
            meant = next((name for name in found.values() if name is not None), None)
            why = f"{meant!r} is not in the tuned one" if meant else f"no name of the base begins with {old!r}"
            raise ValueError(
                f"the match {old}={new} aligns nothing: {why}. Both are beginnings of names up to a dot, the first of "
                "BASE's and the second of TUNED's"
            )
        matches |= matched
    return list({match.tuned: match for match in matches.values()}.values())


def _renamed(name: str, old: str, new: str) -> str | None:
    """Return a name with its beginning replaced; None if it begins otherwise."""
    if name == old:
        return new
    if old and not name.startswith(f"{old}."):
        return None
    rest = name[len(old) + 1 :] if old else name
    return f"{new}.{rest}" if new else rest


def _by_unwrapped_name(left: Tensors, right: Tensors) -> list[Match]:
    """Match names that differ by components of wrappers alone."""
    names = [_single({key: _unwrapped(key) for key in side}) for side in (left, right)]
    return [
        Match(names[0][name], names[1][name])
        for name in names[0]
        if name in names[1] and left[names[0][name]].shape == right[names[1][name]].shape
    ]


def _unwrapped(key: str) -> str:
    return ".".join(component for component in key.split(".") if component not in _WRAPPERS)


def _single(names: Mapping[str, str]) -> dict[str, str]:
    """Return keys by their name, without the names of several."""
    counts = Counter(names.values())
    return {name: key for key, name in names.items() if counts[name] == 1}


def _by_common_end(left: Tensors, right: Tensors, alike: Callable[[StoredTensor, StoredTensor], bool]) -> list[Match]:
    """Match tensors that are each the only one whose name ends as the other's for longest."""
    to_right, to_left = _Ends(right), _Ends(left)
    matches = []
    for key, tensor in left.items():
        candidates = to_right.of(key, tensor)
        if len(candidates) == 1 and to_left.of(candidates[0], right[candidates[0]]) == [key]:
            match = Match(key, candidates[0])
            if _contains(*_beginnings(match)) or alike(tensor, right[match.tuned]):
                matches.append(match)
    return matches


class _Ends:
    """The tensors of one checkpoint by the ends of their names, their shapes and the numbers in their names."""

    def __init__(self, tensors: Tensors) -> None:
        self._keys: dict[object, list[str]] = {}
        for key, tensor in tensors.items():
            for end in _ends(key):
                self._keys.setdefault((end, tensor.shape, numbers_in(key)), []).append(key)

    def of(self, key: str, tensor: StoredTensor) -> list[str]:
        """Return the tensors of this shape whose names end as `key` does for longest."""
        # The numbers are those of blocks: block 1 of a model is never block 0 of another.
        places = ((end, tensor.shape, numbers_in(key)) for end in _ends(key))
        return next((self._keys[place] for place in places if place in self._keys), [])


def _ends(key: str) -> Iterator[str]:
    """Yield the ends of a name after each dot, the longest first, down to a module's own name."""
    components = key.split(".")
    for start in range(max(1, len(components) - _LEAST_COMMON + 1)):
        yield ".".join(components[start:])


def _beginnings(match: Match) -> tuple[str, str]:
    """Return what is before the longest common end of two names."""
    base, tuned = match.base.split("."), match.tuned.split(".")
    common = 0
    while common < min(len(base), len(tuned)) and base[-1 - common] == tuned[-1 - common]:
        common += 1
    return ".".join(base[: len(base) - common]), ".".join(tuned[: len(tuned) - common])


def _contains(first: str, second: str) -> bool:
    """Whether all components of one name are in the other, in their order."""
    shorter, longer = sorted((first.split("."), second.split(".")), key=len)
    remaining = iter(longer)
    return first == "" or second == "" or all(component in remaining for component in shorter)


def _renames(matches: Iterable[Match]) -> list[tuple[str, str]]:
    """Return the beginnings that replace each other, the most frequent first."""
    return [beginnings for beginnings, _ in Counter(map(_beginnings, matches)).most_common()]


def _by_renames(left: Tensors, right: Tensors, renames: Iterable[tuple[str, str]]) -> list[Match]:
    """Match tensors whose names alone leave several candidates, as the other names were renamed."""
    matches: dict[str, Match] = {}
    for old, new in renames:
        for key, tensor in left.items():
            name = _renamed(key, old, new)
            if name is not None and name in right and right[name].shape == tensor.shape and key not in matches:
                matches[key] = Match(key, name)
    return list({match.tuned: match for match in matches.values()}.values())


def _ambiguous(left: Tensors, right: Tensors) -> dict[str, str]:
    """Return the tensors of TUNED that several names of BASE may stand for, or the reverse, and these."""
    to_left, to_right = _Ends(left), _Ends(right)
    candidates = {key: to_left.of(key, tensor) for key, tensor in right.items()}
    candidates |= {key: to_right.of(key, tensor) for key, tensor in left.items() if key not in candidates}
    return {key: " or ".join(map(repr, names[:3])) for key, names in candidates.items() if names}


def _rename_patterns(match: Match) -> tuple[str, str]:
    """Return the beginnings in which two names differ, with * for the rest; whole names where a wrapper is within."""
    old, new = (with_letters_for_numbers(f"{name}.").rstrip(".") for name in _beginnings(match))
    return (f"{old}.*" if old else "*", f"{new}.*" if new else "*")
