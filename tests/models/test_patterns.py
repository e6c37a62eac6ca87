"""Patterns match as PEFT's regular expressions do, and none takes more than a bounded time."""

import json
import re
import sys
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.patterns import ModulePatterns
from lowrank_core.models.inspection.census import census

MODULE = "model.layers.11.self_attn.q_proj"
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
# Each takes `re` longer than the age of the universe on the name below.
EXPONENTIAL = (
    *("(a+)+$", "(a|a)*b?c", "(a|aa)+$", "(.*)*x$", "([a-z]+)*[0-9]", "(a?){40}a{40}b", "((a*)*)*c"),
    *("(?:a{1,40}){1,40}c", r"(a+)+\1c", r"(?=(a+)+$)b", r"(?!(a|aa)+$)c", "(a|b|ab)*c", "(a(?=a*b)|a)+c"),
    *(r"(\w+\.?)+!", "((a|b)?)*c$"),
)
HOSTILE_NAME = "a" * 40 + "b"


def matching(patterns, module):
    """Return the patterns that match, by PEFT's own expression."""
    matched = [pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)]
    return matched or [pattern for pattern in patterns if pattern == module]


PLAIN = [*"ab.1-_ {}&~#é\n", r"\.", r"\-", r"\d", r"\w", r"\b", r"\B", "^", "$", "[ab]", "[^b.]", "[[a]", "[]a]"]
ODD = [
    "a{e}",
    "{1e}",
    "[[:alpha:]]",
    "[a--b]",
    r"\x61",
    r"\141",
    "(?#()",
    r"\N{LATIN SMALL LETTER A}",
    r"\1",
    r"\2",
    "(?<=a)",
]
GROUPS = ["(?:{})", "(?={})", "(?!{})", "(?>{})", "(?i:{})", "(?s:{})", "(?<!b.){}"]
REPEATS = ("*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{,2}", "*+")


def expressions(repeats=REPEATS, leaves=9):
    """Draw regular expressions, some with parts that the regex package reads in another way than re."""
    return st.recursive(
        st.sampled_from([*PLAIN, *PLAIN, *ODD]),
        lambda inner: st.one_of(
            st.builds("({}){}".format, inner, st.sampled_from(repeats)),
            st.builds("({}|{})".format, inner, inner),
            st.builds("{}{}{}".format, inner, inner, inner),
            st.builds(lambda group, part: group.replace("{}", part), st.sampled_from(GROUPS), inner),
        ),
        max_leaves=leaves,
    )


def compiles(pattern):
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return False
    return True


NAMES = st.text("ab1._-{}e:[&A é\n", max_size=7)


@pytest.mark.filterwarnings("ignore:Possible")
@given(st.lists(expressions(), max_size=4), st.lists(NAMES, min_size=1, max_size=5))
@example(["a.c", r"a\.c", "c", "^c"], ["a.c", "abc", "x.abc", "xabc", "c", "b.c"])
@example(["a|b.c", "(a|b).c", "(?:b.)c"], ["b.c", "x.b.c", "xc", "a", "ba"])
@example(["a+b", "b"], ["a+b", "aab"])
@example(["", "."], ["", "a", "a.", "\n", "a.\n"])
@example(["b", "^b", r"a\nb", ".b"], ["b\n", "a\nb", "a.b\n", "a\n.b"])
def test_patterns_match_as_in_peft(patterns, names):
    assume(all(map(compiles, patterns)))
    patterns = list(dict.fromkeys(patterns))
    # Python before 3.14 says of \B alone that the empty name has no place for it.
    names = [name for name in names if name or not any(r"\B" in pattern for pattern in patterns)]
    table = ModulePatterns(dict.fromkeys(patterns))
    for name in names:
        assert list(table.matching(name)) == matching(patterns, name)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True),
        (".*q_proj", True),
        (f"^{MODULE}", True),
        ("self_attn.q_proj", True),
        ("layers.11.self_attn.q_pro.", True),
        (r"layers\.(1|2)[0-9]\..*", True),
        ("^q_proj", False),
        ("attn.q_proj", False),
        ("layers.1.self_attn.q_proj", False),
        ("q_pro", False),
        ("q_projs*", True),
        ("q_projs?", True),
        ("q_projs{0,2}", True),
        ("q_projs+", False),
    ],
)
def test_a_pattern_matches_the_end_of_a_name_after_a_dot(pattern, matches):
    assert list(ModulePatterns({pattern: 1}).matching(MODULE)) == ([pattern] if matches else [])


