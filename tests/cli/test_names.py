"""Names are shortened, but two layers never become one."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core.cli.names import blocks
from lowrank_core.models.layer_kinds import by_kind, common_prefix, in_natural_order
from lowrank_core.models.module_names import kind


class Layer(NamedTuple):
    """A layer of whatever report."""

    name: str


parts = st.sampled_from(["model", "layers", "0", "1", "2", "10", "11", "attn", "q_proj", "mlp", "fc1"])
names = st.lists(st.lists(parts, min_size=1, max_size=5).map(".".join), min_size=1, max_size=30, unique=True)


@pytest.mark.parametrize(
    ("given_names", "prefix"),
    [
        (["model.layers.1.q", "model.layers.11.q"], "model.layers."),
        (["lora_unet_down_0", "lora_unet_up_0"], "lora_unet_"),
        (["a.b", "c.d"], ""),
        (["model.layers.0.q"], ""),
        ([], ""),
        (["a.b", "a.b.c"], "a."),
    ],
)
def test_common_prefix(given_names: list[str], prefix: str) -> None:
    assert common_prefix(given_names) == prefix


@given(names)
def test_all_names_begin_with_the_prefix_and_go_on_after_it(given_names: list[str]) -> None:
    prefix = common_prefix(given_names)
    assert all(name.startswith(prefix) and name != prefix for name in given_names)


def test_kind_replaces_whole_numbers_only() -> None:
    assert kind("model.layers.11.mlp.fc1") == "model.layers.*.mlp.fc1"
    assert kind("lora_unet_down_blocks_0_attentions_1_to_q") == "lora_unet_down_blocks_*_attentions_*_to_q"


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    assert in_natural_order(["h.10.b", "h.2.b", "h.2.a", "g"]) == ["g", "h.2.a", "h.2.b", "h.10.b"]
    long = [f"h.{digit}{'0' * 5000}" for digit in "123"]
    assert in_natural_order([*long[::-1], "h.007"]) == ["h.007", *long]


@given(names)
def test_blocks_contain_every_name_once_and_in_full(given_names: list[str]) -> None:
    gathered = blocks(given_names)
    assert sorted(name for _, members in gathered for name, _ in members) == sorted(given_names)
    for block, members in gathered:
        for name, short in members:
            assert name == (f"{block}.{short}" if block else short)


def test_blocks_are_made_only_where_they_shorten() -> None:
    assert [block for block, _ in blocks(["0.q", "0.v", "1.q", "1.v"])] == ["0", "1"]
    assert [block for block, _ in blocks(["0.q", "1.q", "2.q"])] == [""]


@given(names)
def test_every_name_is_under_the_end_of_its_kind_once(given_names: list[str]) -> None:
    kinds = by_kind(Layer(name) for name in given_names)
    gathered = {short: [layer.name for layer in layers] for short, layers in kinds.items()}
    assert sorted(name for members in gathered.values() for name in members) == sorted(given_names)
    for short, members in gathered.items():
        assert members == in_natural_order(members)
        assert all(kind(name).endswith(short) or short in members for name in members)
