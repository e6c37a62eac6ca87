import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank_core.models import resize
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.adapter import GroupedProduct
from lowrank_core.models.formats.peft_config import check_peft_config
from lowrank_core.models.formats.peft_experts import targeted_parameters

MODULE = "model.layers.11.self_attn.q_proj"


def factors(name="proj", rank=2, m=4, n=6, fill=1.0):
    return {
        f"{name}.lora_A.weight": np.full((rank, n), fill, np.float32),
        f"{name}.lora_B.weight": np.full((m, rank), fill, np.float32),
    }


def only_layer(path):
    (layer,) = open_adapter(path).layers
    return layer


@pytest.mark.parametrize(
    ("config", "rank", "scaling", "source"),
    [
        ({}, 2, 4.0, "alpha 8 (lora_alpha) / rank 2 (lora_A)"),
        ({"use_rslora": True}, 2, 8 / math.sqrt(2), "alpha 8 (lora_alpha) / sqrt(rank 2 (lora_A)), use_rslora"),
        (
            {"alpha_pattern": {"k_proj": 1, ".*q_proj": 6}},
            2,
            3.0,
            "alpha 6 (alpha_pattern '.*q_proj') / rank 2 (lora_A)",
        ),
        ({"rank_pattern": {"q_proj": 4}}, 4, 2.0, "alpha 8 (lora_alpha) / rank 4 (lora_A)"),
        (
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 16}, "use_rslora": True, "r": 64},
            4,
            8.0,
            "alpha 16 (alpha_pattern 'q_proj') / sqrt(rank 4 (lora_A)), use_rslora",
        ),
    ],
)
def test_the_scale_and_its_reason(write_peft, config, rank, scaling, source):
    layer = only_layer(write_peft(factors(MODULE, rank), **config))
    assert (layer.name, layer.rank, layer.scaling_source) == (MODULE, rank, source)
    assert layer.scaling == pytest.approx(scaling, rel=1e-15)


def test_defaults_are_those_of_peft(write_peft):
    path = write_peft(factors(rank=8))
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    layer = only_layer(path)
    assert layer.scaling == 1.0
    assert layer.scaling_source == "alpha 8 (PEFT's default, lora_alpha is not given) / rank 8 (lora_A)"


def test_orientation(write_peft, rng):
    linear, embedding, conv = (
        rng.standard_normal((3, 2, 4)),
        rng.standard_normal((3, 2, 4)),
        rng.standard_normal((2, 4)),
    )
    tensors = {
        "c_attn.lora_A.weight": linear[0],
        "c_attn.lora_B.weight": linear[1].T.copy(),
        "wte.lora_embedding_A": embedding[0],
        "wte.lora_embedding_B": embedding[1, :, :3].T.copy(),
        "conv.lora_A.weight": conv.reshape(2, 1, 2, 2),
        "conv.lora_B.weight": conv.T.reshape(4, 2, 1, 1).copy(),
    }
    c_attn, conv_layer, wte = sorted(
        open_adapter(write_peft(tensors, fan_in_fan_out=True)).layers, key=lambda layer: layer.name
    )
    assert np.allclose(c_attn.update().to_dense(), 4 * (linear[1].T @ linear[0]).T)
    assert np.allclose(wte.update().to_dense(), 4 * (embedding[1, :, :3].T @ embedding[0]).T)
    assert wte.shape == (4, 3)
    assert np.allclose(conv_layer.update().to_dense(), 4 * conv.T @ conv)
    assert not only_layer(write_peft(factors(), "plain")).transposed


