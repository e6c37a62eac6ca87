import json
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core import rank_for_variance
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.resizing import resize
from tests.models.models_on_disk import assert_figures, fingerprint, written_updates


def factors(rng, out, kernel, rank, dtype=np.float32):
    """A and B, as PEFT and kohya store them, with a falling spectrum."""
    A = rng.standard_normal((rank, *kernel)) * (0.5 ** np.arange(rank)).reshape(-1, *(1 for _ in kernel))
    B = rng.standard_normal((out, rank, *(1 for _ in kernel[1:])))
    return A.astype(dtype), B.astype(dtype)


@pytest.fixture
def adapter(write_peft, rng):
    """A linear layer of rank 6, a convolution of rank 4 and an embedding of rank 3."""
    tensors = {}
    for name, out, kernel, rank in (("a.q", 20, (12,), 6), ("a.conv", 9, (4, 3, 2), 4)):
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = factors(rng, out, kernel, rank)
    tensors["embed.lora_embedding_A"], tensors["embed.lora_embedding_B"] = factors(rng, 8, (15,), 3)
    patterns = {"rank_pattern": {r"^a\.conv": 4, r"^embed": 3}, "alpha_pattern": {r"^a\.conv": 12}}
    return write_peft(
        tensors, r=6, lora_alpha=9, base_model_name_or_path="some/base", task_type="CAUSAL_LM", **patterns
    )


@pytest.fixture
def kohya(write_file, rng):
    tensors = {}
    for name, out, kernel, rank in (("lora_unet_a_q", 20, (12,), 6), ("lora_unet_a_conv", 9, (4, 3, 2), 4)):
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = factors(rng, out, kernel, rank)
        tensors[f"{name}.alpha"] = np.float32(3)
    return write_file(tensors, "kohya.safetensors")


def assert_resized(source, report, names=lambda name: name):
    """Each layer's report is what NumPy's SVD of the dense update and the written file say."""
    updates, written = written_updates(source), written_updates(report.out)
    for layer in report.layers:
        # Reports have the factors' own figures: an embedding's transpose has the same ones.
        assert_figures(layer, updates[layer.name], written[names(layer.name)])
        assert set(layer.shape) == set(updates[layer.name].shape)
    assert {names(layer.name) for layer in report.layers} == set(written)


@pytest.mark.parametrize("rule", ["standard", "rslora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_best_update_of_a_smaller_rank(adapter, tmp_path, rule, use_rslora):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_rslora": use_rslora}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = resize(adapter, tmp_path / "out", rank=2, rule=rule, alpha=7.0)
    assert_resized(adapter, report)
    assert {layer.rank for layer in report.layers} == {2}
    assert report.config["use_rslora"] == (rule == "rslora")
    assert (report.config["r"], report.config["lora_alpha"]) == (2, 7)
    assert report.config["base_model_name_or_path"] == "some/base"
    assert report.config["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float64"])
def test_without_a_rank_all_components_are_kept(adapter, tmp_path, dtype):
    report = resize(adapter, tmp_path / "out", dtype=dtype)
    assert_resized(adapter, report)
    assert {layer.name: layer.rank for layer in report.layers} == {"a.q": 6, "a.conv": 4, "embed": 3}
    assert report.dtype == (dtype or "float32")
    assert report.totals.best_error < 1e-7
    assert report.totals.error == pytest.approx(report.totals.storage_error, abs=1e-7)


