import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.placements import is_embedding_layer, is_kohya_layer
from lowrank_core.models.operations.conversion import (
    check_base,
    check_no_magnitudes,
    finest_dtype,
    place_layers,
    product_of,
)


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


def test_products_are_in_the_orientation_of_their_factors(peft):
    tensors, adapter = peft
    embedding, linear = adapter.layers
    assert linear.transposed
    assert embedding.transposed
    assert np.allclose(
        product_of(linear).to_dense(), 4 * tensors["q.lora_B.weight"] @ tensors["q.lora_A.weight"].astype(float)
    )
    assert product_of(embedding).to_dense().shape == (3, 7)


def test_what_a_layer_is(peft, kohya):
    _, adapter = peft
    assert [is_embedding_layer(layer) for layer in adapter.layers] == [True, False]
    assert [is_kohya_layer(layer) for layer in (*adapter.layers, *kohya.layers)] == [False, False, True]


def test_the_finest_dtype_of_all(peft, kohya):
    _, adapter = peft
    assert finest_dtype(adapter.layers) == "float32"
    assert finest_dtype(kohya.layers) == "float16"
    assert finest_dtype(()) == "float32"


def test_an_altered_base(write_peft, peft):
    _, adapter = peft
    check_base(adapter, restored=False)
    tensors = {"q.lora_A.weight": np.ones((2, 5), "f4"), "q.lora_B.weight": np.ones((4, 2), "f4")}
    pissa = open_adapter(write_peft(tensors, folder="pissa", init_lora_weights="pissa_niter_4"))
    check_base(pissa, restored=True)
    with pytest.raises(ValueError, match=r"initialised by 'pissa_niter_4'.*say so \(--base-restored\)"):
        check_base(pissa, restored=False)


@pytest.mark.parametrize("format_", ["peft", "kohya"])
def test_magnitudes_of_dora(write_peft, write_file, kohya, format_):
    check_no_magnitudes(kohya)
    if format_ == "peft":
        tensors = {"q.lora_A.weight": np.ones((2, 5), "f4"), "q.lora_B.weight": np.ones((4, 2), "f4")}
        dora = write_peft(tensors | {"q.lora_magnitude_vector": np.ones(4, "f4")}, folder="dora", use_dora=True)
    else:
        tensors = {"m_q.lora_down.weight": np.ones((2, 5)), "m_q.lora_up.weight": np.ones((4, 2))}
        dora = write_file(tensors | {"m_q.dora_scale": np.ones((4, 1))}, "dora.safetensors")
    with pytest.raises(ValueError, match="is a DoRA adapter"):
        check_no_magnitudes(open_adapter(dora))


def test_places_in_either_format(peft, kohya, tmp_path):
    _, adapter = peft
    placements, left_out, failures = place_layers(adapter.layers, kohya=True, prefix="lora_te", base=None)
    assert placements["q"].A_key == "lora_te_q.lora_down.weight"
    norm = np.linalg.norm(product_of(adapter.layers[0]).to_dense())
    assert left_out == {"e": f"an embedding, which kohya's format does not have: norm {norm:.4g}"}
    assert failures == {}
    save_file({"q.weight": np.ones((4, 5)), "q.bias": np.ones(4)}, tmp_path / "base.safetensors")
    placements, _, _ = place_layers(kohya.layers, kohya=False, prefix=None, base=tmp_path / "base.safetensors")
    assert placements["lora_unet_q"].keys == ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")


def test_the_norm_of_what_is_left_out_and_damaged(write_peft):
    tensors = {"e.lora_embedding_A": np.full((2, 7), np.nan, "f4"), "e.lora_embedding_B": np.ones((3, 2), "f4")}
    adapter = open_adapter(write_peft(tensors))
    _, left_out, _ = place_layers(adapter.layers, kohya=True, prefix=None, base=None)
    assert "norm unknown, 'base_model.model.e.lora_embedding_A' holds NaN" in left_out["e"]
