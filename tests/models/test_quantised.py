"""Quantised weights of checkpoints: dequantised under the weight's own name, or refused for the whole checkpoint."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models import apply
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.pairing.pairs import pair_checkpoints
from lowrank_core.rounding_noise import ulps

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def expanded(scales, block, shape):
    """One scale for each entry, by the definition: that of the block which the entry is in."""
    index = np.indices(shape)
    return scales[tuple(index[axis] // block[axis] for axis in range(len(shape)))]


@pytest.fixture
def read(write_file):
    def read(tensors, **config):
        path = write_file(tensors)
        if config:
            (path.parent / "config.json").write_text(json.dumps({"quantization_config": config}))
        return open_checkpoint(path).tensors

    return read


def draw(rng, shape, dtype):
    numbers = rng.integers(-127, 128, shape).astype(np.int8)
    return numbers if dtype is np.int8 else (numbers / 8).astype(dtype)


ENDINGS = [".weight_scale", ".weight_scale_inv", ".scale_weight", ".scale", ".qscale_weight"]


@pytest.mark.parametrize("dtype", [E4M3, E5M2, np.int8])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (5, 1), (1, 1)])
def test_a_weight_is_its_numbers_times_their_scale_and_scales_are_no_tensors(read, rng, dtype, ending, shape):
    numbers, scales = draw(rng, (5, 12), dtype), rng.uniform(0.01, 2, shape).astype(np.float32)
    tensors = read({"q.weight": numbers, "q" + ending: scales, "q.bias": np.ones(5, np.float32)})
    assert sorted(tensors) == ["q.bias", "q.weight"]
    weight = tensors["q.weight"]
    kind = "row scales" if scales.size > 1 else "one scale"
    assert (weight.shape, weight.dtype) == ((5, 12), f"{np.dtype(dtype).name} × {kind}")
    assert (weight.array_dtype, weight.is_floating, weight.is_coarse) == ("float32", True, True)
    expected = numbers.astype(np.float64) * scales.astype(np.float64).reshape(-1, 1)
    assert np.array_equal(weight.read(), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "scales", "config", "block"),
    [
        ((256, 384), (2, 3), {}, (128, 128)),
        ((300, 200), (3, 2), {}, (128, 128)),
        ((192, 64), (2, 1), {}, (128, 64)),
        ((16, 24), (2, 2), {}, (8, 16)),
        ((300, 200), (3, 2), {"weight_block_size": [100, 100]}, (100, 100)),
        ((300, 200), (3, 2), {"weight_block_size": [7, 9]}, (128, 128)),
        ((300, 200), (3, 2), {"weight_block_size": "128"}, (128, 128)),
        ((6, 64), (6, 2), {}, (1, 32)),
        ((35, 10), (5, 1), {}, (8, 10)),
        ((21, 4), (7, 1), {}, (3, 4)),
        ((3, 140, 130), (3, 2, 2), {}, (1, 128, 128)),
        ((3, 4, 5), (3, 1, 1), {}, (1, 4, 5)),
        ((3, 4, 5), (3,), {}, (1, 4, 5)),
        ((3, 4, 5), (3, 1, 5), {}, (1, 4, 1)),
        ((4, 3, 3, 3), (4, 1, 1, 1), {}, (1, 3, 3, 3)),
    ],
)
def test_the_shapes_decide_the_blocks_that_scales_are_of(read, rng, shape, scales, config, block):
    numbers, factors = draw(rng, shape, E4M3), rng.uniform(0.1, 3, scales).astype(np.float32)
    weight = read({"q.weight": numbers, "q.weight_scale_inv": factors}, **config)["q.weight"]
    factors = factors.reshape(scales + (1,) * (len(shape) - len(scales))).astype(np.float64)
    expected = numbers.astype(np.float64) * expanded(factors, block, shape)
    assert np.array_equal(weight.read(), expected.astype(np.float32))


def test_parameters_without_an_ending_of_their_own_have_scales_too(read, rng):
    numbers, scales = draw(rng, (2, 6, 4), E4M3), rng.uniform(1, 2, (2, 1, 1)).astype(np.float32)
    tensors = read({"experts.up": numbers, "experts.up_scale_inv": scales, "experts.up_activation_scale": scales})
    assert list(tensors) == ["experts.up"]
    stack = tensors["experts.up"]
    assert np.array_equal(stack.read(), numbers.astype(np.float32) * scales)
    assert np.array_equal(stack.at(1).read(), stack.read()[1])
    assert np.array_equal(stack.at(1).along(0, 1, 6, 2).read(), stack.read()[1, 1:6:2])
    assert np.array_equal(stack.along(2, 1, 3).read(), stack.read()[..., 1:3])


def test_of_a_stack_only_the_weight_that_is_asked_for_is_dequantised(read, rng, monkeypatch):
    from lowrank_core.models.files import encodings

    stack = read({"up": draw(rng, (8, 6, 4), E4M3), "up_scale_inv": np.ones((8, 1, 1), np.float32)})["up"]
    sizes = []
    blocks = encodings.QuantisedBlocks.values
    monkeypatch.setattr(
        encodings.QuantisedBlocks, "values", lambda self: sizes.append(self.numbers.size) or blocks(self)
    )
    stack.at(3).read()
    assert sizes == [24]


def test_exponents_as_scales_are_powers_of_two(write_file, rng):
    numbers, exponents = draw(rng, (4, 64), E4M3), rng.integers(120, 135, (4, 2)).astype(np.uint8)
    path = write_file({"q.weight": numbers, "q.weight_scale": exponents})
    expected = numbers.astype(np.float64) * np.exp2(np.repeat(exponents.astype(float) - 127, 32, axis=1))
    assert np.array_equal(open_checkpoint(path).tensors["q.weight"].read(), expected)
    # The same under the dtype's own name, which is one byte shorter or longer in the header.
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"U8"', b'"F8_E8M0"').rstrip()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert np.array_equal(open_checkpoint(path).tensors["q.weight"].read(), expected)


def test_rows_of_bitsandbytes_int8_are_sizes_over_127_and_others_scales(read, rng):
    weight = rng.standard_normal((6, 40)).astype(np.float16).astype(np.float32)
    size = np.abs(weight).max(axis=1)
    numbers = np.round(weight * (127 / size[:, np.newaxis])).astype(np.int8)
    marked = {"q.weight": numbers, "q.SCB": size, "q.weight_format": np.array(0, np.uint8)}
    tensors = read(marked)
    assert list(tensors) == ["q.weight"]
    dequantised = tensors["q.weight"].read()
    assert np.abs(dequantised - weight).max() <= size.max() / 127 / 2 * (1 + 1e-6)
    scale = (size / np.float32(127)).astype(np.float32)
    other = read({"q.weight": numbers, "q.SCB": scale})["q.weight"]
    assert np.allclose(other.read(), dequantised, rtol=1e-6)


def test_what_a_program_stores_beside_the_weights_is_no_tensor_of_the_model(read, rng):
    scale = np.ones((), np.float32)
    tensors = read(
        {
            "q.weight": draw(rng, (4, 4), E4M3),
            "q.scale_weight": scale,
            "q.scale_input": scale,
            "model.scaled_fp8": np.zeros(2, E4M3),
            "scaled_fp8": np.zeros(0, E4M3),
        }
    )
    assert list(tensors) == ["q.weight"]


def test_zero_points_are_taken_off_the_numbers(read, rng):
    numbers, zeros = draw(rng, (4, 6), np.int8), rng.integers(-9, 9, (4, 1)).astype(np.int8)
    scales = rng.uniform(1, 2, (4, 1)).astype(np.float32)
    [weight] = read({"q.weight": numbers, "q.weight_scale": scales, "q.weight_zero_point": zeros}).values()
    assert np.array_equal(weight.read(), (numbers.astype(np.float32) - zeros) * scales)
    assert np.array_equal(weight.read_with_steps((4, 6))[1], np.broadcast_to(scales, (4, 6)))


@pytest.mark.parametrize("names", [("q._weight_qdata", "q._weight_scale"), ("q.weight._data", "q.weight._scale")])
def test_numbers_and_scales_under_names_of_their_own_are_the_weight(read, rng, names):
    numbers = draw(rng, (4, 6), np.int8)
    tensors = read({names[0]: numbers, names[1]: np.full((4, 1), 0.5, np.float32)})
    assert list(tensors) == ["q.weight"]
    assert np.array_equal(tensors["q.weight"].read(), numbers * np.float32(0.5))


@pytest.mark.parametrize(("endings", "transposed"), [(("_blocks", "_scales"), True), ((".blocks", ".scales"), False)])
def test_mxfp4_is_e2m1_times_powers_of_two(read, rng, endings, transposed):
    blocks = rng.integers(0, 256, (2, 5, 3, 16)).astype(np.uint8)
    exponents = rng.integers(120, 130, (2, 5, 3)).astype(np.uint8)
    tensors = read({"up" + endings[0]: blocks, "up" + endings[1]: exponents})
    expected = np.empty((2, 5, 3, 32))
    expected[..., 0::2], expected[..., 1::2] = E2M1[blocks % 16], E2M1[blocks // 16]
    expected = (expected * np.exp2(exponents.astype(float) - 127)[..., np.newaxis]).reshape(2, 5, 96)
    if transposed:
        expected = expected.swapaxes(1, 2)
    assert list(tensors) == ["up"]
    assert (tensors["up"].shape, tensors["up"].dtype) == (expected.shape, "MXFP4")
    assert np.array_equal(tensors["up"].read(), expected)
    assert np.array_equal(tensors["up"].at(1).read(), expected[1])


def test_a_quantised_weight_can_be_sent_to_another_process(read, rng):
    weight = read({"q.weight": draw(rng, (4, 6), E4M3), "q.weight_scale": np.ones((), np.float32)})["q.weight"]
    sent = pickle.loads(pickle.dumps(weight))
    assert sent == weight
    assert hash(sent) == hash(weight)
    assert np.array_equal(sent.read(), weight.read())


FLOAT8 = np.ones((32, 32), E4M3)
BYTES = np.ones((32, 16), np.uint8)
REFUSED = {
    "more scales than rows": (
        {"q.weight": FLOAT8, "q.weight_scale": np.ones((33, 1))},
        "33 × 1, in which scales of blocks of 32 × 32 cannot be",
    ),
    "scales of no block": ({"q.weight": FLOAT8, "q.weight_scale_inv": np.ones((21, 1))}, "21 × 1"),
    "more axes than the weight": ({"q.weight": FLOAT8, "q.weight_scale": np.ones((32, 2, 2))}, "32 × 2 × 2"),
    "no scales": ({"q.weight": FLOAT8, "q.weight_scale": np.ones((0, 32))}, "0 × 32"),
    "scales that are integers": ({"q.weight": FLOAT8, "q.weight_scale": np.ones((32, 1), np.int64)}, "int64"),
    "two kinds of scales": (
        {"q.weight": FLOAT8, "q.weight_scale": np.ones(1), "q.weight_scale_inv": np.ones(1)},
        "'q.weight_scale' beside 'q.weight_scale_inv'",
    ),
    "other zero points": (
        {"q.weight": BYTES.view(np.int8), "q.weight_scale": np.ones(1), "q.weight_zero_point": np.ones(2, np.int8)},
        "1 scales and 2 zero points of int8",
    ),
    "integers without scales": ({"q.weight": BYTES}, "quantised uint8: no scales"),
    "scales without a weight": ({"q.weight_scale_inv": np.ones((2, 2))}, "the weight that they belong to is missing"),
    "scales of experts without a weight": ({"q.up_scale_inv": np.ones((2, 2, 2))}, "is missing"),
    "scales of plain experts": (
        {"q.up": np.ones((2, 4, 4)), "q.up_scale_inv": np.ones((2, 1, 1))},
        "'q.up' is float64: whether it was multiplied",
    ),
    "scales of a plain weight": ({"q.weight": np.ones((4, 4)), "q.weight_scale": np.ones((4, 1))}, "q.*is float64"),
    "short blocks": ({"q_blocks": np.ones((4, 2, 8), np.uint8), "q_scales": np.ones((4, 2), np.uint8)}, "MXFP4"),
    "other blocks": ({"q_blocks": np.ones((4, 2, 16), np.uint8), "q_scales": np.ones((4, 3), np.uint8)}, "MXFP4"),
    "gptq": (
        {
            "q.qweight": np.ones((4, 32), np.int32),
            "q.qzeros": np.ones((1, 4), np.int32),
            "q.scales": np.ones((1, 32), np.float16),
            "q.g_idx": np.zeros(32, np.int32),
        },
        "GPTQ.*GPTQModel",
    ),
    "awq": (
        {
            "q.qweight": np.ones((32, 4), np.int32),
            "q.qzeros": np.ones((1, 4), np.int32),
            "q.scales": np.ones((1, 32), np.float16),
        },
        "AWQ.*GPTQModel",
    ),
    "compressed-tensors": (
        {"q.weight_packed": np.ones((4, 4), np.int32), "q.weight_scale": np.ones((4, 1), np.float16)},
        "compressed-tensors",
    ),
    "bitsandbytes without end": (
        {
            "q.weight": BYTES.reshape(-1, 1),
            "q.weight.absmax": np.ones(16),
            "q.weight.quant_map": np.linspace(-1, 1, 16),
            "q.weight.quant_state.bitsandbytes__nf4": np.frombuffer(
                b'{"shape": [Infinity, 2], "blocksize": 64}', np.uint8
            ),
        },
        "bitsandbytes nf4: its quant_state is not what bitsandbytes writes",
    ),
    "bitsandbytes of another shape": (
        {
            "q.weight": BYTES.reshape(-1, 1),
            "q.weight.absmax": np.ones(16),
            "q.weight.quant_map": np.linspace(-1, 1, 16),
            "q.weight.quant_state.bitsandbytes__nf4": np.frombuffer(b'{"shape": [33, 32], "blocksize": 64}', np.uint8),
        },
        "512 bytes, 16 blocks and 16 levels for 33 × 32",
    ),
    "bitsandbytes with a byte less": (
        {
            "q.weight": BYTES.reshape(-1, 1)[1:],
            "q.weight.absmax": np.ones(16),
            "q.weight.quant_map": np.linspace(-1, 1, 16),
            "q.weight.quant_state.bitsandbytes__nf4": np.frombuffer(b'{"shape": [32, 32], "blocksize": 64}', np.uint8),
        },
        "511 bytes, 16 blocks and 16 levels for 32 × 32",
    ),
    "bitsandbytes": (
        {
            "q.weight": BYTES.reshape(-1, 1),
            "q.weight.absmax": np.ones(16),
            "q.weight.quant_map": np.linspace(-1, 1, 16),
            "q.weight.quant_state.bitsandbytes__nf4": BYTES[0],
        },
        "bitsandbytes nf4: its quant_state is not what bitsandbytes writes.*model.dequantize",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_pair_is_refused_whole_where_a_weight_cannot_be_dequantised(write_file, case, side):
    tensors, reason = REFUSED[case]
    plain = {"lm_head.weight": np.ones((4, 4), np.float32)}
    files = {"base": write_file(plain, "a.safetensors"), "tuned": write_file(plain, "b.safetensors")}
    write_file(plain | tensors, files[side].name)
    with pytest.raises(ValueError, match=rf"1 quantised weight that cannot be dequantised, as 'q[^']*', .*{reason}"):
        inspect(files["tuned"], files["base"])


def test_an_adapter_is_not_applied_to_a_base_that_cannot_be_dequantised(write_file, write_peft, tmp_path, rng):
    base = write_file({"v.weight": np.ones((4, 6), np.float32)} | REFUSED["gptq"][0])
    factors = {"v.lora_A.weight": np.ones((2, 6), np.float32), "v.lora_B.weight": np.ones((4, 2), np.float32)}
    with pytest.raises(ValueError, match="1 quantised weight that cannot be dequantised"):
        apply(base, write_peft(factors), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_on_a_weight_that_cannot_be_dequantised_has_no_figures_beside_it(write_file, write_peft, case):
    """Its own figures need no base, and are those without one."""
    factors = {"q.lora_A.weight": np.ones((2, 32), np.float32), "q.lora_B.weight": np.ones((32, 2), np.float32)}
    factors |= {"v.lora_A.weight": np.ones((2, 6), np.float32), "v.lora_B.weight": np.ones((4, 2), np.float32)}
    adapter = write_peft(factors)
    report = inspect(adapter, write_file({"v.weight": np.ones((4, 6), np.float32)} | REFUSED[case][0]))
    assert [layer.base is None for layer in report.layers] == [True, False]
    assert (report.failures, report.complete) == ({}, False)
    assert report.warnings[-1].startswith("the base has no readable weight of the name and shape of 1 layer, as 'q'")
    assert [layer.norm for layer in report.layers] == [layer.norm for layer in inspect(adapter).layers]


def test_a_base_of_weights_that_cannot_be_dequantised_is_not_taken_for_a_wrong_one(write_file, write_peft):
    factors = {"q.lora_A.weight": np.ones((2, 32), np.float32), "q.lora_B.weight": np.ones((32, 2), np.float32)}
    report = inspect(write_peft(factors), write_file(REFUSED["gptq"][0]))
    assert (report.layers[0].base, report.failures, report.complete) == (None, {}, False)


def test_reading_a_refused_weight_says_why(read):
    weight = read(REFUSED["gptq"][0])["q.weight"]
    assert not weight.is_readable
    with pytest.raises(ValueError, match=r"^'q\.weight' is stored as GPTQ"):
        weight.read()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_not_finite_fail_their_layer_by_name(write_file, rng, bad):
    numbers, scales = draw(rng, (4, 6), E4M3), np.ones((4, 1), np.float32)
    base = write_file({"q.weight": numbers, "q.weight_scale": scales, "v.weight": scales}, "a.safetensors")
    scales = scales.copy()
    scales[2] = bad
    tuned = write_file({"q.weight": numbers, "q.weight_scale": scales, "v.weight": np.ones((4, 1))}, "b.safetensors")
    report = inspect(tuned, base)
    assert [layer.name for layer in report.layers] == ["v"]
    assert "its array of scales contains NaN or infinity in 1 of its 4 entries" in report.failures["q"]
    assert ("not-finite", ("q",)) in [(verdict.kind, verdict.layers) for verdict in report.verdicts]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_a_step_is_that_of_the_number_times_its_scale(read, rng, dtype):
    numbers, scales = draw(rng, (130, 6), dtype), rng.uniform(0.5, 2, (2, 1)).astype(np.float32)
    weight = read({"q.weight": numbers, "q.weight_scale_inv": -scales})["q.weight"]
    _, steps = weight.read_with_steps((130, 6))
    assert np.allclose(steps, ulps(numbers) * np.repeat(scales, [128, 2], axis=0), rtol=1e-6)


def test_the_exponent_that_is_not_a_number_is_refused(read, rng):
    exponents = np.array([[127, 255]], np.uint8)
    weight = read({"q.weight": draw(rng, (1, 64), E4M3), "q.weight_scale": exponents})["q.weight"]
    with pytest.raises(ValueError, match="its array of scales contains NaN or infinity in 1 of its 2 entries"):
        weight.read()


def test_a_scale_of_zero_makes_zeros_with_steps_of_zero(read, rng):
    weight = read({"q.weight": draw(rng, (4, 6), np.int8), "q.weight_scale": np.zeros(1, np.float32)})["q.weight"]
    values, steps = weight.read_with_steps((4, 6))
    assert not values.any()
    assert not steps.any()


def test_plain_weights_keep_what_has_the_name_of_a_scale(read):
    tensors = read({"norm.weight": np.ones((3, 3), np.float32), "norm.scale": np.ones(3), "w.weight_scale": np.ones(2)})
    assert list(tensors) == ["norm.scale", "norm.weight", "w.weight_scale"]


def test_a_quantised_base_and_a_plain_tuned_weight_make_one_layer(write_file, rng):
    numbers, scales = draw(rng, (130, 6), E4M3), rng.uniform(1, 2, (2, 1)).astype(np.float32)
    base = write_file({"q.weight": numbers, "q.weight_scale_inv": scales}, "a.safetensors")
    tuned = write_file({"q.weight": rng.standard_normal((130, 6)).astype(ml_dtypes.bfloat16)}, "b.safetensors")
    [layer] = pair_checkpoints(open_checkpoint(base), open_checkpoint(tuned)).layers
    assert layer.dtype == "float8_e4m3fn × 128×6 scales → bfloat16"
    dequantised = numbers.astype(np.float64) * np.repeat(scales, [128, 2], axis=0)
    expected = open_checkpoint(tuned).tensors["q.weight"].read().astype(np.float64) - dequantised
    assert np.allclose(layer.update(), expected, rtol=1e-6, atol=1e-6)
