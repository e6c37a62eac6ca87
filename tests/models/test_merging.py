import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core import rank_for_variance
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.resizing import resize
from tests.models.models_on_disk import assert_figures, written_updates

SHAPES = {"a.q": (20, (12,)), "a.conv": (9, (4, 3, 2))}


@pytest.fixture
def adapters(write_peft, write_file, rng):
    """Of ranks 3 and 2 under both rules in PEFT's format, and of rank 4 in kohya's; updates by module."""
    paths = []
    for rank, use_rslora in ((3, False), (2, True)):
        tensors = {}
        for name, (out, kernel) in SHAPES.items():
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, *kernel)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((out, rank, *(1 for _ in kernel[1:]))).astype("f4")
        paths.append(write_peft(tensors, folder=f"rank{rank}", r=rank, lora_alpha=5, use_rslora=use_rslora))
    tensors = {}
    for name, (out, kernel) in SHAPES.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = rng.standard_normal((4, *kernel)).astype(np.float32)
        tensors[f"{key}.lora_up.weight"] = rng.standard_normal((out, 4, *(1 for _ in kernel[1:]))).astype(np.float32)
        tensors[f"{key}.alpha"] = np.float32(2)
    paths.append(write_file(tensors, "kohya.safetensors"))
    updates = [written_updates(path) for path in paths]
    updates[2] |= {name: updates[2][f"lora_unet_{name.replace('.', '_')}"] for name in SHAPES}
    return paths, updates


def dense_sum(updates, weights, name):
    return sum(weight * update[name] for weight, update in zip(weights, updates, strict=True))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.3, -2.0, 0.5], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize("rule", ["standard", "rslora"])
@pytest.mark.parametrize("uniform", [False, True])
def test_the_exact_weighted_sum(adapters, tmp_path, weights, rule, uniform):
    paths, updates = adapters
    if uniform:
        rule = "standard"
    report = merge(paths, tmp_path / "out", weights=weights, rule=rule, uniform=uniform)
    assert report.weights == tuple(weights)
    assert report.totals.source_bytes == 4 * report.totals.source_parameters
    written = written_updates(tmp_path / "out")
    assert set(written) == set(SHAPES)
    for layer in report.layers:
        expected = dense_sum(updates, weights, layer.name)
        assert layer.rank == sum(rank for rank, weight in zip((3, 2, 4), weights, strict=True) if weight)
        assert_figures(layer, expected, written[layer.name])
        # Rounding to float32 is all that is lost.
        assert np.linalg.norm(written[layer.name] - expected) <= 4 * 2.0**-24 * np.linalg.norm(expected)


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_truncated_to_a_rank_or_a_variance(adapters, tmp_path, out):
    paths, updates = adapters
    for rank in (2, lambda found: rank_for_variance(found, 0.8)):
        report = merge(paths, tmp_path / out, weights=[1, 2, -1], rank=rank, force=True)
        written = written_updates(report.out)
        for layer in report.layers:
            expected = dense_sum(updates, [1, 2, -1], layer.name)
            key = layer.name if out == "out" else f"lora_unet_{layer.name.replace('.', '_')}"
            assert_figures(layer, expected, written[key])
            energy = np.cumsum(np.linalg.svd(expected)[1] ** 2)
            assert layer.rank == (2 if rank == 2 else 1 + np.count_nonzero(energy < 0.8 * energy[-1]))


def test_one_adapter_is_resized(adapters, tmp_path):
    (path, *_), _ = adapters
    merge([path], tmp_path / "merged", weights=[1], rank=2)
    resize(path, tmp_path / "resized", rank=2)
    for name, update in written_updates(tmp_path / "merged").items():
        assert np.allclose(update, written_updates(tmp_path / "resized")[name], rtol=0, atol=1e-6)


def test_an_adapter_minus_itself_has_no_component(adapters, tmp_path):
    (path, *_), _ = adapters
    with pytest.raises(ValueError, match=r"none of the 2 layers of .* keeps a component"):
        merge([path, path], tmp_path / "out", weights=[1, -1])