def test_values_are_in_the_order_of_the_file():
    assert list(ModulePatterns({".*q_proj": 2, "q_proj": 4}).matching(MODULE).values()) == [2, 4]
    assert list(ModulePatterns({"q_proj": 4, ".*q_proj": 2}).matching(MODULE).values()) == [4, 2]


def match_or_refuse(patterns, names):
    """Match, and return what refuses the patterns; check that either takes a second of processor time at most."""
    start, message = time.process_time(), None
    try:
        table = ModulePatterns(dict.fromkeys(patterns))
        for name in names:
            table.matching(name)
    except ValueError as error:
        message = str(error)
    assert time.process_time() - start < 1.0
    return message


@pytest.mark.parametrize(
    "pattern", [".*(a|a)(.|a)(.|a)(.|.)c", "(.|.).*(.|.)(.|.)(.|.)c", ".+?(.|.)?a?c", "(a?|b?).*c"]
)
def test_the_dearest_patterns_for_re_take_milliseconds(pattern):
    names = ["a." * 150, "a" * 300, "." * 300, "b.a" * 100] * 5
    assert match_or_refuse([pattern], names) is None


@pytest.mark.parametrize("pattern", EXPONENTIAL)
def test_an_exponential_pattern_ends_or_is_refused(pattern):
    message = match_or_refuse([pattern], [HOSTILE_NAME])
    assert message is None or ("takes too long" in message and repr(pattern) in message)


