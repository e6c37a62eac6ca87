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
    advice = "a pattern has to match a whole name, or its end after a dot; * stands for anything"
    with pytest.raises(ValueError, match=r"^exclude 'v_proj'") as refused:
        select(NAMES, [], ["v_proj"])
    assert str(refused.value) == f"exclude 'v_proj' matches none of the 5 layers, as 'layers.0.q_proj': {advice}"
    with pytest.raises(
        ValueError, match=r"^the patterns leave none of the 5 layers: include \['up'\], exclude \['mlp.up'\]$"
    ):
        select(NAMES, ["up"], ["mlp.up"])
    with pytest.raises(ValueError, match=r"^rank 'x' matches none of the 0 layers:"):
        check_patterns("rank", ["x"], [])


# A module of a model of transformers for each name.
@pytest.mark.parametrize(
    "name",
    [
        *("model.embed_tokens", "transformer.wte", "transformer.wpe", "transformer.tokens_embed", "shared"),
        *("transformer.positions_embed", "bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings"),
        *("bert.embeddings.token_type_embeddings", "model.decoder.embed_positions", "tok_embeddings"),
        *("text_model.embeddings.token_embedding", "gpt_neox.embed_in", "text_model.embeddings.position_embedding"),
        *("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "word_embedding", "embed", "embedding"),
        "embeddings",
    ],
)
def test_embeddings_are_recognised_by_name(name):
    assert is_embedding(name)


@pytest.mark.parametrize("name", ["attn.c_attn", "mlp.c_fc", "mlp.c_proj", "crossattention.q_attn"])
def test_conv1d_weights_are_recognised_by_name(name):
    assert is_conv1d(f"transformer.h.0.{name}")


def test_other_modules_are_neither_embeddings_nor_conv1d():
    assert not is_embedding("model.embed_tokens.proj")
    assert not is_conv1d("model.layers.0.self_attn.q_proj")
