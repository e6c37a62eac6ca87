import json
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core import rank_for_variance
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.operations.extraction import extract
from tests.models.models_on_disk import (
    LINEAR,
    assert_figures,
    checkpoint_pair,
    fingerprint,
    written_updates,
)

EPS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def assert_written(report, updates, transposed=()):
    """Each layer's report is what NumPy's SVD and the written file say."""
    written = written_updates(report.out, transposed)
    assert {layer.name for layer in report.layers if layer.rank} == set(written)
    for layer in report.layers:
        figures = assert_figures(layer, updates[layer.name], written.get(layer.name, 0 * updates[layer.name]))
        # Both factors are rounded, entry by entry: within 2·eps·r^¼·‖Δ_r‖, as operations/pipeline.py derives.
        assert figures["storage_error"] <= 2 * EPS[report.dtype] * max(layer.rank, 1) ** 0.25 + 1e-7
    return written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("rule", ["standard", "rslora"])
def test_the_best_update_of_that_rank_is_written(tmp_path, rng, dtype, rule):
    paths, updates = checkpoint_pair(tmp_path, rng)
    report = extract(*paths, tmp_path / "out", rank=3, dtype=dtype, rule=rule, alpha=5.0)
    assert_written(report, updates)
    assert [layer.rank for layer in report.layers] == [3, 3, 3]
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype.name for tensor in stored.values()} == {dtype}
    assert report.config == json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (report.config["r"], report.config["lora_alpha"], report.config["use_rslora"]) == (3, 5, rule == "rslora")
    assert report.totals.bytes == sum(tensor.nbytes for tensor in stored.values())
    assert report.totals.parameters == sum(tensor.size for tensor in stored.values())


