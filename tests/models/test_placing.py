"""Where layers go: to their own place within one format, and to that of their module in another."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core import LowRankUpdate
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.adapter import transposed
from lowrank_core.models.formats.kohya import KOHYA
from lowrank_core.models.formats.peft import PEFT
from lowrank_core.models.operations.placing import check_base, check_distinct, check_no_magnitudes, place_layers

LINEAR = {"q.lora_A.weight": np.ones((2, 5), "f4"), "q.lora_B.weight": np.ones((4, 2), "f4")}


@pytest.fixture
def update(rng):
    return LowRankUpdate(rng.standard_normal((6, 2)), rng.standard_normal((2, 24)))


@pytest.fixture
def peft(write_peft, rng):
    tensors = {
        "q.lora_A.weight": rng.standard_normal((2, 5)).astype("f2"),
        "q.lora_B.weight": rng.standard_normal((4, 2)).astype("f4"),
        "e.lora_embedding_A": rng.standard_normal((2, 7)).astype("f4"),
        "e.lora_embedding_B": rng.standard_normal((3, 2)).astype("f4"),
    }
    return tensors, open_adapter(write_peft(tensors, fan_in_fan_out=True))


@pytest.fixture
def kohya(write_file):
    tensors = {
        "lora_unet_q.lora_down.weight": np.ones((2, 5), "f2"),
        "lora_unet_q.lora_up.weight": np.ones((4, 2), "f2"),
    }
    return open_adapter(write_file(tensors, "kohya.safetensors"))


def test_a_linear_layer(update):
    placement = PEFT.place("a.q", (6, 24), None, False)
    assert placement.keys == ("base_model.model.a.q.lora_A.weight", "base_model.model.a.q.lora_B.weight")
    A, B = PEFT.arrange(update, placement, 1.0)
    assert np.allclose(B @ A, update.to_dense())


def test_a_convolution_and_an_alpha_of_its_dtype(update):
    half = LowRankUpdate(update.B.astype(ml_dtypes.bfloat16), update.A.astype(ml_dtypes.bfloat16))
    placement = KOHYA.place("conv.in", (6, 4, 3, 2), None, False)
    assert placement.keys == tuple(
        f"lora_unet_conv_in.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    )
    down, up, alpha = KOHYA.arrange(half, placement, 257.0)
    assert (down.shape, up.shape, float(alpha), alpha.dtype) == ((2, 4, 3, 2), (6, 2, 1, 1), 256.0, down.dtype)
    kernel = np.einsum("orxy,rikl->oikl", up.astype(float), down.astype(float))
    assert np.allclose(kernel.reshape(6, 24), half.to_dense(), rtol=1e-13, atol=1e-14)


def test_an_embedding_whose_weight_is_the_transpose_of_its_map(update):
    placement = PEFT.place("x", (24, 6), None, True)
    assert placement.keys[0].endswith("lora_embedding_A")
    A, B = PEFT.arrange(transposed(update), placement, 1.0)
    assert (A.shape, B.shape) == ((2, 6), (24, 2))
    assert np.allclose((B @ A).T, update.to_dense())


def test_each_layer_of_an_adapter_keeps_its_place(write_peft):
    pair = {"lora_A.weight": np.ones((2, 8), "f4"), "lora_B.weight": np.ones((8, 2), "f4")}
    names = ("a.q", "mha", "mha.base_layer.out_proj")
    tensors = {f"{name}.{part}": tensor for name in names for part, tensor in pair.items()}
    embedding = {"e.lora_embedding_A": np.ones((2, 9), "f4"), "e.lora_embedding_B": np.ones((8, 2), "f4")}
    bare = {"old.lora_A": np.ones((2, 8), "f4"), "old.lora_B": np.ones((8, 2), "f4")}
    adapter = open_adapter(write_peft(tensors | embedding | bare))
    placements = place_layers(adapter.layers, PEFT, same={"peft"}, prefix=None, base=None).placements
    assert {key for placement in placements.values() for key in placement.keys} == {
        f"base_model.model.{name}" for name in (*tensors, *embedding, *bare)
    }
    assert {name: placement.module for name, placement in placements.items()} == {
        "a.q": "a.q",
        "e": "e",
        "mha": "mha",
        "mha.out_proj": "mha",
        "old": "old",
    }


def test_the_places_of_another_format(peft, kohya, tmp_path):
    _, adapter = peft
    placed = place_layers(adapter.layers, KOHYA, same={"kohya"}, prefix="lora_te", base=None)
    assert placed.placements["q"].keys[0] == "lora_te_q.lora_down.weight"
    norm = np.linalg.norm(adapter.layers[0].update().to_dense())
    assert placed.skipped == {"e": f"an embedding, which kohya's format does not have: norm {norm:.4g}"}
    assert placed.failures == {}
    save_file({"q.weight": np.ones((4, 5)), "q.bias": np.ones(4)}, tmp_path / "base.safetensors")
    # A prefix is for names that are not the base model's own: PEFT's are.
    placed = place_layers(kohya.layers, PEFT, same={"peft"}, prefix="lora_te", base=tmp_path / "base.safetensors")
    assert placed.placements["lora_unet_q"].keys == tuple(f"base_model.model.{key}" for key in LINEAR)


def test_the_norm_of_a_skipped_layer_that_is_damaged(write_peft):
    tensors = {"e.lora_embedding_A": np.full((2, 7), np.nan, "f4"), "e.lora_embedding_B": np.ones((3, 2), "f4")}
    placed = place_layers(open_adapter(write_peft(tensors)).layers, KOHYA, same={"kohya"}, prefix=None, base=None)
    assert "norm unknown, 'base_model.model.e.lora_embedding_A' contains NaN" in placed.skipped["e"]


def test_two_modules_of_one_name_in_the_file():
    placements = [KOHYA.place(name, (4, 4), None, False) for name in ("a.b", "a_b")]
    with pytest.raises(ValueError, match=r"^'a\.b' and 'a_b' would have one name in the file"):
        check_distinct(placements)
    check_distinct(placements[:1])


def test_kohyas_names_in_a_base():
    modules = ["down.0.to_q", "down.0.to_q", "text.mlp_fc"]
    names = [f"{prefix}_down_0_to_q" for prefix in ("lora_unet", "lora_te", "lora_te1", "lora_te2")]
    for name in (*names, "down_0_to_q"):
        assert KOHYA.lossy_names.modules([name], modules) == {name: "down.0.to_q"}
    assert KOHYA.lossy_names.modules(["lora_unet_up", "lora_te2_text_mlp_fc"], modules) == {
        "lora_te2_text_mlp_fc": "text.mlp_fc"
    }
    with pytest.raises(ValueError, match=r"stands for each of a\.b, a_b"):
        KOHYA.lossy_names.modules(["lora_unet_a_b"], ["a.b", "a_b"])
    with pytest.raises(ValueError, match=r"^several kohya names stand for one module"):
        KOHYA.lossy_names.modules(["lora_unet_x", "lora_te_x"], ["x"])


def test_an_altered_base(write_peft, peft):
    _, adapter = peft
    check_base(adapter, restored=False)
    pissa = open_adapter(write_peft(LINEAR, folder="pissa", init_lora_weights="pissa_niter_4"))
    check_base(pissa, restored=True)
    with pytest.raises(ValueError, match=r"initialised by 'pissa_niter_4'.*say so \(--base-restored of"):
        check_base(pissa, restored=False)


@pytest.mark.parametrize("format_", ["peft", "kohya"])
def test_magnitudes_of_dora(write_peft, write_file, kohya, format_):
    check_no_magnitudes(kohya)
    if format_ == "peft":
        dora = write_peft(LINEAR | {"q.lora_magnitude_vector": np.ones(4, "f4")}, folder="dora", use_dora=True)
    else:
        tensors = {"m_q.lora_down.weight": np.ones((2, 5)), "m_q.lora_up.weight": np.ones((4, 2))}
        dora = write_file(tensors | {"m_q.dora_scale": np.ones((4, 1))}, "dora.safetensors")
    with pytest.raises(ValueError, match="is a DoRA adapter"):
        check_no_magnitudes(open_adapter(dora))
