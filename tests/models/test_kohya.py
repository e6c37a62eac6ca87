import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.formats import open_adapter

NAME = "lora_unet_down_blocks_0_attn_to_q"


def factors(name=NAME, rank=2, alpha=None, m=4, n=6):
    tensors = {
        f"{name}.lora_down.weight": np.ones((rank, n), np.float16),
        f"{name}.lora_up.weight": np.ones((m, rank), np.float16),
    }
    return tensors if alpha is None else tensors | {f"{name}.alpha": np.asarray(alpha)}


@pytest.mark.parametrize(
    ("alpha", "effective", "scaling", "source"),
    [
        (np.float32(8), 8.0, 4.0, "alpha 8 (.alpha) / rank 2 (lora_down)"),
        (np.array([1], ml_dtypes.bfloat16), 1.0, 0.5, "alpha 1 (.alpha) / rank 2 (lora_down)"),
        (np.int64(4), 4.0, 2.0, "alpha 4 (.alpha) / rank 2 (lora_down)"),
        (None, 2.0, 1.0, "no alpha in the file, which stands for the rank 2 (lora_down): scale 1"),
        (np.float32(0), 2.0, 1.0, "alpha 0 in the file, which stands for the rank 2 (lora_down): scale 1"),
    ],
)
def test_the_scale_and_its_reason(write_file, alpha, effective, scaling, source):
    adapter = open_adapter(write_file(factors(alpha=alpha), "lora.safetensors"))
    (layer,) = adapter.layers
    assert (adapter.format, layer.name, layer.dtype) == ("kohya", NAME, "float16")
    assert (layer.alpha, layer.scaling, layer.scaling_source) == (effective, scaling, source)


def test_convolutions_are_flattened(write_file, rng):
    down, up = rng.standard_normal((2, 3, 3, 3)), rng.standard_normal((5, 2, 1, 1))
    tensors = {f"{NAME}.lora_down.weight": down, f"{NAME}.lora_up.weight": up, f"{NAME}.alpha": np.float32(1)}
    (layer,) = open_adapter(write_file(tensors)).layers
    assert layer.shape == (5, 27)
    assert np.allclose(layer.update().to_dense(), 0.5 * up[:, :, 0, 0] @ down.reshape(2, 27), rtol=1e-13)


def test_what_is_not_a_product_is_named(write_file):
    tensors = factors() | {
        f"{NAME}.dora_scale": np.ones((4, 1), np.float32),
        "lora_unet_norm.diff": np.ones(4, np.float32),
        "lora_unet_x.strange": np.ones(4, np.float32),
    }
    adapter = open_adapter(write_file(tensors))
    assert [layer.name for layer in adapter.layers] == [NAME]
    assert adapter.unsupported == {}
    found = {other.name: other.describe() for other in adapter.others}
    assert found[f"{NAME}.dora_scale"].startswith("DoRA magnitudes")
    assert found["lora_unet_norm.diff"] == "the difference of a vector, which is added to it: 4, float32, norm 2"
    assert found["lora_unet_x.strange"].startswith("unknown to LoRA")
    assert len(found) == 3


@pytest.mark.parametrize("part", ["lora_down", "lora_up"])
def test_half_a_product_is_refused(write_file, part):
    tensors = factors(alpha=1.0)
    del tensors[f"{NAME}.{part}.weight"]
    with pytest.raises(ValueError, match=f"but no {part}: half of a product"):
        open_adapter(write_file(tensors))


def test_an_alpha_alone_is_named(write_file):
    (other,) = open_adapter(write_file(factors() | {"x.alpha": np.float32(1)})).others
    assert (other.name, other.meaning) == ("x.alpha", "unknown to LoRA")


def test_ranks_that_disagree_are_refused(write_file):
    with pytest.raises(ValueError, match="disagree"):
        open_adapter(write_file(factors() | {f"{NAME}.lora_up.weight": np.ones((4, 3), np.float16)}))


@pytest.mark.parametrize("alpha", [np.nan, np.inf])
def test_an_alpha_that_is_not_finite_is_refused(write_file, alpha):
    with pytest.raises(ValueError, match=rf"{NAME}: alpha must be finite"):
        open_adapter(write_file(factors(alpha=alpha)))


def test_a_negative_alpha_is_data(write_file):
    (layer,) = open_adapter(write_file(factors(alpha=-1.0))).layers
    assert layer.scaling == -1.0 / layer.rank
    assert layer.scaling_source == f"alpha -1 (.alpha) / rank {layer.rank} (lora_down)"


def test_an_alpha_of_several_numbers_is_refused(write_file):
    with pytest.raises(ValueError, match="alpha is one number"):
        open_adapter(write_file(factors(alpha=np.ones(2))))