def test_without_a_rule_the_adapters_own_is_kept(adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_rslora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = resize(adapter, tmp_path / "out", rank=2)
    assert_resized(adapter, report)
    assert (report.rule, report.config["use_rslora"]) == ("rslora", True)
    assert resize(adapter, tmp_path / "out", rank=2, uniform=True, dry_run=True).rule == "standard"


def test_sizes_before_and_after(adapter, tmp_path):
    report = resize(adapter, tmp_path / "out", rank=2, dtype="bfloat16")
    for path, parameters, size in (
        (adapter, report.totals.source_parameters, report.totals.source_bytes),
        (tmp_path / "out", report.totals.parameters, report.totals.bytes),
    ):
        stored = load_file(path / "adapter_model.safetensors").values()
        assert (sum(t.size for t in stored), sum(t.nbytes for t in stored)) == (parameters, size)


def test_padding_and_repetition_are_not_components(write_peft, tmp_path, rng):
    A, B = factors(rng, 20, (12,), 3)
    A = np.concatenate([A, 0 * A, A[:1]])
    B = np.concatenate([B, rng.standard_normal((20, 3)).astype(np.float32), B[:, :1]], axis=1)
    adapter = write_peft({"q.lora_A.weight": A, "q.lora_B.weight": B}, r=7)
    report = resize(adapter, tmp_path / "out")
    assert_resized(adapter, report)
    assert report.layers[0].rank == 3
    assert report.layers[0].error < 1e-6


def test_ranks_by_variance_and_clamped(adapter, tmp_path):
    report = resize(adapter, tmp_path / "out", rank=lambda found: rank_for_variance(found, 0.9))
    assert_resized(adapter, report)
    updates = written_updates(adapter)
    for layer in report.layers:
        energy = np.cumsum(np.linalg.svd(updates[layer.name])[1] ** 2)
        assert layer.rank == 1 + np.count_nonzero(energy < 0.9 * energy[-1])
    clamped = resize(adapter, tmp_path / "out", rank=5, dry_run=True)
    assert {layer.name: (layer.rank, layer.requested_rank) for layer in clamped.layers} == {
        "a.q": (5, 5),
        "a.conv": (4, 5),
        "embed": (3, 5),
    }


def test_the_product_is_never_formed(write_peft, tmp_path, rng, monkeypatch):
    # 2¹⁷ × 2¹⁷ in float64 would take 137 GB.
    A, B = factors(rng, 1 << 17, (1 << 17,), 4)
    adapter = write_peft({"q.lora_A.weight": A, "q.lora_B.weight": B}, r=4)
    report = resize(adapter, tmp_path / "out", rank=2)
    (layer,) = report.layers
    R_B, R_A = np.linalg.qr(B.astype(float))[1], np.linalg.qr(A.T.astype(float))[1]
    values = np.linalg.svd(2 * R_B @ R_A.T)[1]
    assert layer.singular_values == pytest.approx(values, rel=1e-12)
    assert layer.error == pytest.approx(np.sqrt(np.sum(values[2:] ** 2) / np.sum(values**2)), rel=1e-6)


def test_uniform(adapter, tmp_path):
    report = resize(adapter, tmp_path / "out", rank={"a.q": 5, "a.conv": 2, "embed": 1}, uniform=True)
    assert_resized(adapter, report)
    assert {(layer.stored_rank, layer.alpha, layer.scaling) for layer in report.layers} == {(5, 5.0, 1.0)}
    assert report.warnings == ()


def test_a_warning_of_mixed_ranks(adapter, tmp_path):
    report = resize(adapter, tmp_path / "out", rank={"a.q": 5, "a.conv": 2, "embed": 1})
    assert any("readers of a single scale" in warning for warning in report.warnings)


def test_warnings_that_concern_the_update_are_inherited(adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {".*q": 3, "q": 4, r"^a\.conv": 12}, "alora_invocation_tokens": [1, 2]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = resize(adapter, tmp_path / "out", uniform=True)
    assert [layer.scaling for layer in report.layers] == [1.0, 1.0, 1.0]
    invocation, ambiguous, larger = report.warnings
    assert "alora_invocation_tokens" in invocation
    assert "match several alpha patterns, as 'a.q' ('.*q': 3, 'q': 4)" in ambiguous
    merged = merge([adapter], tmp_path / "merged", uniform=True)
    assert merged.warnings == (f"{adapter}: {invocation}", f"{adapter}: {ambiguous}", larger)


@pytest.mark.parametrize("uniform", [False, True])
def test_kohya_to_kohya(kohya, tmp_path, uniform):
    report = resize(
        kohya, tmp_path / "out.safetensors", rank={"lora_unet_a_q": 3, "lora_unet_a_conv": 2}, uniform=uniform
    )
    assert_resized(kohya, report)
    stored = load_file(tmp_path / "out.safetensors")
    assert stored["lora_unet_a_conv.lora_down.weight"].shape == (3 if uniform else 2, 4, 3, 2)


def test_peft_to_kohya(adapter, tmp_path):
    report = resize(adapter, tmp_path / "out.safetensors", rank=2, prefix="lora_te")
    assert report.format == "kohya"
    assert_resized(adapter, report, names=lambda name: f"lora_te_{name.replace('.', '_')}")
    assert "kohya's format does not have: norm" in report.skipped["embed"]


def test_kohya_to_peft_needs_the_names_of_the_base(kohya, tmp_path):
    with pytest.raises(ValueError, match="cannot be undone without the base model's own names: give its checkpoint"):
        resize(kohya, tmp_path / "out", rank=2)
    base = {"a.q.weight": np.zeros((20, 12)), "a.conv.weight": np.zeros((9, 4, 3, 2)), "b.weight": np.zeros((2, 2))}
    save_file(base, tmp_path / "base.safetensors")
    report = resize(kohya, tmp_path / "out", rank=2, base=tmp_path / "base.safetensors")
    names = {"lora_unet_a_q": "a.q", "lora_unet_a_conv": "a.conv"}
    updates, written = written_updates(kohya), written_updates(tmp_path / "out")
    assert set(written) == set(names.values())
    for layer in report.layers:
        old = next(old for old, new in names.items() if new == layer.name)
        assert_figures(layer, updates[old], written[layer.name])
    assert report.config["base_model_name_or_path"] == str(tmp_path / "base.safetensors")


def test_a_base_of_other_names_or_shapes(kohya, tmp_path):
    save_file({"a.q.weight": np.zeros((20, 12)), "a_q.weight": np.zeros((20, 12))}, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match=r"stands for each of a\.q, a_q"):
        resize(kohya, tmp_path / "out", base=tmp_path / "both.safetensors", include=["lora_unet_a_q"])
    save_file({"a.q.weight": np.zeros((20, 11))}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="any module of the base"):
        resize(kohya, tmp_path / "out", base=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is an update of 20 × 12, but the base's weight has shape"):
        resize(kohya, tmp_path / "out", base=tmp_path / "other.safetensors", include=["lora_unet_a_q"])


@pytest.mark.parametrize("initialisation", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_an_altered_base_is_refused_unless_it_was_restored(adapter, tmp_path, initialisation):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"init_lora_weights": initialisation}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"initialised by '{initialisation}', which altered the base"):
        resize(adapter, tmp_path / "out", rank=2)
    report = resize(adapter, tmp_path / "out", rank=2, base_restored=True)
    assert_resized(adapter, report)
    assert report.config["init_lora_weights"] is True


@pytest.fixture
def with_others(adapter):
    """The same with DoRA's magnitudes, a bias of lora_B and a module saved in full."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    prefix = "base_model.model."
    tensors |= {
        f"{prefix}a.q.lora_magnitude_vector": np.arange(20, dtype=np.float32),
        f"{prefix}a.q.lora_B.bias": np.ones(20, np.float32),
        f"{prefix}a.conv.lora_magnitude_vector": np.ones((1, 9, 1, 1), np.float32),
        f"{prefix}head.weight": np.ones((3, 3), ml_dtypes.bfloat16),
        f"{prefix}head.mask": np.array([True, False, True]),
        f"{prefix}head.table": np.ones(3),
    }
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"use_dora": True, "modules_to_save": ["head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


def test_other_tensors_are_copied_within_one_format(with_others, tmp_path):
    report = resize(with_others, tmp_path / "out", rank=2)
    old, new = (load_file(path / "adapter_model.safetensors") for path in (with_others, tmp_path / "out"))
    for name in ("a.q.lora_magnitude_vector", "a.conv.lora_magnitude_vector", "head.weight", "head.mask", "head.table"):
        assert np.array_equal(old[f"base_model.model.{name}"], new[f"base_model.model.{name}"])
        assert old[f"base_model.model.{name}"].dtype == new[f"base_model.model.{name}"].dtype
    # A reader multiplies the bias by the layer's scale, which was 9/6 and is 16/2.
    bias = new["base_model.model.a.q.lora_B.bias"]
    assert bias * 8 == pytest.approx(old["base_model.model.a.q.lora_B.bias"] * 1.5)
    assert "DoRA magnitudes" in report.copied["a.q.lora_magnitude_vector"]
    assert any("use_dora" in warning for warning in report.warnings)
    assert report.config["use_dora"] is True
    assert report.config["modules_to_save"] == ["head"]


def test_a_layer_that_other_tensors_follow_is_not_dropped(with_others, tmp_path):
    report = resize(with_others, tmp_path / "out", rank={"a.q": 0, "a.conv": 1, "embed": 0})
    assert {layer.name: layer.rank for layer in report.layers} == {"a.q": 1, "a.conv": 1, "embed": 0}


def test_tensors_that_follow_an_excluded_layer_are_left_out_with_it(with_others, tmp_path):
    report = resize(with_others, tmp_path / "out", rank=2, exclude=["q"])
    assert not any(".a.q." in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert (report.skipped, report.complete) == ({}, True)


def test_dora_does_not_change_its_format(with_others, tmp_path):
    with pytest.raises(ValueError, match=r"is a DoRA adapter"):
        resize(with_others, tmp_path / "out.safetensors", rank=2)


def test_nan_in_one_layer(adapter, tmp_path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.a.q.lora_B.weight"][3, 1] = np.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    report = resize(adapter, tmp_path / "out", rank=2)
    (reason,) = report.failures.values()
    assert reason == "'base_model.model.a.q.lora_B.weight' contains NaN or infinity in 1 of its 120 entries"
    assert set(written_updates(tmp_path / "out")) == {"a.conv", "embed"}
    assert report.config["target_modules"] == ["a.conv", "embed"]


def test_a_tucker_core_that_does_not_fit_is_named_and_the_others_done(kohya, tmp_path):
    tensors = load_file(kohya) | {"lora_unet_a_conv.lora_mid.weight": np.ones((4, 4, 3, 2), np.float32)}
    save_file(tensors, kohya)
    report = resize(kohya, tmp_path / "out.safetensors", rank=2)
    assert "beside a Tucker core (lora_mid)" in report.failures["lora_unet_a_conv"]
    assert set(written_updates(report.out)) == {"lora_unet_a_q"}
    assert resize(kohya, tmp_path / "rest.safetensors", rank=2, exclude=["*_conv"]).failures == {}


def test_a_grouped_convolution_is_a_failure(adapter, tmp_path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.a.conv.lora_B.weight"] = np.ones((8, 2, 1, 1), np.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    report = resize(adapter, tmp_path / "out", rank=2)
    assert "a grouped convolution" in report.failures["a.conv"]


def test_an_adapter_can_be_resized_in_place(adapter, tmp_path):
    (adapter / "README.md").write_text("card")
    reference = resize(adapter, tmp_path / "out", rank=2)
    with pytest.raises(FileExistsError, match="exists already"):
        resize(adapter, adapter, rank=2)
    report = resize(adapter, adapter, rank=2, force=True)
    assert report.totals == reference.totals
    assert (adapter / "README.md").read_text() == "card"
    (adapter / "README.md").unlink()
    assert fingerprint(adapter) == fingerprint(tmp_path / "out")


def test_include_and_exclude(adapter, tmp_path):
    names = partial(resize, adapter, tmp_path / "out", rank=1, dry_run=True)
    assert [layer.name for layer in names(include=["a.*"]).layers] == ["a.conv", "a.q"]
    assert [layer.name for layer in names(exclude=["embed"]).layers] == ["a.conv", "a.q"]
    assert not (tmp_path / "out").exists()


def test_factors_without_the_ending_that_peft_writes_keep_their_keys(write_peft, tmp_path, rng):
    A, B = factors(rng, 8, (8,), 2)
    adapter = write_peft({"q.lora_A": A, "q.lora_B": B})
    resize(adapter, tmp_path / "out", rank=1)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored.keys() == {"base_model.model.q.lora_A", "base_model.model.q.lora_B"}


def test_a_layer_within_a_wrapped_one_keeps_its_key(write_peft, tmp_path, rng):
    tensors = {}
    for name in ("mha", "mha.base_layer.out_proj"):
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = factors(rng, 8, (8,), 2)
    adapter = write_peft(tensors)
    report = resize(adapter, tmp_path / "out", rank={"mha": 1, "mha.out_proj": 2})
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored.keys() == {f"base_model.model.{name}" for name in tensors}
    # PEFT's configuration cannot tell the two apart: both are written for its one rank and alpha.
    assert {(layer.stored_rank, layer.scaling) for layer in report.layers} == {(2, 1.0)}