@pytest.mark.parametrize("source", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_checkpoints_of_every_precision(tmp_path, rng, source):
    paths, updates = checkpoint_pair(tmp_path, rng, dtype=source, size=0.3)
    report = extract(*paths, tmp_path / "out", rank=4, dtype="float64")
    assert_written(report, updates)
    assert {layer.dtype for layer in report.layers} == {np.dtype(source).name}


def test_totals_are_those_of_the_block_diagonal_update(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng)
    report = extract(*paths, tmp_path / "out", rank=2, dtype="float16")
    written = written_updates(tmp_path / "out")
    norm = np.sqrt(sum(np.linalg.norm(update) ** 2 for update in updates.values()))
    lost = np.sqrt(sum(np.linalg.norm(written[name] - updates[name]) ** 2 for name in updates)) / norm
    heads = sum(np.sum(np.linalg.svd(update)[1][:2] ** 2) for update in updates.values())
    assert report.totals.norm == pytest.approx(norm, rel=1e-7)
    assert report.totals.error == pytest.approx(lost, rel=1e-6)
    assert report.totals.variance_captured == pytest.approx(heads / norm**2, rel=1e-6)
    assert report.totals.source_parameters == sum(update.size for update in updates.values())
    assert report.totals.source_bytes == 4 * report.totals.source_parameters


def test_each_components_size_is_divided_equally_between_the_factors(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng)
    extract(*paths, tmp_path / "out", rank=4, dtype="float64")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, update in updates.items():
        values = np.linalg.svd(update)[1][:4]
        A, B = (stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        # √(σ/γ) in each, γ = 16/4.
        assert np.linalg.norm(A, axis=1) == pytest.approx(np.sqrt(values / 4), rel=1e-6)
        assert np.linalg.norm(B, axis=0) == pytest.approx(np.sqrt(values / 4), rel=1e-6)


def test_a_rank_beyond_a_layers_own_is_clamped_and_reported(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng, shapes={"wide": (3, 30), "tall": (9, 5)})
    report = extract(*paths, tmp_path / "out", rank=4)
    assert_written(report, updates)
    assert {layer.name: (layer.rank, layer.requested_rank) for layer in report.layers} == {
        "wide": (3, 4),
        "tall": (4, 4),
    }
    assert report.layers[1].error < 1e-6


def test_ranks_from_a_function_of_the_spectrum(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng)
    report = extract(*paths, tmp_path / "out", rank=lambda found: rank_for_variance(found, 0.9))
    assert_written(report, updates)
    for layer in report.layers:
        energy = np.cumsum(np.linalg.svd(updates[layer.name])[1] ** 2)
        assert layer.rank == 1 + np.count_nonzero(energy < 0.9 * energy[-1])


def test_ranks_by_name_and_a_layer_of_rank_0(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng)
    report = extract(*paths, tmp_path / "out", rank={LINEAR[0]: 1, LINEAR[1]: 5, LINEAR[2]: 0, "another": 9})
    assert_written(report, updates)
    assert [layer.rank for layer in report.layers] == [1, 5, 0]
    dropped = report.layers[2]
    assert (dropped.error, dropped.variance_captured, dropped.parameters, dropped.alpha) == (1.0, 0.0, 0, None)
    assert report.config["target_modules"] == sorted(LINEAR[:2])
    assert report.totals.error > dropped.norm / report.totals.norm


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_uniform_pads_to_one_rank_with_scale_1(tmp_path, rng, out, dtype):
    paths, _ = checkpoint_pair(tmp_path, rng)
    ranks = {LINEAR[0]: 1, LINEAR[1]: 5, LINEAR[2]: 3}
    report = extract(*paths, tmp_path / out, rank=ranks, uniform=True, dtype=dtype)
    plain = extract(*paths, tmp_path / f"plain-{out}", rank=ranks, alpha=1.0, dtype="float64")
    assert {(layer.stored_rank, layer.alpha, layer.scaling) for layer in report.layers} == {(5, 5.0, 1.0)}
    assert [layer.rank for layer in report.layers] == [1, 5, 3]
    assert ["are larger than the matrices" in warning for warning in report.warnings] == [True]
    expected = written_updates(plain.out)
    for name, update in written_updates(report.out).items():
        assert np.linalg.norm(update - expected[name]) <= 4 * EPS[dtype] * np.linalg.norm(expected[name])
    if report.config is not None:
        assert (report.config["rank_pattern"], report.config["alpha_pattern"]) == ({}, {})
        assert report.config["r"] == report.config["lora_alpha"] == 5


def test_uniform_takes_no_alpha_and_no_other_rule(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    for options in ({"alpha": 8.0}, {"rule": "rslora"}):
        with pytest.raises(ValueError, match=r"^uniform sets alpha"):
            extract(*paths, tmp_path / "out", rank=2, uniform=True, **options)


def test_include_and_exclude(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    extracted = partial(extract, *paths, tmp_path / "out", rank=1, dry_run=True)
    assert [layer.name for layer in extracted(include=["q_proj"]).layers] == [LINEAR[0], LINEAR[2]]
    assert [layer.name for layer in extracted(include=["layers.0.*"], exclude=["up"]).layers] == [LINEAR[0]]
    with pytest.raises(ValueError, match=r"^include 'k_proj' matches none of the 3 layers, as 'layers\.0\.q_proj'"):
        extracted(include=["k_proj"])
    with pytest.raises(ValueError, match=r"^the patterns leave none of the 3 layers"):
        extracted(exclude=["*"])


def test_kohya_files_convolutions_too(tmp_path, rng):
    shapes = {"down.conv": (6, 4, 3, 2), "down.point": (6, 4, 1, 1), "attn.to_q": (5, 7)}
    paths, updates = checkpoint_pair(tmp_path, rng, shapes=shapes)
    report = extract(*paths, tmp_path / "out.safetensors", rank=2, prefix="lora_te", rule="rslora", alpha=3.0)
    stored = load_file(tmp_path / "out.safetensors")
    assert stored["lora_te_down_conv.lora_down.weight"].shape == (2, 4, 3, 2)
    assert stored["lora_te_down_conv.lora_up.weight"].shape == (6, 2, 1, 1)
    assert stored["lora_te_down_point.lora_down.weight"].shape == (2, 4, 1, 1)
    # Its readers know α/r alone: α√r stands in for rsLoRA.
    assert float(stored["lora_te_attn_to_q.alpha"]) == pytest.approx(3 * 2**0.5)
    written = written_updates(tmp_path / "out.safetensors")
    for layer in report.layers:
        update = updates[layer.name].reshape(layer.shape)
        assert_figures(layer, update, written[f"lora_te_{layer.name.replace('.', '_')}"])


def test_peft_convolutions(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng, shapes={"conv": (6, 4, 3, 2), "lin": (5, 7)})
    report = extract(*paths, tmp_path / "out", rank=2)
    assert_written(report, {name: update.reshape(len(update), -1) for name, update in updates.items()})
    assert load_file(tmp_path / "out/adapter_model.safetensors")["base_model.model.conv.lora_B.weight"].shape == (
        *(6, 2),
        *(1, 1),
    )


@pytest.mark.parametrize("how", ["config.json", "flag"])
def test_weights_stored_as_in_by_out(tmp_path, rng, how):
    shapes = {"h.0.attn.c_attn": (8, 24), "h.0.mlp.other": (8, 8)}
    paths, updates = checkpoint_pair(tmp_path, rng, shapes=shapes)
    if how == "config.json":
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    patterns = ["c_attn"] if how == "flag" else None
    report = extract(*paths, tmp_path / "out", rank=2, transposed=patterns, prefix="transformer")
    assert report.config["fan_in_fan_out"] is True
    assert report.warnings == ()
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (2, 8)
    assert report.config["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.other"]
    written = written_updates(tmp_path / "out", transposed=["transformer.h.0.attn.c_attn"])
    for layer in report.layers:
        assert_figures(layer, updates[layer.name], written[f"transformer.{layer.name}"])


def test_a_warning_of_names_of_conv1d_without_a_config(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, shapes={"h.0.c_fc": (8, 24)})
    (warning,) = extract(*paths, tmp_path / "out", rank=2, dry_run=True).warnings
    assert "named as GPT-2's Conv1D, as 'h.0.c_fc'" in warning
    assert extract(*paths, tmp_path / "out", rank=2, dry_run=True, transposed=[]).warnings == ()


def test_embeddings_are_extracted_on_request(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng, shapes={"model.embed_tokens": (30, 6), "model.up": (9, 6)})
    left = extract(*paths, tmp_path / "left", rank=2)
    assert [layer.name for layer in left.layers] == ["model.up"]
    norm = np.linalg.norm(updates["model.embed_tokens"])
    assert f"changed by norm {norm:.4g}" in left.skipped["model.embed_tokens"]
    report = extract(*paths, tmp_path / "out", rank=2, embeddings=["embed_tokens"])
    assert_written(report, updates)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored["base_model.model.model.embed_tokens.lora_embedding_A"].shape == (2, 30)
    in_kohya = extract(*paths, tmp_path / "out.safetensors", rank=2, embeddings=["embed_tokens"])
    assert "kohya's format does not have" in in_kohya.skipped["model.embed_tokens"]


def test_what_an_adapter_cannot_store_is_listed_with_its_norm(tmp_path, rng):
    bias, norm_weight = np.zeros(12, np.float32), np.ones(8, np.float32)
    experts = np.zeros((3, 4, 4), np.float32)
    others = [
        ("layers.0.q_proj.bias", bias, bias + 3),
        ("norm.weight", norm_weight, norm_weight + 0.5),
        ("same.bias", bias, bias),
        ("experts.down", experts, experts + 1),
        ("table", np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.float32)),
    ]
    paths, _ = checkpoint_pair(tmp_path, rng, others=others)
    report = extract(*paths, tmp_path / "out", rank=2)
    assert report.skipped.keys() == {"layers.0.q_proj.bias", "norm.weight", "table"}
    assert {layer.name for layer in report.layers} >= {f"experts.down[{expert}]" for expert in range(3)}
    assert not report.complete
    for key, norm in {"layers.0.q_proj.bias": 3 * 12**0.5, "norm.weight": 0.5 * 8**0.5, "table": 8.0}.items():
        assert f"changed by norm {norm:.4g}" in report.skipped[key]
    assert "no module's weight" in report.skipped["table"]


def test_tensors_of_one_checkpoint_alone_and_other_shapes(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, others=[("lm_head.weight", np.ones((4, 2)), np.ones((5, 2)))])
    tensors = load_file(paths[1])
    save_file(tensors | {"score.weight": np.ones((1, 8), np.float32)}, paths[1])
    report = extract(*paths, tmp_path / "out", rank=2)
    assert "only in the tuned checkpoint" in report.failures["score"]
    assert "shapes differ: 4 × 2 in the base, 5 × 2" in report.failures["lm_head"]
    rest = extract(*paths, tmp_path / "out2", rank=2, exclude=["lm_head", "score"])
    assert (rest.failures, rest.complete) == ({}, True)


def test_a_resized_vocabulary_is_skipped_unless_requested(tmp_path, rng):
    others = [("embed_tokens.weight", np.ones((4, 2), np.float32), np.ones((5, 2), np.float32))]
    paths, _ = checkpoint_pair(tmp_path, rng, others=others)
    report = extract(*paths, tmp_path / "out", rank=2)
    assert "shapes differ" in report.skipped["embed_tokens"]
    assert report.failures == {}


def test_layers_that_did_not_change(tmp_path, rng):
    same = rng.standard_normal((4, 4)).astype(np.float32)
    paths, _ = checkpoint_pair(tmp_path, rng, others=[("still.weight", same, same)])
    report = extract(*paths, tmp_path / "out", rank=2)
    assert report.unchanged == ("still",)
    assert "still" not in report.config["target_modules"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_layer_is_reported_and_the_others_done(tmp_path, rng, bad):
    weight = np.ones((4, 4), np.float32)
    broken = weight.copy()
    broken[1, 2] = bad
    paths, updates = checkpoint_pair(tmp_path, rng, others=[("bad.weight", weight, broken)])
    report = extract(*paths, tmp_path / "out", rank=2)
    assert report.failures == {"bad": "the tuned checkpoint contains NaN or infinity in 1 of its 16 entries"}
    assert report.totals.failures == 1
    assert_written(report, updates)


def test_nothing_to_write(tmp_path, rng):
    weight = np.ones((4, 4), np.float32)
    save_file({"a.weight": weight}, tmp_path / "a.safetensors")
    save_file({"a.weight": weight * np.nan}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"none of the 1 layers .* keeps a component"):
        extract(tmp_path / "a.safetensors", tmp_path / "a.safetensors", tmp_path / "out", rank=2)
    with pytest.raises(ValueError, match="the first of 1, a: the tuned checkpoint contains NaN"):
        extract(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out", rank=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_sharded_checkpoints_give_the_same_adapter(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    tensors = load_file(paths[1])
    weight_map = {key: f"model-{i:05}-of-00003.safetensors" for i, key in enumerate(sorted(tensors), 1)}
    for key, shard in weight_map.items():
        save_file({key: tensors[key]}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    extract(*paths, tmp_path / "one", rank=3)
    extract(paths[0], sharded, tmp_path / "two", rank=3)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_tied_weights_appear_once(tmp_path, rng):
    # lm_head is tied to embed_tokens, and safetensors stores it once: only the embedding is there to be extracted.
    paths, updates = checkpoint_pair(tmp_path, rng, shapes={"embed_tokens": (20, 6), "up": (9, 6)})
    report = extract(*paths, tmp_path / "out", rank=6, embeddings=["embed_tokens"])
    assert_written(report, updates)
    assert sorted(report.config["target_modules"]) == ["embed_tokens", "up"]


def test_a_dry_run_reports_and_writes_nothing(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    before = sorted(tmp_path.rglob("*"))
    options = {"rank": {LINEAR[0]: 1, LINEAR[1]: 2, LINEAR[2]: 4}, "rule": "rslora"}
    dry = extract(*paths, tmp_path / "out", **options, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    wet = extract(*paths, tmp_path / "out", **options)
    assert (dry.written, wet.written) == (False, True)
    assert (dry.totals, dry.config, dry.skipped) == (wet.totals, wet.config, wet.skipped)
    assert dry.warnings == wet.warnings == open_adapter(tmp_path / "out").warnings
    assert any("llama.cpp" in warning for warning in dry.warnings)


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_an_existing_output_needs_force(tmp_path, rng, out):
    paths, _ = checkpoint_pair(tmp_path, rng)
    extract(*paths, tmp_path / out, rank=2)
    before = fingerprint(tmp_path / out)
    with pytest.raises(FileExistsError, match="exists already: --force"):
        extract(*paths, tmp_path / out, rank=3)
    assert fingerprint(tmp_path / out) == before
    assert extract(*paths, tmp_path / out, rank=3, force=True).layers[0].rank == 3
    assert fingerprint(tmp_path / out) != before


def test_an_input_is_never_overwritten(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    with pytest.raises(FileExistsError, match="never written over its own input"):
        extract(*paths, paths[1], rank=2, force=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "a rank is a whole number of at least 0; got -1"),
        ({"rank": 1.5}, "a rank is a whole number"),
        ({"rank": True}, "a rank is a whole number"),
        ({"rank": {LINEAR[0]: 1}}, "none for 2 of the layers, as 'layers.0.up'"),
        ({"rank": 1, "dtype": "int8"}, "unsupported dtype 'int8': float64, float32, float16, bfloat16 are written"),
        ({"rank": 1, "rule": "unscaled"}, "unsupported rule 'unscaled': an adapter can name"),
        ({"rank": 1, "alpha": 0.0}, "alpha"),
        ({"rank": 1, "embeddings": ["nothing"]}, "embedding 'nothing' matches none"),
        ({"rank": 1, "transposed": ["nothing"]}, "transposed 'nothing' matches none"),
    ],
)
def test_invalid_options(tmp_path, rng, options, message):
    paths, _ = checkpoint_pair(tmp_path, rng)
    with pytest.raises(ValueError, match=message):
        extract(*paths, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_factors_that_do_not_fit_their_dtype(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, shapes={"large": (4, 4), "small": (4, 4)}, size=1.0)
    tuned = load_file(paths[1])
    save_file(tuned | {"large.weight": tuned["large.weight"] * np.float32(1e12)}, paths[1])
    report = extract(*paths, tmp_path / "out", rank=2, dtype="float16")
    assert report.failures == {"large": "its factors do not fit float16: store them in bfloat16 or float32"}


def test_a_warning_of_what_a_narrow_dtype_loses(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, size=1e-14, dtype=np.float64)
    (warning,) = extract(*paths, tmp_path / "out", rank=2, dtype="float16").warnings
    assert "float16 is too narrow for the factors of 3 of 3 layers" in warning


def test_progress_and_order(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    seen = []
    extract(*paths, tmp_path / "out", rank=2, dry_run=True, progress=lambda *told: seen.append(told))
    assert seen == [(name, i, 3) for i, name in enumerate(LINEAR, 1)]


def test_a_module_whose_name_is_the_end_of_another_is_targeted_alone(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, shapes={"proj": (6, 4), "block.proj": (6, 4)})
    config = extract(*paths, tmp_path / "out", rank=2, include=["proj"], exclude=["block.proj"]).config
    assert config["target_modules"] == "proj"


def test_relative_paths(tmp_path, rng, monkeypatch):
    paths, _ = checkpoint_pair(tmp_path, rng)
    monkeypatch.chdir(tmp_path)
    report = extract(*(path.name for path in paths), "out", rank=2)
    assert report.sources == ("base.safetensors", "tuned.safetensors")
    assert report.config["base_model_name_or_path"] == "base.safetensors"
    assert Path("out/adapter_config.json").is_file()
