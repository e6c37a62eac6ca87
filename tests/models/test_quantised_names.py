"""How quantised weights are recognised: what each is stored as, and which tensors are no weights of their own."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.files.checkpoints import open_checkpoint

E4M3 = ml_dtypes.float8_e4m3fn
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
GPTQ = {
    "q.qweight": np.ones((4, 32), np.int32),
    "q.qzeros": np.ones((1, 4), np.int32),
    "q.scales": np.ones((1, 32), np.float16),
    "q.g_idx": np.zeros(32, np.int32),
}


@pytest.fixture
def read(write_file):
    return lambda tensors: open_checkpoint(write_file(tensors)).tensors


@pytest.mark.parametrize(
    ("columns", "groups", "storage"),
    [(32, True, "GPTQ"), (32, False, "GPTQ"), (4, False, "AWQ")],
)
def test_packed_integers_are_one_weight_named_by_what_packed_them(read, columns, groups, storage):
    tensors = GPTQ | {"q.qweight": np.ones((128 // columns, columns), np.int32)}
    if not groups:
        del tensors["q.g_idx"]
    assert {name: tensor.dtype for name, tensor in read(tensors).items()} == {"q.weight": storage}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_integers_without_scales_are_quantised(read, dtype):
    [weight] = read({"q.weight": np.ones((4, 4), dtype)}).values()
    assert (weight.dtype, weight.is_readable) == (f"quantised {dtype}", False)


@pytest.mark.parametrize(
    "companion",
    [
        *("input_scale", "output_scale", "activation_scale", "scale_input", "qscale_act", "input_scale_ub"),
        *("input_global_scale", "weight_format", "comfy_quant"),
    ],
)
def test_what_rounds_activations_is_no_tensor_of_the_model(read, companion):
    numbers, scale = np.ones((4, 4), np.int8), np.ones((), np.float32)
    tensors = read({"q.weight": numbers, "q.weight_scale": scale, f"q.{companion}": scale, "q.bias": scale})
    assert list(tensors) == ["q.bias", "q.weight"]


def test_blocks_of_another_shape_are_refused_as_mxfp4(read):
    [weight] = read({"q_blocks": np.ones((4, 2, 8), np.uint8), "q_scales": np.ones((4, 2), np.uint8)}).values()
    assert (weight.key, weight.dtype, weight.is_readable) == ("q", "MXFP4", False)


def test_the_last_two_axes_of_mxfp4_are_swapped_in_a_stack_of_stacks(read, rng):
    blocks = rng.integers(0, 256, (2, 3, 5, 1, 16)).astype(np.uint8)
    [weight] = read({"up_blocks": blocks, "up_scales": np.full((2, 3, 5, 1), 127, np.uint8)}).values()
    assert weight.shape == weight.read().shape == (2, 3, 32, 5)


@pytest.mark.parametrize("divides", [True, False])
def test_weights_of_nvfp4_in_a_stack_have_a_scale_for_16_entries(read, rng, divides):
    packed = rng.integers(0, 256, (2, 5, 24)).astype(np.uint8)
    scales = rng.integers(1, 9, (2, 5, 3)).astype(np.float32)
    numbers, one = ("up.weight_packed", "up.weight_global_scale") if divides else ("up.weight", "up.weight_scale_2")
    [weight] = read({numbers: packed, "up.weight_scale": scales.astype(E4M3), one: np.float32(0.5)}).values()
    expected = np.stack([E2M1[packed % 16], E2M1[packed // 16]], axis=-1).reshape(2, 5, 48)
    expected *= np.repeat(scales, 16, axis=-1) * (2 if divides else 0.5)
    assert (weight.shape, weight.dtype) == ((2, 5, 48), "NVFP4")
    assert np.array_equal(weight.read(), expected)
    assert np.array_equal(weight.at(1).read(), expected[1])
