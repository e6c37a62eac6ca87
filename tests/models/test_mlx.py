"""mlx-lm's adapters, under the formulas of `fuse` in mlx_lm/tuner/lora.py and the checks of its `load_adapters`."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lowrank_core.models import convert, merge, open_adapter, resize

EXPERTS, SCALE = 3, 20.0
SWITCH, LINEAR, EMBEDDING = "model.layers.0.mlp.switch_mlp.up_proj", "model.layers.0.q_proj", "model.embed_tokens"


@pytest.fixture
def write_mlx(tmp_path):
    def write(tensors, folder="adapters", parameters=None, **config):
        path = tmp_path / folder
        path.mkdir()
        save_file(tensors, path / "adapters.safetensors", metadata={"format": "mlx"})
        parameters = {"rank": 4, "dropout": 0.0, "scale": SCALE} if parameters is None else parameters
        settings = {"fine_tune_type": "lora", "num_layers": 16, "model": "tiny", "lora_parameters": parameters}
        (path / "adapter_config.json").write_text(json.dumps(settings | config))
        return path

    return write


def linear(rng, name=LINEAR, inputs=12, outputs=10, rank=4):
    a, b = rng.standard_normal((inputs, rank)), rng.standard_normal((rank, outputs))
    return {f"{name}.lora_a": a.astype(np.float32), f"{name}.lora_b": b.astype(np.float32)}


def switch(rng, *, flat, rank=4):
    a, b = rng.standard_normal((EXPERTS, rank, 12)), rng.standard_normal((EXPERTS, 10, rank))
    a = a.reshape(-1, 12) if flat else a
    return {f"{SWITCH}.lora_a": a.astype(np.float32), f"{SWITCH}.lora_b": b.astype(np.float32)}


def fused(path):
    """Return what fuse adds to each weight; check first what load_adapters does: that all factors have the one rank."""
    config = json.loads((path / "adapter_config.json").read_text())
    tensors, parameters = load_file(path / "adapters.safetensors"), config["lora_parameters"]
    updates = {}
    for key in tensors:
        if key.endswith(".lora_a"):
            name = key.removesuffix(".lora_a")
            a, b = tensors[key].astype(float), tensors[f"{name}.lora_b"].astype(float)
            if b.ndim == 3:
                assert b.shape[2] == parameters["rank"]
                for index, product in enumerate(b @ a.reshape(len(b), -1, a.shape[-1])):
                    updates[f"{name}[{index}]"] = parameters["scale"] * product
            else:
                assert a.shape[1] == parameters["rank"]
                updates[name] = parameters["scale"] * (a @ b if name == EMBEDDING else b.T @ a.T)
    return updates


def read_updates(path):
    return {layer.name: layer.update().to_dense() for layer in open_adapter(path).layers}


@pytest.mark.parametrize("flat", [True, False])
def test_each_layer_is_what_fuse_adds(write_mlx, rng, flat):
    path = write_mlx(linear(rng) | linear(rng, EMBEDDING, 40) | switch(rng, flat=flat))
    expected, read = fused(path), read_updates(path)
    assert read.keys() == expected.keys()
    for name, update in expected.items():
        assert np.allclose(read[name], update, atol=1e-10)


def test_the_scale_is_20_where_it_is_not_given(write_mlx, rng):
    layer = open_adapter(write_mlx(linear(rng), parameters={"rank": 4})).layers[0]
    assert (layer.scaling, layer.scaling_source) == (20.0, "scale 20 (lora_parameters), whatever the rank")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("ranks", [2, {LINEAR: 1, EMBEDDING: 3, **{f"{SWITCH}[{i}]": i + 1 for i in range(EXPERTS)}}])
def test_resize_writes_one_rank_and_the_scale_that_is_right_for_all(write_mlx, rng, tmp_path, flat, ranks):
    tensors = linear(rng) | linear(rng, EMBEDDING, 40) | switch(rng, flat=flat)
    path = write_mlx(tensors, iters=10)
    resize(path, tmp_path / "new", rank=ranks)
    before, after = fused(path), fused(tmp_path / "new")
    for name, update in before.items():
        U, values, Vt = np.linalg.svd(update, full_matrices=False)
        rank = ranks if isinstance(ranks, int) else ranks[name]
        assert np.allclose(after[name], (U[:, :rank] * values[:rank]) @ Vt[:rank], atol=1e-4 * values[0])
    written = load_file(tmp_path / "new" / "adapters.safetensors")
    assert {key: tensor.ndim for key, tensor in written.items()} == {
        key: tensor.ndim for key, tensor in tensors.items()
    }
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["iters"], config["num_layers"], config["model"]) == (10, 16, "tiny")


def test_dora_magnitudes_are_named_and_kept(write_mlx, rng, tmp_path):
    path = write_mlx(linear(rng) | {f"{LINEAR}.m": np.ones(10, np.float32)}, fine_tune_type="dora")
    (other,) = open_adapter(path).others
    assert other.magnitudes
    assert "DoRA" in other.meaning
    resize(path, tmp_path / "new", rank=2)
    assert np.array_equal(load_file(tmp_path / "new" / "adapters.safetensors")[f"{LINEAR}.m"], np.ones(10))


def test_merge_and_conversion_to_peft(write_mlx, rng, tmp_path):
    paths = [write_mlx(linear(rng)), write_mlx(linear(rng, rank=2), "other", parameters={"rank": 2, "scale": 3.0})]
    merge(paths, tmp_path / "sum", weights=[1.0, -0.5])
    first, second = map(fused, paths)
    assert np.allclose(fused(tmp_path / "sum")[LINEAR], first[LINEAR] - 0.5 * second[LINEAR], atol=1e-4)
    resize(paths[0], tmp_path / "peft", format="peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert "lora_parameters" not in config
    assert np.allclose(read_updates(tmp_path / "peft")[LINEAR], first[LINEAR], atol=1e-4)


def test_full_fine_tuning_is_no_adapter(write_mlx, rng):
    path = write_mlx({"model.norm.weight": np.ones(4, np.float32)}, fine_tune_type="full")
    with pytest.raises(ValueError, match="fine_tune_type 'full'"):
        open_adapter(path)


def test_factors_that_disagree_are_that_layers_failure(write_mlx, rng):
    tensors = linear(rng) | {"bad.lora_a": np.ones((5, 3), np.float32), "bad.lora_b": np.ones((4, 6), np.float32)}
    adapter = open_adapter(write_mlx(tensors))
    assert [layer.name for layer in adapter.layers] == [LINEAR]
    assert "lora_a is 5 × 3, and lora_b 4 × 6" in adapter.unsupported["bad"]


@pytest.mark.parametrize("scale", ["20", None, True, float("inf")])
def test_a_scale_that_is_no_number_is_refused(write_mlx, rng, scale):
    with pytest.raises(ValueError, match="a number as its scale"):
        open_adapter(write_mlx(linear(rng), parameters={"scale": scale}))


def test_without_its_configuration_the_scale_is_unknown(tmp_path, rng):
    save_file(linear(rng), tmp_path / "adapters.safetensors")
    with pytest.raises(ValueError, match=r"no adapter_config\.json of mlx-lm"):
        open_adapter(tmp_path / "adapters.safetensors")


def test_an_adapter_of_another_format_becomes_one_of_mlx_lm(write_peft, tmp_path, rng):
    # linear_to_lora_layers finds a block's modules by their names within it, and all others by their whole names.
    tensors, updates = {}, {}
    for name, rank in (("model.layers.3.mlp.up_proj", 2), ("lm_head", 3)):
        B, A = rng.standard_normal((6, rank), dtype="f4"), rng.standard_normal((rank, 5), dtype="f4")
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        updates[name] = 8 / rank * (B.astype(float) @ A)
    folder = write_peft(tensors, r=2, lora_alpha=8, rank_pattern={"lm_head": 3}, base_model_name_or_path="some/model")
    convert(folder, tmp_path / "mlx", format="mlx")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["lora_parameters"] == {"keys": ["lm_head", "mlp.up_proj"], "dropout": 0.0, "rank": 3, "scale": 1.0}
    assert (config["fine_tune_type"], config["num_layers"], config["model"]) == ("lora", -1, "some/model")
    stored = load_file(tmp_path / "mlx" / "adapters.safetensors")
    with safe_open(tmp_path / "mlx" / "adapters.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "mlx"}
    for name, update in updates.items():
        assert stored[f"{name}.lora_a"].shape == (5, 3)
        assert np.allclose((stored[f"{name}.lora_a"] @ stored[f"{name}.lora_b"]).T, update, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", [(3,), (3, 3)])
def test_what_mlx_lm_does_not_adapt_is_a_failure(write_peft, tmp_path, kernel):
    one = (1,) * len(kernel)
    conv = {"conv.lora_A.weight": np.ones((2, 3, *kernel), "f4"), "conv.lora_B.weight": np.ones((4, 2, *one), "f4")}
    linear = {"q.lora_A.weight": np.ones((2, 3), "f4"), "q.lora_B.weight": np.ones((4, 2), "f4")}
    report = convert(write_peft(conv | linear), tmp_path / "mlx", format="mlx")
    assert report.failures == {"conv": "a convolution, which mlx-lm does not adapt"}
