import numpy as np
import pytest

from lowrank_core import LowRankUpdate
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.placements import (
    check_distinct,
    kohya_key,
    kohya_placement,
    names_in_base,
    pad_rank,
    peft_placement,
    same_placement,
    without_prefix,
)


@pytest.fixture
def update(rng):
    return LowRankUpdate(rng.standard_normal((6, 2)), rng.standard_normal((2, 24)))


def test_a_linear_layer(update):
    placement = peft_placement("a.q", (24,))
    A, B = placement.arrange(update)
    assert placement.keys == ("base_model.model.a.q.lora_A.weight", "base_model.model.a.q.lora_B.weight")
    assert np.allclose(B @ A, update.to_dense())


def test_a_convolution(update):
    A, B = kohya_placement("lora_unet_conv", (4, 3, 2), "conv").arrange(update)
    assert (A.shape, B.shape) == ((2, 4, 3, 2), (6, 2, 1, 1))
    kernel = np.einsum("orxy,rikl->oikl", B, A)
    assert np.allclose(kernel.reshape(6, 24), update.to_dense(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("embedding", [True, False])
def test_a_weight_for_which_the_update_is_transposed(update, embedding):
    placement = peft_placement("x", (6,), transposed=not embedding, embedding=embedding)
    A, B = placement.arrange(update)
    assert (A.shape, B.shape) == ((2, 6), (24, 2))
    assert np.allclose((B @ A).T, update.to_dense())
    assert placement.A_key.endswith("lora_embedding_A" if embedding else "lora_A.weight")


def test_each_layer_of_an_adapter_keeps_its_place(write_peft):
    pair = {"lora_A.weight": np.ones((2, 8), "f4"), "lora_B.weight": np.ones((8, 2), "f4")}
    names = ("a.q", "mha", "mha.base_layer.out_proj")
    tensors = {f"{name}.{part}": tensor for name in names for part, tensor in pair.items()}
    embedding = {"e.lora_embedding_A": np.ones((2, 9), "f4"), "e.lora_embedding_B": np.ones((8, 2), "f4")}
    adapter = open_adapter(write_peft(tensors | embedding))
    placements = {layer.name: same_placement(layer) for layer in adapter.layers}
    assert {key for placement in placements.values() for key in placement.keys} == {
        f"base_model.model.{name}" for name in (*tensors, *embedding)
    }
    assert {name: placement.module for name, placement in placements.items()} == {
        "a.q": "a.q",
        "e": "e",
        "mha": "mha",
        "mha.out_proj": "mha",
    }
    # For factors in their own orientation: nothing is transposed on the way.
    assert not any(placement.transposed for placement in placements.values())


def test_kohyas_names():
    assert kohya_key("lora_unet", "down.0.to_q") == "lora_unet_down_0_to_q"
    for prefix in ("lora_unet", "lora_te", "lora_te1", "lora_te2"):
        assert without_prefix(f"{prefix}_a_b") == "a_b"
    assert without_prefix("a_b") == "a_b"


def test_two_modules_of_one_kohya_name():
    placements = [kohya_placement(kohya_key("lora_unet", name), (4,), name) for name in ("a.b", "a_b")]
    with pytest.raises(ValueError, match=r"'a\.b' and 'a_b' would have one name in the file"):
        check_distinct(placements)
    check_distinct(placements[:1])


def test_kohyas_names_in_a_base():
    modules = ["down.0.to_q", "down.0.to_q", "text.mlp_fc"]
    found = names_in_base(["lora_unet_down_0_to_q", "lora_te2_text_mlp_fc"], modules)
    assert found == {"lora_unet_down_0_to_q": "down.0.to_q", "lora_te2_text_mlp_fc": "text.mlp_fc"}
    with pytest.raises(ValueError, match="stands for no module of the base"):
        names_in_base(["lora_unet_up"], modules)
    with pytest.raises(ValueError, match=r"stands for each of a\.b, a_b"):
        names_in_base(["lora_unet_a_b"], ["a.b", "a_b"])
    with pytest.raises(ValueError, match="several kohya names stand for one module"):
        names_in_base(["lora_unet_x", "lora_te_x"], ["x"])


@pytest.mark.parametrize("tail", [(), (1, 1)])
def test_padding_leaves_the_product_as_it_is(rng, tail):
    A = rng.standard_normal((2, 4, 3, 2) if tail else (2, 4))
    B = rng.standard_normal((6, 2, *tail))
    padded_A, padded_B = pad_rank(A, B, 5)
    assert (padded_A.shape, padded_B.shape) == ((5, *A.shape[1:]), (6, 5, *tail))
    assert np.allclose(padded_B.reshape(6, 5) @ padded_A.reshape(5, -1), B.reshape(6, 2) @ A.reshape(2, -1))
    assert np.count_nonzero(padded_A[2:]) == np.count_nonzero(padded_B[:, 2:]) == 0
