import pytest

from lowrank_core.models.module_names import check_patterns, is_conv1d, is_embedding, matches, select

NAMES = ["layers.0.q_proj", "layers.1.q_proj", "layers.11.q_proj", "layers.1.mlp.up", "xq_proj"]


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("q_proj", NAMES[:3]),
        ("*q_proj", [*NAMES[:3], "xq_proj"]),
        ("layers.1.*", ["layers.1.q_proj", "layers.1.mlp.up"]),
        ("1.q_proj", ["layers.1.q_proj"]),
        ("layers.?.q_proj", NAMES[:2]),
        ("layers.[01].q_proj", NAMES[:2]),
        ("mlp.*", ["layers.1.mlp.up"]),
        ("Q_PROJ", []),
        ("layers", []),
        ("*", NAMES),
    ],
)
def test_patterns_match_whole_names_or_their_ends(pattern, chosen):
    assert [name for name in NAMES if matches(name, [pattern])] == chosen


def test_included_names_less_excluded_ones_in_their_order():
    assert select(NAMES, [], []) == NAMES
    assert select(NAMES, ["q_proj", "up"], ["layers.1.*"]) == ["layers.0.q_proj", "layers.11.q_proj"]
    assert select([], [], []) == []


def test_a_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(ValueError, match="exclude 'v_proj' matches none of the 5 layers, as 'layers"):
        select(NAMES, [], ["v_proj"])
    with pytest.raises(ValueError, match="the patterns leave none of the 5 layers"):
        select(NAMES, ["up"], ["mlp.up"])
    with pytest.raises(ValueError, match="rank 'x' matches none of the 0 layers:"):
        check_patterns("rank", ["x"], [])


def test_embeddings_and_conv1d_weights_are_recognised_by_name():
    assert is_embedding("model.embed_tokens")
    assert is_embedding("transformer.wte")
    assert not is_embedding("model.embed_tokens.proj")
    assert is_conv1d("transformer.h.0.attn.c_attn")
    assert not is_conv1d("model.layers.0.self_attn.q_proj")
