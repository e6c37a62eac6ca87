"""Quantised weights as the programs that write them dequantise them, to the bit or to one rounding to float32."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.quantizers.bfl import utils as bfl
from peft import PeftModel
from safetensors.torch import save_file
from transformers import (
    FineGrainedFP8Config,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mxfp4Config,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from lowrank_core import update_with_spectrum
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.operations.extraction import extract

ONE_ROUNDING = 2.0**-23


@pytest.fixture
def stored(tmp_path):
    """Save tensors, and return the one weight that they are."""

    def stored(tensors):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "model.safetensors")
        [weight] = open_checkpoint(tmp_path).tensors.values()
        return weight

    return stored


def draw(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", [(256, 384), (2, 128, 256)])
@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("block", [[128, 128], None])
def test_float8_of_transformers_with_blocks_of_scales(stored, shape, scale_fmt, block):
    quantiser = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=block, scale_fmt=scale_fmt))
    key = "up.weight" if len(shape) == 2 else "experts.up"
    tensors = Fp8Quantize(quantiser).convert({key: draw(*shape)})
    numbers, scales = tensors.values()
    expected = Fp8Dequantize(quantiser)._dequantize_one(numbers, scales, torch.float32)
    weight = stored(tensors)
    assert weight.key == key
    assert np.array_equal(weight.read(), expected.numpy())


def test_packed_experts_as_transformers_reads_them(stored):
    packed = torch.randint(-128, 128, (3, 8, 32), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    scales = torch.exp2(torch.arange(48).reshape(3, 8, 2) % 7 - 3.0).to(torch.float8_e8m0fnu)
    expected = Fp8Dequantize(None)._dequantize_one(packed, scales, torch.float32)
    weight = stored({"experts.up": packed, "experts.up_scale_inv": scales})
    assert (weight.shape, weight.dtype) == ((3, 8, 64), "MXFP4")
    assert np.array_equal(weight.read(), expected.numpy())


def test_mxfp4_of_gpt_oss_as_transformers_and_gguf_read_it(stored):
    import gguf

    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(0, 256, (3, 10, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (3, 10, 4), dtype=torch.uint8, generator=generator)
    weight = stored({"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales})
    assert weight.key == "experts.gate_up_proj"
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert weight.shape == tuple(expected.shape)
    assert np.array_equal(weight.read(), expected.numpy())
    assert np.array_equal(weight.at(2).read(), expected[2].numpy())
    # llama.cpp has the first half of a block's numbers in the low halves of its bytes, and the rest in the high ones.
    numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(-1, 32)
    repacked = np.concatenate([scales.numpy().reshape(-1, 1), numbers[:, :16] | numbers[:, 16:] << 4], axis=1)
    rows = gguf.dequantize(repacked.astype(np.uint8), gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(weight.read(), rows.reshape(3, 10, 128).swapaxes(1, 2))


def test_rows_of_float8_and_nvfp4_as_diffusers_reads_them(stored):
    numbers, scale = bfl.quantize_fp8r(draw(48, 64))
    weight = stored({"up.weight": numbers, "up.weight_scale": scale})
    assert np.array_equal(weight.read(), bfl.dequantize_fp8r(numbers, scale).numpy())
    packed, scale, one = bfl.quantize_nvfp4(draw(48, 64))
    weight = stored({"up.weight": packed, "up.weight_scale": scale, "up.weight_scale_2": one})
    assert (weight.shape, weight.dtype) == ((48, 64), "NVFP4")
    assert np.array_equal(weight.read(), bfl.dequantize_nvfp4(packed, scale, one).numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(96, 128), (7, 33)])
def test_bitsandbytes_4_bits(stored, kind, nested, shape):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = draw(*shape)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    expected = bitsandbytes.functional.dequantize_4bit(packed, state).numpy()
    members = {f"up.weight.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
    read = stored({"up.weight": packed} | members)
    assert (read.shape, read.dtype) == (shape, f"bitsandbytes {kind}")
    assert np.allclose(read.read(), expected, rtol=2 * ONE_ROUNDING, atol=0)
    values, steps = read.read_with_steps(shape)
    # Rounding errs by half a cell at the most, and a step is at least the cell's smaller half.
    assert np.all(np.abs(values - weight.numpy()) <= 1.001 * steps)


def test_bitsandbytes_8_bits(stored):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(64, 48, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": draw(48, 64)})
    layer = layer.to("cpu")
    if layer.weight.dtype != torch.int8:
        layer.weight = bitsandbytes.nn.Int8Params(draw(48, 64), requires_grad=False)._quantize("cpu")
    tensors = {f"up.{key}": torch.as_tensor(tensor) for key, tensor in layer.state_dict().items()}
    expected = bitsandbytes.functional.int8_vectorwise_dequant(tensors["up.weight"], tensors["up.SCB"])
    read = stored(tensors)
    assert read.dtype == "int8 × row scales"
    assert np.allclose(read.read(), expected.numpy(), rtol=4 * ONE_ROUNDING, atol=0)


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
@pytest.mark.filterwarnings("ignore")
def test_torchao_of_8_bits(stored, name):
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    model = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
    quantization.quantize_(model, getattr(quantization, name)(version=2))
    tensors, _ = flatten_tensor_state_dict(model.state_dict())
    weight = stored(tensors)
    assert weight.key == "0.weight"
    assert np.array_equal(weight.read(), model.state_dict()["0.weight"].dequantize().numpy())


@pytest.mark.parametrize("kind", ["NVFP4", "MXFP4", "int8", "float8_e4m3fn"])
@pytest.mark.filterwarnings("ignore")
def test_compressed_tensors(stored, kind):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    name, arguments = {
        "NVFP4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        "MXFP4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
        "int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        "float8_e4m3fn": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    }[kind]
    weight = draw(48, 64)
    groups = weight.reshape(48, -1, arguments.get("group_size", 64)).abs().amax(-1)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    state = {"weight": weight, "weight_scale": groups / {"int8": 127, "float8_e4m3fn": 448}.get(kind, 6)}
    if kind == "NVFP4":
        state["weight_global_scale"] = 448 / state["weight_scale"].amax().reshape(1)
        state["weight_scale"] = state["weight_scale"] * state["weight_global_scale"]
    if kind == "MXFP4":
        state["weight_scale"] = torch.exp2(torch.floor(torch.log2(groups)) - 2)
    compressor = BaseCompressor.get_value_from_registry(name)
    tensors = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(tensors), scheme)["weight"]
    read = stored({f"up.{key}": tensor for key, tensor in tensors.items()})
    assert (read.key, read.shape) == ("up.weight", (48, 64))
    assert read.dtype.startswith(kind)
    # Its own arithmetic is that of the scale's dtype.
    assert np.allclose(read.read(), expected.float().numpy(), rtol=2.0**-7, atol=0)
    assert np.all(np.abs(read.read() - weight.numpy()) <= 1.01 * read.read_with_steps((48, 64))[1])


def save_quantised(model, folder, quantise, method):
    """Save a model of which every weight that `quantise` returns other tensors for is stored as these."""
    tensors = {}
    for key, weight in model.state_dict().items():
        tensors |= quantise(key, weight) or {key: weight}
    folder.mkdir()
    config = json.loads(model.config.to_json_string()) | {"quantization_config": method}
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def assert_read_as_loaded(folder, loaded):
    stored = open_checkpoint(folder).tensors
    assert stored.keys() == loaded.state_dict().keys()
    for key, weight in loaded.state_dict().items():
        assert np.array_equal(stored[key].read(), weight.numpy()), key


# PEFT asks transformers for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_of_a_float8_base_makes_the_tuned_model_of_the_one_that_transformers_loads(tmp_path):
    torch.manual_seed(0)
    block = [32, 64]
    quantiser = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=block, scale_fmt="float"))
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )

    def quantise(key, weight):
        return Fp8Quantize(quantiser).convert({key: weight}) if "_proj" in key else None

    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    save_quantised(LlamaForCausalLM(config), tmp_path / "base", quantise, method)

    def load():
        dequantised = FineGrainedFP8Config(dequantize=True, weight_block_size=block)
        path = tmp_path / "base"
        return LlamaForCausalLM.from_pretrained(path, quantization_config=dequantised, dtype=torch.float32).eval()

    base, tuned = load(), load()
    assert_read_as_loaded(tmp_path / "base", base)
    with torch.no_grad():
        for key, weight in tuned.named_parameters():
            if "_proj" in key:
                weight.add_(torch.from_numpy(update_with_spectrum([1.0, 0.8, 0.6], weight.shape, rng=0)).float())
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    report = extract(tmp_path / "base", tmp_path / "tuned.safetensors", tmp_path / "adapter", rank=3)
    assert report.totals.layers == 14
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected, before = tuned(tokens).logits, base(tokens).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(tokens).logits
    assert torch.allclose(adapted, expected, atol=1e-4)
    assert not torch.allclose(before, expected, atol=0.1)


def test_gpt_oss_is_read_as_transformers_loads_it(tmp_path):
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
    )

    def quantise(key, weight):
        if not key.endswith("_proj"):
            return None
        experts, columns, rows = weight.shape
        shape = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        return {f"{key}_blocks": blocks, f"{key}_scales": torch.randint(115, 125, shape, dtype=torch.uint8)}

    method = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    save_quantised(GptOssForCausalLM(config), tmp_path / "base", quantise, method)
    loaded = GptOssForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    assert_read_as_loaded(tmp_path / "base", loaded)


def test_the_update_of_a_float8_base_is_that_of_its_dequantised_weights(tmp_path):
    quantiser = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=[128, 128], scale_fmt="float"))
    base = Fp8Quantize(quantiser).convert({"up.weight": 0.02 * draw(256, 128)})
    dequantised = Fp8Dequantize(quantiser)._dequantize_one(*base.values(), torch.float32).numpy()
    update = update_with_spectrum([0.5, 0.4, 0.3], (256, 128), rng=0)
    save_file(base, tmp_path / "base.safetensors")
    save_file(
        {"up.weight": torch.from_numpy((dequantised + update).astype(np.float32))}, tmp_path / "tuned.safetensors"
    )
    [layer] = inspect(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors").layers
    assert layer.dtype == "float8_e4m3fn × 128×128 scales → float32"
    assert np.allclose(layer.singular_values[:3], [0.5, 0.4, 0.3], rtol=1e-6)
    assert layer.singular_values[3] < 1e-6