def test_all_that_is_not_low_rank_is_listed(write_peft):
    tensors = factors() | {
        "proj.lora_magnitude_vector": np.ones(4, np.float32),
        "proj.lora_B.bias": np.full(4, 3.0, np.float32),
        "proj.base_layer.bias": np.ones(4, np.float32),
        "classifier.weight": np.full((2, 2), 2.0, np.float32),
        "embed.token_adapter.trainable_tokens_delta": np.ones((1, 4), np.float32),
        "lm_head.weight": np.ones((2, 2), np.float32),
        "proj.lora_velora_embed": np.ones((2, 2), np.float32),
    }
    adapter = open_adapter(write_peft(tensors, use_dora=True, modules_to_save=["classifier"]))
    found = {other.name: other.describe() for other in adapter.others}
    assert found == {
        "classifier.weight": (
            "trained in full (modules_to_save), the tensor itself and not its change: 2 × 2, float32, norm 4"
        ),
        "embed.token_adapter.trainable_tokens_delta": (
            "rows of an embedding trained in full (trainable_token_indices): 1 × 4, float32, norm 2"
        ),
        "lm_head.weight": "saved in full, the tensor itself and not its change: 2 × 2, float32, norm 2",
        "proj.bias": "trained bias, the tensor itself and not its change: 4, float32, norm 2",
        "proj.lora_B.bias": "bias of lora_B, times the layer's scale: 4, float32, norm 24",
        "proj.lora_magnitude_vector": "DoRA magnitudes, which rescale each row of base plus update: 4, float32, norm 2",
        "proj.lora_velora_embed": "unknown to LoRA: 2 × 2, float32, norm 2",
    }
    assert any(warning.startswith("use_dora: the update is") for warning in adapter.warnings)


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_alters_the_base_is_recognised(write_peft, name):
    adapter = open_adapter(write_peft(factors(), init_lora_weights=name))
    assert adapter.initialisation == name
    assert f"init_lora_weights {name!r} altered the base" in adapter.warnings[0]


@pytest.mark.parametrize("name", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_no_warning_of_an_initialisation_that_leaves_the_base(write_peft, name):
    adapter = open_adapter(write_peft(factors(), init_lora_weights=name))
    assert adapter.initialisation is None
    assert not adapter.warnings


def test_readers_that_would_apply_a_different_scale_are_named(write_peft):
    tensors = factors("a.q_proj", 4) | factors("b.k_proj", 2)
    config = {"use_rslora": True, "r": 4, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4}}
    warnings = open_adapter(write_peft(tensors, **config)).warnings
    # True scales: 8/√4 = 4 and 4/√2 = 2.828427.
    llama, single, standard = warnings
    assert llama.startswith("llama.cpp")
    assert "2 of 2 layers, as 2 instead of 4 in 'a.q_proj'" in llama
    assert single.startswith("readers of a single scale")
    assert "1 of 2 layers, as 4 instead of 2.82843 in 'b.k_proj'" in single
    assert standard.startswith("readers that do not know use_rslora")
    assert "2 of 2 layers, as 2 instead of 4" in standard


def test_padding_to_one_rank_is_right_in_every_reader(write_peft):
    assert not open_adapter(write_peft(factors("a", 4) | factors("b", 4), r=4, lora_alpha=4)).warnings


def test_mixed_ranks_with_alpha_equal_to_the_rank_are_wrong_elsewhere(write_peft):
    tensors = factors("a", 4) | factors("b", 2)
    patterns = {"rank_pattern": {"b": 2}, "alpha_pattern": {"b": 2}}
    warnings = open_adapter(write_peft(tensors, r=4, lora_alpha=4, **patterns)).warnings
    assert len(warnings) == 1
    assert "as 2 instead of 1 in 'b'" in warnings[0]


def test_a_warning_of_patterns_whose_order_peft_changes(write_peft):
    patterns = {"proj": 4, ".*proj": 16}
    warnings = open_adapter(write_peft(factors(), alpha_pattern=patterns)).warnings
    assert any("'proj' ('proj': 4, '.*proj': 16): PEFT takes the first in the file" in warning for warning in warnings)


def test_a_warning_of_ranks_that_are_not_those_of_the_configuration(write_peft):
    adapter = open_adapter(write_peft(factors(rank=4), r=2))
    assert adapter.layers[0].scaling == 2.0
    assert any("as 'proj' with 4 and 2: PEFT refuses to load them" in warning for warning in adapter.warnings)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_half_a_product_is_refused(write_peft, part):
    tensors = factors()
    del tensors[f"proj.{part}.weight"]
    with pytest.raises(ValueError, match=f"'proj' has lora_[AB] but no {part}: half of a product"):
        open_adapter(write_peft(tensors))


def test_ranks_that_disagree_are_refused(write_peft):
    tensors = factors() | {"proj.lora_B.weight": np.ones((4, 3), np.float32)}
    with pytest.raises(
        ValueError, match="'proj' disagree: A is 2 × 6, so its rank is 2, but B is 4 × 3, so its rank is 3"
    ):
        open_adapter(write_peft(tensors))