@pytest.mark.filterwarnings("ignore:Possible")
@given(
    st.lists(expressions(("*", "+", "*?", "{1,30}", "{3,}", "{2,9}"), leaves=20), min_size=1, max_size=8),
    st.lists(st.sampled_from([HOSTILE_NAME, "ab" * 30 + "c", ".".join(["ab" * 5] * 8), "a" * 2000]), max_size=4),
)
def test_no_patterns_take_more_than_a_second(patterns, names):
    match_or_refuse(patterns, names)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("q(", "is not a regular expression"),
        ("((a{1000}){1000}){1000}", "repeats too often"),
        ("(a{50001})?", "repeats too often"),
        ("(a|b)" * 5000, "too long"),
        ("a{" + "9" * 5000 + "}", "repeats too often"),
        ("(?x: a b)", "verbose"),
    ],
)
def test_a_pattern_that_is_invalid_or_too_large_is_refused(pattern, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        ModulePatterns({pattern: 4})
    assert len(str(refused.value)) < 400


def test_the_most_repeats_are_not_refused():
    assert list(ModulePatterns({"(a{50000})?b": 4}).matching("b")) == ["(a{50000})?b"]


def test_a_deeply_nested_pattern_is_refused_or_matched():
    table = ModulePatterns({"(" * 300 + "a|b" + ")*" * 300: 4})
    with pytest.raises(ValueError, match="nested too deeply"):
        table.matching("a")


@pytest.mark.parametrize(
    "pattern",
    [
        "layers.{block}.{kind}",
        "^{escaped}",
        "{escaped}",
        r"layers\.{block}\..*{kind}",
        r".*layers\.{block}\.({kind}|{kind}\.base_layer)",
    ],
)
def test_six_hundred_patterns_on_twelve_hundred_layers_take_less_than_a_second(pattern):
    layers = [(block, kind, f"model.layers.{block}.{kind}") for block in range(240) for kind in KINDS]
    patterns = {
        pattern.format(block=block, kind=kind, escaped=re.escape(name)): place
        for place, (block, kind, name) in enumerate(layers[:600])
    }
    start = time.process_time()
    table = ModulePatterns(patterns)
    matched = sum(bool(table.matching(name)) for _, _, name in layers)
    assert time.process_time() - start < 1.0
    assert matched == 600


def test_time_is_linear_in_the_number_of_layers():
    def seconds(blocks):
        names = [f"model.layers.{block}.{kind}" for block in range(blocks) for kind in KINDS]
        start = time.process_time()
        table = ModulePatterns({"^" + re.escape(name): 4 for name in names})
        assert all(table.matching(name) for name in names)
        return time.process_time() - start

    pairs = [(seconds(1000), seconds(100)) for _ in range(3)]
    many, few = map(min, zip(*pairs, strict=True))
    assert many < 30 * few


def test_an_adapter_with_an_exponential_pattern_is_refused_by_name_and_a_census_goes_on(write_peft):
    name = f"h.{HOSTILE_NAME}"
    factors = {f"{name}.lora_A.weight": np.eye(2, 6), f"{name}.lora_B.weight": np.eye(4, 2)}
    hostile = write_peft(factors, "adapters/hostile", rank_pattern={"(a|aa)+$": 2})
    write_peft(factors, "adapters/honest", rank_pattern={".*b": 2})
    with pytest.raises(ValueError, match=r"'\(a\|aa\)\+\$' takes too long"):
        open_adapter(hostile)
    honest, refused = census(hostile.parent)
    assert honest.failure is None
    assert "takes too long" in refused.failure


def test_no_name_is_matched_once_the_time_is_over():
    table = ModulePatterns({"(a|aa)+$": 2})
    with pytest.raises(ValueError, match="takes too long"):
        table.matching(HOSTILE_NAME)
    start = time.process_time()
    with pytest.raises(ValueError, match="takes too long"):
        table.matching(HOSTILE_NAME)
    assert time.process_time() - start < 0.1


@pytest.mark.filterwarnings("ignore:Possible")
@given(st.lists(expressions(("*", "+", "*?", "{1,30}", "{3,}"), leaves=20), min_size=1, max_size=4, unique=True))
@example(["(a|a)*b?c", r"(a+)+\1c", "(?=(a+)+$)b", r"(?<=a)(a|ab)*c"])
def test_an_adapter_with_drawn_patterns_takes_no_second_beside_its_reading(adapters_of_names, patterns):
    plain, read = adapters_of_names
    start = time.process_time()
    with suppress(ValueError):
        read(patterns)
    assert time.process_time() - start < 1.0 + plain


@pytest.fixture(scope="module")
def adapters_of_names(tmp_path_factory):
    """Return the seconds that reading an adapter takes without patterns, and a function that reads it with some."""
    folder = tmp_path_factory.mktemp("adapter")
    tensors = {}
    for name in (f"h.{HOSTILE_NAME}", "ab" * 30 + "c", "a" * 400):
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.eye(2, 6, dtype=np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.eye(4, 2, dtype=np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")

    def read(patterns):
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": dict.fromkeys(patterns, 8)}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        return open_adapter(folder)

    read([])
    start = time.process_time()
    read([])
    return time.process_time() - start, read


def test_without_the_engine_names_still_match_and_expressions_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    table = ModulePatterns({"q_proj": 2, ".*q_proj": 3, "(.+)+k_proj": 4})
    assert table.matching(MODULE) == {"q_proj": 2, ".*q_proj": 3}
    with pytest.raises(ImportError, match=r"regex.*lowrank_core\[models\]"):
        table.matching("k_proj")


@pytest.mark.parametrize(
    ("pattern", "module", "is_cheap"),
    [
        ("(a|b)(a|b)(a|b)(a|b)c", "abbac", True),
        ("(a|b)(a|b)(a|b)(a|b)(a|b)c", "abbabc", False),
        (".*q", "a" * 299 + "q", True),
        (".*q", "a" * 300 + "q", False),
    ],
)
def test_without_the_engine_cheap_expressions_match_short_names(monkeypatch, pattern, module, is_cheap):
    monkeypatch.setitem(sys.modules, "regex", None)
    table = ModulePatterns({pattern: 4})
    with nullcontext() if is_cheap else pytest.raises(ImportError, match="regex"):
        assert table.matching(module) == {pattern: 4}


def test_a_match_that_was_stopped_is_refused_however_little_processor_time_it_took(monkeypatch):
    def match(name, timeout):
        raise TimeoutError

    monkeypatch.setitem(sys.modules, "regex", SimpleNamespace(compile=lambda _: SimpleNamespace(match=match)))
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    table = ModulePatterns({"(a|aa)+c": 2})
    with pytest.raises(ValueError, match="takes too long"):
        table.matching("aac")


def test_patterns_written_by_this_package_are_looked_up():
    names = [f"model.layers.{block}.{kind}" for block in range(3) for kind in KINDS]
    table = ModulePatterns(json.loads(json.dumps({"^" + re.escape(name): 4 for name in names})))
    assert [list(table.matching(name)) for name in names] == [["^" + re.escape(name)] for name in names]
    assert not table._expressions