def test_kohya_files_alone(adapters, tmp_path):
    (*_, kohya), updates = adapters
    report = merge([kohya, kohya], tmp_path / "out.safetensors", weights=[0.5, 0.25])
    assert {layer.name for layer in report.layers} == {"lora_unet_a_q", "lora_unet_a_conv"}
    written = written_updates(report.out)
    assert np.allclose(written["lora_unet_a_q"], 0.75 * updates[2]["a.q"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be undone without the base model's own names"):
        merge([kohya, kohya], tmp_path / "out")


def test_a_kohya_layer_that_no_peft_adapter_has(adapters, tmp_path):
    (peft, _, kohya), updates = adapters
    tensors = load_file(kohya)
    extra = {key.replace("a_q", "b_only"): tensor for key, tensor in tensors.items() if "a_q" in key}
    save_file(tensors | extra, kohya)
    with pytest.raises(ValueError, match="'lora_unet_b_only' have underscores for dots"):
        merge([peft, kohya], tmp_path / "out")
    base = {
        "a.q.weight": np.zeros((20, 12)),
        "a.conv.weight": np.zeros((9, 4, 3, 2)),
        "b.only.weight": np.zeros((20, 12)),
    }
    save_file(base, tmp_path / "base.safetensors")
    merge([peft, kohya], tmp_path / "out", base=tmp_path / "base.safetensors")
    written = written_updates(tmp_path / "out")
    assert set(written) == {"a.q", "a.conv", "b.only"}
    assert np.allclose(written["b.only"], updates[2]["a.q"], rtol=0, atol=1e-5)


def test_an_orientation_of_the_weights_does_not_matter(adapters, tmp_path):
    # PEFT writes fan_in_fan_out of whichever layer it adapted last: the factors of a linear layer mean the same.
    (one, two, _), updates = adapters
    config = json.loads((two / "adapter_config.json").read_text()) | {"fan_in_fan_out": True}
    (two / "adapter_config.json").write_text(json.dumps(config))
    report = merge([one, two], tmp_path / "out")
    written = written_updates(tmp_path / "out")
    assert np.allclose(written["a.q"], updates[0]["a.q"] + updates[1]["a.q"], rtol=0, atol=1e-5)
    assert report.config["fan_in_fan_out"] is True
    assert report.failures == {}


def test_embeddings_are_added_to_embeddings_alone(write_peft, tmp_path, rng):
    A, B = rng.standard_normal((2, 8)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    embedding = write_peft({"x.lora_embedding_A": A, "x.lora_embedding_B": B}, folder="embedding")
    linear = write_peft({"x.lora_A.weight": A, "x.lora_B.weight": B}, folder="linear")
    merge([embedding, embedding], tmp_path / "out")
    assert np.allclose(written_updates(tmp_path / "out")["x"], 2 * 4 * (B @ A).T, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="adapters disagree: an embedding of 8 × 8 and an update of 8 × 8"):
        merge([embedding, linear], tmp_path / "out2")


def test_adapters_of_different_models(write_peft, adapters, tmp_path, rng):
    (path, *_), _ = adapters
    tensors = load_file(path / "adapter_model.safetensors")
    tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    # As many entries as the other's kernel, in another order.
    tensors["a.conv.lora_A.weight"] = rng.standard_normal((3, 4, 2, 3)).astype(np.float32)
    other = write_peft(tensors, folder="other", r=3, base_model_name_or_path="other/base")
    config = json.loads((path / "adapter_config.json").read_text()) | {"base_model_name_or_path": "one/base"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    report = merge([path, other], tmp_path / "out")
    assert report.failures == {
        "a.conv": "the adapters disagree: an update of 9 × 4 × 3 × 2 and an update of 9 × 4 × 2 × 3; they are of "
        "different models"
    }
    assert any("'one/base', 'other/base'" in warning for warning in report.warnings)
    assert report.config["base_model_name_or_path"] == "one/base"


def test_a_pointwise_convolution_that_kohya_stores_as_a_matrix(write_peft, write_file, tmp_path, rng):
    A, B = rng.standard_normal((2, 5)).astype(np.float32), rng.standard_normal((6, 2)).astype(np.float32)
    peft = write_peft({"p.lora_A.weight": A[..., None, None], "p.lora_B.weight": B[..., None, None]}, lora_alpha=2)
    kohya = write_file({"lora_unet_p.lora_down.weight": A, "lora_unet_p.lora_up.weight": B}, "kohya.safetensors")
    merge([kohya, peft], tmp_path / "out")
    assert load_file(tmp_path / "out/adapter_model.safetensors")["base_model.model.p.lora_A.weight"].shape[1:] == (
        5,
        1,
        1,
    )
    assert np.allclose(written_updates(tmp_path / "out")["p"], 2 * B @ A, rtol=0, atol=1e-5)


def test_a_sum_that_would_miss_a_term_is_a_failure(adapters, tmp_path):
    (peft, _, kohya), _ = adapters
    save_file(load_file(kohya) | {"lora_unet_a_conv.lora_mid.weight": np.ones((4, 4, 3, 2), np.float32)}, kohya)
    report = merge([peft, kohya], tmp_path / "out")
    assert "beside a Tucker core (lora_mid)" in report.failures["a.conv"]
    assert str(kohya) in report.failures["a.conv"]
    assert set(written_updates(tmp_path / "out")) == {"a.q"}
    assert merge([peft, kohya], tmp_path / "rest", exclude=["conv"]).failures == {}


def test_nan_in_one_layer_of_one_adapter(adapters, tmp_path):
    (one, two, _), updates = adapters
    tensors = load_file(two / "adapter_model.safetensors")
    tensors["base_model.model.a.conv.lora_A.weight"][0, 0, 0, 0] = np.inf
    save_file(tensors, two / "adapter_model.safetensors")
    report = merge([one, two], tmp_path / "out")
    assert "contains NaN or infinity in 1 of its 48 entries" in report.failures["a.conv"]
    assert np.allclose(written_updates(tmp_path / "out")["a.q"], updates[0]["a.q"] + updates[1]["a.q"], atol=1e-5)


def test_grouped_convolutions_are_failures(adapters, write_peft, tmp_path):
    (one, *_), _ = adapters
    grouped = {"a.conv.lora_A.weight": np.ones((3, 4, 3, 2), "f4"), "a.conv.lora_B.weight": np.ones((9, 1, 1, 1), "f4")}
    other = write_peft(grouped, folder="grouped", r=3)
    for order in ([one, other], [other, one]):
        assert "a grouped convolution" in merge(order, tmp_path / "out", force=True).failures["a.conv"]


def test_modules_saved_alike_in_all_are_kept_and_others_skipped_by_name(write_peft, tmp_path):
    tensors = {"q.lora_A.weight": np.ones((2, 4), "f4"), "q.lora_B.weight": np.ones((4, 2), "f4")}
    settings = {"modules_to_save": ["head", "score"]}
    shared = tensors | {"head.weight": np.ones((2, 2), "f4")}
    paths = [
        write_peft(shared | {"score.weight": np.full((2, 2), value, "f4")}, name, **settings)
        for name, value in (("first", 1.0), ("second", 2.0))
    ]
    report = merge(paths, tmp_path / "out")
    assert report.skipped.keys() == {f"score.weight ({path})" for path in paths}
    assert all("modules_to_save" in description for description in report.skipped.values())
    assert report.config["modules_to_save"] == ["head"]
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert np.array_equal(written["base_model.model.head.weight"], np.ones((2, 2)))
    assert "base_model.model.score.weight" not in written


def test_dora_and_altered_bases_are_refused(adapters, write_peft, tmp_path):
    (one, *_), _ = adapters
    tensors = {"q.lora_A.weight": np.ones((2, 4), "f4"), "q.lora_B.weight": np.ones((4, 2), "f4")}
    dora = write_peft(tensors | {"q.lora_magnitude_vector": np.ones(4, "f4")}, folder="dora", use_dora=True)
    with pytest.raises(ValueError, match="is a DoRA adapter"):
        merge([one, dora], tmp_path / "out")
    pissa = write_peft(tensors, folder="pissa", init_lora_weights="pissa")
    with pytest.raises(ValueError, match="initialised by 'pissa'"):
        merge([one, pissa], tmp_path / "out")
    assert merge([one, pissa], tmp_path / "out", base_restored=True).failures == {}


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], "1 weights for 2 adapters"), ([1, np.nan], "weights are finite numbers"), ([1, np.inf], "finite")],
)
def test_invalid_weights(adapters, tmp_path, weights, message):
    paths, _ = adapters
    with pytest.raises(ValueError, match=message):
        merge(paths[:2], tmp_path / "out", weights=weights)


def test_nothing_to_merge(tmp_path):
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([], tmp_path / "out")


def test_the_finest_dtype_is_kept(adapters, tmp_path):
    (one, two, _), _ = adapters
    resize(two, tmp_path / "half", dtype="bfloat16")
    report = merge([tmp_path / "half", one], tmp_path / "out")
    assert report.dtype == "float32"
    assert {layer.dtype for layer in report.layers} == {"bfloat16 · float32"}
    assert merge([tmp_path / "half"], tmp_path / "out2").dtype == "bfloat16"