def test_a_convolution_whose_ranks_disagree_is_not_taken_for_a_grouped_one(write_peft):
    tensors = {
        "conv.lora_A.weight": np.ones((4, 3, 2, 2), np.float32),
        "conv.lora_B.weight": np.ones((6, 2, 1, 1), np.float32),
    }
    assert only_layer(write_peft(tensors, "grouped", r=4)).build == GroupedProduct(2)
    with pytest.raises(ValueError, match="'conv' disagree"):
        open_adapter(write_peft(tensors, "mistaken", r=2))


@pytest.mark.parametrize("kernel", [(3,), (3, 1), (1, 3)])
def test_a_kernel_of_b_is_refused(write_peft, kernel):
    tensors = {"conv.lora_A.weight": np.ones((2, 6, *kernel)), "conv.lora_B.weight": np.ones((4, 2, *kernel))}
    with pytest.raises(ValueError, match="but B is a matrix, or a convolution of kernel size 1"):
        open_adapter(write_peft(tensors))


def test_the_old_name_of_the_weights_is_beside_the_configuration_too(write_peft):
    path = write_peft(factors())
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    adapter = open_adapter(path)
    assert (adapter.format, [layer.scaling for layer in adapter.layers]) == ("peft", [4.0])


@pytest.mark.parametrize("shape", [(0, 6), (6,)])
def test_shards_that_were_not_gathered_are_recognised(write_peft, shape):
    tensors = factors() | {"proj.lora_A.weight": np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=r"lora_A.weight' has shape .* ZeRO-3 or FSDP"):
        open_adapter(write_peft(tensors))


def test_integer_factors_are_refused(write_peft):
    tensors = factors() | {"proj.lora_A.weight": np.ones((2, 6), np.int8)}
    with pytest.raises(ValueError, match=r"is stored as int8: plain weights are"):
        open_adapter(write_peft(tensors))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "has peft_type 'LOHA'"),
        ({"use_qalora": True}, "sets use_qalora: QA-LoRA pools the input"),
        ({"kasa_config": {"beta": 1}}, "sets kasa_config"),
        ({"lora_alpha": "16"}, "lora_alpha '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_alpha": 10**400}, "alpha is a finite number"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"r": 0}, "r 0: a rank is a whole number, at least 1"),
        ({"r": True}, "r True"),
        ({"r": 2.5}, "r 2.5"),
        ({"use_rslora": "false"}, "use_rslora 'false': true or false is needed"),
        ({"rank_pattern": ["q"]}, "an object of patterns and their values"),
        ({"rank_pattern": {"q": -1}}, "q -1: a rank is"),
        ({"alpha_pattern": {"q(": 4}}, "is not a regular expression"),
    ],
)
def test_a_bad_configuration_is_explained(write_peft, config, message):
    with pytest.raises(ValueError, match=message):
        open_adapter(write_peft(factors(), **config))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("BOFT", "a rotation of the base's weight, which depends on it"),
        ("FOURIERFT", "Fourier coefficients, whose frequencies are not in the file"),
        ("CPT", "soft prompts, which change no weight"),
        ("OF_TOMORROW", "which is not known"),
    ],
)
def test_why_a_type_is_not_read_is_said(tmp_path, kind, why):
    path = tmp_path / "adapter_config.json"
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        check_peft_config(path, {"peft_type": kind})
    read = "LORA, LOHA, LOKR, ADALORA, VERA and, with its base model, IA3"
    assert str(refused.value) == f"{str(path)!r} has peft_type {kind!r}, {why}: {read} are read"


def test_a_configuration_without_a_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no peft_type"):
        check_peft_config(tmp_path / "adapter_config.json", {"r": 8})


def test_a_file_without_factors_is_refused(write_peft):
    with pytest.raises(ValueError, match="contains no LoRA factors"):
        open_adapter(write_peft({"classifier.weight": np.ones((2, 2), np.float32)}))


def test_a_name_with_a_newline_is_a_layer_like_others(write_peft):
    adapter = open_adapter(write_peft(factors("a\nb", rank=3) | factors("c"), rank_pattern={"a\nb": 3}))
    assert [(layer.name, layer.rank) for layer in adapter.layers] == [("a\nb", 3), ("c", 2)]
    assert not adapter.others


