"""Patterns on module names, matched as PEFT matches the keys of its rank_pattern, but in bounded time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby, pairwise
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

# Processor time that the patterns of a file may take, and what each character compiled and each match adds to it: ten
# times what ordinary ones need and a garbage collection, so that only those that backtrack without end exhaust it.
_SECONDS, _SECONDS_A_CHARACTER, _SECONDS_A_MATCH = 0.5, 2e-4, 5e-5
_LONGEST, _SHORT = 10_000, 300
# The engine unrolls the least number of repeats: ((a{1000}){1000}){1000} would take all memory.
_MOST_REPEATS = 50_000

_TOKEN = re.compile(
    r"""
    \(\?\#[^)]*\)
    | \\ (?: (?P<escaped> [^A-Za-z0-9] ) | N\{[^}]*\} | x[\da-fA-F]{2} | u[\da-fA-F]{4} | U[\da-fA-F]{8} | [0-9]+ | . )
    | (?P<set> \[ \^? \]? (?: \\. | [^\]\\] )* \] )
    | \{ (?: (?P<repeats> [0-9]+ ) (?: ,[0-9]* )? | ,[0-9]* ) \}
    | [.^$*+?{}\[\]|()]
    | (?P<literal> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_VERBOSE_GROUP = re.compile(r"\(\?[aiLmsu]*x")

Value = TypeVar("Value")


class ModulePatterns(Generic[Value]):
    r"""Values by patterns on module names: of a pattern, ``(.*\.)?(pattern)$`` has to match.

    Names and escaped names, as nearly all patterns are, are looked up. The others are matched in bounded time, and only
    with names that contain the longest text that they require.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        self._places = {pattern: place for place, pattern in enumerate(values)}
        self._names: dict[_Shape, dict[str, list[str]]] = {}
        self._expressions: dict[str, str] = {}
        self._engine = _Engine()
        self._known: dict[str, dict[str, Value]] = {}
        for pattern in values:
            tokens = list(_TOKEN.finditer(pattern))
            anchored = pattern.startswith("^")
            characters = [character for token in tokens[anchored:] if (character := _character(token)) is not None]
            if len(characters) == len(tokens) - anchored:
                names = self._names.setdefault(_shape(characters, anchored=anchored), {})
                names.setdefault("".join(characters), []).append(pattern)
            else:
                self._engine.check(pattern, tokens)
                self._expressions[pattern] = _required_text(tokens)

    def matching(self, module: str) -> dict[str, Value]:
        """Return the values whose patterns match a module's name, in their order, of which PEFT applies the first.

        Where none does, PEFT applies the value whose pattern is the name itself, as that of "a+b" is.
        """
        if module not in self._known:
            patterns = sorted(self._match(module), key=self._places.__getitem__)
            self._known[module] = {key: self._values[key] for key in patterns or {module} & self._values.keys()}
        return self._known[module]

    def _match(self, module: str) -> Iterator[str]:
        if "\n" in module:
            # `.` does not match a newline, and `$` matches before the last: the engine knows.
            yield from (pattern for pattern in self._values if self._engine.matches(pattern, module))
            return
        for shape, patterns in self._names.items():
            if shape.fits(module):
                yield from patterns.get(shape.literals(module), ())
        for pattern, required in self._expressions.items():
            if required in module and self._engine.matches(pattern, module):
                yield pattern


class _Shape(NamedTuple):
    """The form of a pattern without operators: its length, where it is literal between dots, and whether it has a ^."""

    length: int
    stretches: tuple[tuple[int, int], ...]
    anchored: bool

    def fits(self, name: str) -> bool:
        """Whether a name is so long, or has a dot before its last characters."""
        start = len(name) - self.length
        return start == 0 or (start > 0 and not self.anchored and name[start - 1] == ".")

    def literals(self, name: str) -> str:
        """Return the last characters of a name, without those in the place of dots."""
        start = len(name) - self.length
        return "".join([name[start + first : start + last] for first, last in self.stretches])


def _shape(characters: Sequence[str], *, anchored: bool) -> _Shape:
    runs = [list(run) for _, run in groupby(range(len(characters)), lambda place: characters[place] != "")]
    stretches = tuple((run[0], run[-1] + 1) for run in runs if characters[run[0]] != "")
    return _Shape(len(characters), stretches, anchored)


def _character(token: re.Match[str]) -> str | None:
    """Return the one character that a token matches, "" for a dot, which matches any; None for an operator."""
    return "" if token[0] == "." else token["escaped"] or token["literal"]


def _required_text(tokens: Sequence[re.Match[str]]) -> str:
    """Return the longest text that every match of an expression contains: literal, and not in any group."""
    depth, texts = 0, [""]
    for token in tokens:
        character = token["escaped"] or token["literal"]
        if depth == 0 and token[0] == "|":
            return ""
        if depth == 0 and character:
            texts[-1] += character
        else:
            if token[0][0] in "*?{":
                texts[-1] = texts[-1][:-1]
            texts.append("")
        depth += (token[0] == "(") - (token[0] == ")")
    return max(texts, key=len)


def _is_cheap(tokens: Sequence[re.Match[str]]) -> bool:
    """Whether re takes some milliseconds at most on a short name: one repeat, four choices, and no group repeated."""
    texts = [token[0] for token in tokens]
    simple = all(text[0] != "{" and not text[1:].isdigit() for text in texts)
    repeated = any(one in {"(", ")"} and other in {"*", "+", "?"} for one, other in pairwise(texts))
    return simple and not repeated and sum(map(texts.count, "*+")) <= 1 and sum(map(texts.count, "?|")) <= 4


class _Engine:
    """Matches with re where that is cheap, else with the regex package, which knows a time limit; one limit for all."""

    def __init__(self) -> None:
        self._seconds = _SECONDS
        self._cheap: dict[str, re.Pattern[str]] = {}
        self._limited: dict[str, Any] = {}

    def check(self, pattern: str, tokens: Sequence[re.Match[str]]) -> None:
        """Refuse a pattern that Python does not compile, or that would take too much time or memory to compile."""
        if len(pattern) > _LONGEST or prod(map(_least_repeats, tokens)) > _MOST_REPEATS:
            raise ValueError(f"{_quoted(pattern)}, which is too long or repeats too often to be matched safely")
        if _VERBOSE_GROUP.search(pattern):
            raise ValueError(f"{_quoted(pattern)}, which uses the verbose syntax (?x: leave it out")
        start = time.thread_time()
        try:
            compiled = re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{_quoted(pattern)}, which is not a regular expression ({error})") from error
        if _is_cheap(tokens):
            self._cheap[pattern] = compiled
        self._spend(pattern, start, len(pattern) * _SECONDS_A_CHARACTER)

    def matches(self, pattern: str, module: str) -> bool:
        """Whether a pattern matches a module's name; an error once no time is left, and for every name after that."""
        start = self._spend(pattern, time.thread_time(), 0.0)
        if pattern in self._cheap and len(module) <= _SHORT:
            matched = self._cheap[pattern].match(module) is not None
        else:
            if pattern not in self._limited:
                regex = _import_regex(pattern)
                start = time.thread_time()
                self._limited[pattern] = _compile(regex, pattern)
                start = self._spend(pattern, start, len(pattern) * _SECONDS_A_CHARACTER)
            try:
                matched = self._limited[pattern].match(module, timeout=self._seconds) is not None
            except TimeoutError:
                matched, self._seconds = False, -_SECONDS_A_MATCH
        self._spend(pattern, start, _SECONDS_A_MATCH)
        return matched

    def _spend(self, pattern: str, start: float, allowed: float) -> float:
        """Take the time since `start` off what is left, once what is allowed for the work has been added to it."""
        now = time.thread_time()
        self._seconds += allowed - (now - start)
        if self._seconds <= 0.0:
            raise ValueError(
                f"the pattern {_quoted(pattern)} takes too long to match, as those do that repeat what is repeated, "
                "(a+)+: PEFT would not end with it either. Write names of modules instead, each as '^' and the escaped "
                "full name"
            )
        return now


def _least_repeats(token: re.Match[str]) -> int:
    # Nine digits are beyond every limit, and int takes no more than 4,300.
    return max(1, int((token["repeats"] or "").lstrip("0")[:9] or 1))


def _import_regex(pattern: str) -> Any:
    try:
        return import_module("regex")
    except ImportError as error:
        reason = f'{error.name}, which is not installed: pip install "lowrank_core[models]"'
        raise ImportError(f"the pattern {_quoted(pattern)} needs {reason}") from error


def _compile(regex: Any, pattern: str) -> Any:
    try:
        return regex.compile(rf"(.*\.)?({_TOKEN.sub(_for_regex, pattern)})$")
    except RecursionError as error:
        raise ValueError(f"the pattern {_quoted(pattern)} is nested too deeply") from error


def _for_regex(token: re.Match[str]) -> str:
    """Return a token as the regex package reads it: to re, {e<=1} is no error count and [[:alpha:]] no class name."""
    if token["set"]:
        return "[" + token["set"][1:].replace("[", r"\[")
    return r"\{" if token[0] == "{" else token[0]


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:99]}…")