@pytest.mark.parametrize(
    ("rename", "warned"),
    [
        (lambda key: key.replace(".weight", ".default.weight"), ""),
        (lambda key: key.replace(".weight", ".mine.weight"), "adapter_name='mine'"),
        (lambda key: key.replace("block.", "block._orig_mod."), "PEFT loads nothing of them"),
        (lambda key: f"_orig_mod.{key}", "PEFT loads nothing of them"),
    ],
)
def test_names_with_more_in_them_are_read_without_it_and_kept(write_peft, tmp_path, rename, warned):
    tensors = factors("block.proj") | factors("block.k_proj", rank=4)
    path = write_peft(
        {rename(key): tensor for key, tensor in tensors.items()}, rank_pattern={"k_proj": 4}, modules_to_save=["head"]
    )
    adapter = open_adapter(path)
    assert [(layer.name, layer.rank, layer.scaling) for layer in adapter.layers] == [
        ("block.k_proj", 4, 2.0),
        ("block.proj", 2, 4.0),
    ]
    assert any(warned in warning for warning in adapter.warnings) or not warned
    assert not any("names of tensors" in warning or "_orig_mod" in warning for warning in adapter.warnings) or warned
    resize(path, tmp_path / "new", rank=1)
    assert (
        load_file(tmp_path / "new" / "adapter_model.safetensors").keys()
        == load_file(path / "adapter_model.safetensors").keys()
    )


def test_two_adapters_in_one_file_are_refused_by_their_names(write_peft):
    one, other = (
        {key.replace(".weight", f".{name}.weight"): tensor for key, tensor in factors().items()}
        for name in ("one", "two")
    )
    with pytest.raises(ValueError, match="several adapters \\('one' and 'two'\\)"):
        open_adapter(write_peft(one | other))
    with pytest.raises(ValueError, match="several adapters \\('one'\\)"):
        open_adapter(write_peft(one | factors(), "unnamed"))


def test_magnitudes_and_biases_lose_the_adapters_name_too(write_peft):
    tensors = {
        **{key.replace(".weight", ".mine.weight"): tensor for key, tensor in factors().items()},
        "proj.lora_magnitude_vector.mine.weight": np.ones(4, np.float32),
        "proj.lora_B.mine.bias": np.ones(4, np.float32),
    }
    others = {other.name: other for other in open_adapter(write_peft(tensors)).others}
    assert others["proj.lora_magnitude_vector.weight"].magnitudes
    assert others["proj.lora_B.bias"].scaling == 4.0
    assert {other.follows for other in others.values()} == {"proj"}


def test_one_layer_that_cannot_be_read_is_its_own_failure(write_peft):
    tensors = factors() | factors("half")
    del tensors["half.lora_B.weight"]
    adapter = open_adapter(write_peft(tensors))
    assert [layer.name for layer in adapter.layers] == ["proj"]
    assert "half of a product" in adapter.unsupported["half"]


def test_adapters_in_subfolders_are_mentioned(write_peft):
    path = write_peft(factors())
    write_peft(factors(), "adapter/second")
    assert any("more adapters in subfolders" in w and "second" in w for w in open_adapter(path).warnings)


def test_a_null_flag_an_unknown_key_and_a_byte_order_mark_change_nothing(write_peft):
    path = write_peft(factors(), use_rslora=None, fan_in_fan_out=None, nobody_knows_this={"x": 1})
    config = path / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    layer = only_layer(path)
    assert (layer.scaling, layer.transposed, layer.rule) == (4.0, False, "standard")


def test_the_projection_that_peft_adds_twice_is_mentioned(write_peft):
    adapter = open_adapter(write_peft(factors("mha") | factors("mha.base_layer.out_proj")))
    assert any("'mha.out_proj'" in warning and "twice" in warning for warning in adapter.warnings)
    assert not open_adapter(write_peft(factors("mha.out_proj"), "linear")).warnings


def test_which_modules_are_experts_is_found_in_time_linear_in_their_number():
    class Counted(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Counted.compared += 1
            return str.__eq__(self, other)

    def comparisons(count):
        Counted.compared = 0
        targets = [Counted(f"layers.{index}.q_proj") for index in range(count)]
        raw = {"target_modules": targets, "target_parameters": ["down_proj"], "peft_type": "LORA", "r": 2}
        modules = {f"model.layers.{index}.{name}": 4 for index in range(count) for name in ("q_proj", "experts")}
        parameters = targeted_parameters(modules, check_peft_config(Path("x"), raw))
        assert len(parameters) == count
        return Counted.compared

    assert comparisons(400) <= 3 * comparisons(200) + 100
