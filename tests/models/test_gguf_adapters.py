"""llama.cpp's adapters, written and read by the gguf package, under the formula of src/llama-adapter.h."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize

from lowrank_core.models import census, convert, merge, open_adapter, resize

WEIGHTS = {"blk.0.attn_q": (16, 12), "blk.0.ffn_down": (16, 24)}


@pytest.fixture
def write_gguf(tmp_path):
    def write(tensors, name="adapter.gguf", alpha=16.0, kind="lora"):
        writer = GGUFWriter(tmp_path / name, "qwen2")
        writer.add_type("adapter")
        writer.add_string("adapter.type", kind)
        writer.add_string("general.name", "a name")
        writer.add_uint32("general.file_type", 0)
        if alpha is not None:
            writer.add_float32("adapter.lora.alpha", alpha)
        for key, tensor in tensors.items():
            writer.add_tensor(key, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def factors(rng, rank=4):
    tensors = {}
    for weight, (m, n) in WEIGHTS.items():
        tensors[f"{weight}.weight.lora_a"] = rng.standard_normal((rank, n)).astype(np.float32)
        tensors[f"{weight}.weight.lora_b"] = rng.standard_normal((m, rank)).astype(np.float32)
    return tensors


def applied_updates(path):
    """Return what llama.cpp adds to each weight: b·a times alpha over the rank of b, or 1 where alpha is 0."""
    reader = GGUFReader(path)
    tensors = {}
    for tensor in reader.tensors:
        data = np.asarray(tensor.data)
        if tensor.tensor_type == GGMLQuantizationType.BF16:
            data = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        tensors[tensor.name] = data.astype(float).reshape(tuple(int(side) for side in tensor.shape)[::-1])
    field = reader.get_field("adapter.lora.alpha")
    alpha = 0.0 if field is None else float(field.contents())
    assert reader.get_field("general.type").contents() == "adapter"
    assert reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("general.architecture").contents() == "qwen2"
    updates = {}
    for name, b in tensors.items():
        if name.endswith(".lora_b"):
            weight = name.removesuffix(".lora_b")
            a = tensors[f"{weight}.lora_a"]
            scale = alpha / b.shape[-1] if alpha else 1.0
            updates[weight.removesuffix(".weight")] = scale * (a @ b.T if "token_embd" in name else b @ a)
    return updates


def read_updates(path):
    return {layer.name: layer.update().to_dense() for layer in open_adapter(path).layers}


def best(update, rank):
    U, values, Vt = np.linalg.svd(update, full_matrices=False)
    return (U[..., :rank] * values[..., None, :rank]) @ Vt[..., :rank, :]


@pytest.mark.parametrize("alpha", [16.0, 0.0, None, -3.0])
def test_an_adapter_is_read_as_llama_cpp_applies_it(write_gguf, rng, alpha):
    tensors = factors(rng) | {
        "token_embd.weight.lora_a": rng.standard_normal((40, 3)).astype(np.float32),
        "token_embd.weight.lora_b": rng.standard_normal((16, 3)).astype(np.float32),
        "output_norm.weight": np.ones(16, np.float32),
    }
    path = write_gguf(tensors, alpha=alpha)
    expected, read = applied_updates(path), read_updates(path)
    assert read.keys() == expected.keys()
    assert read["token_embd"].shape == (40, 16)
    for name, update in expected.items():
        assert np.allclose(read[name], update, atol=1e-12)
    assert [other.name for other in open_adapter(path).others] == ["output_norm.weight"]


@pytest.mark.parametrize("options", [{"rank": 2}, {}, {"uniform": True}, {"rank": 2, "dtype": "bfloat16"}])
@pytest.mark.parametrize("alpha", [16.0, 0.0])
def test_resize_writes_what_llama_cpp_reads(write_gguf, rng, tmp_path, options, alpha):
    tensors = factors(rng) | {
        "token_embd.weight.lora_a": rng.standard_normal((40, 3)).astype(np.float32),
        "token_embd.weight.lora_b": rng.standard_normal((16, 3)).astype(np.float32),
    }
    path = write_gguf(tensors, alpha=alpha)
    report = resize(path, tmp_path / "new.gguf", **options)
    assert (report.format, report.failures, report.skipped) == ("gguf", {}, {})
    written = applied_updates(tmp_path / "new.gguf")
    tolerance = 2e-2 if "dtype" in options else 1e-5
    for name, update in applied_updates(path).items():
        expected = best(update, options.get("rank", 4))
        assert np.abs(written[name] - expected).max() <= tolerance * np.linalg.norm(update, 2)
    assert {tensor.name for tensor in GGUFReader(tmp_path / "new.gguf").tensors} == tensors.keys()
    assert open_adapter(tmp_path / "new.gguf").metadata["general.name"] == "a name"


def test_experts_of_one_weight_are_layers_of_their_own(write_gguf, rng, tmp_path):
    name = "blk.0.ffn_gate_exps"
    tensors = factors(rng) | {
        f"{name}.weight.lora_a": rng.standard_normal((3, 2, 16)).astype(np.float32),
        f"{name}.weight.lora_b": rng.standard_normal((3, 12, 2)).astype(np.float32),
    }
    path = write_gguf(tensors)
    for index, update in enumerate(applied_updates(path)[name]):
        assert np.allclose(read_updates(path)[f"{name}[{index}]"], update, atol=1e-12)
    ranks = {f"{name}[0]": 1, f"{name}[1]": 2, f"{name}[2]": 2} | dict.fromkeys(WEIGHTS, 3)
    resize(path, tmp_path / "new.gguf", rank=ranks)
    written = applied_updates(tmp_path / "new.gguf")
    assert written[name].shape == (3, 12, 16)
    for index, update in enumerate(applied_updates(path)[name]):
        assert np.allclose(written[name][index], best(update, ranks[f"{name}[{index}]"]), atol=1e-4)
    for weight in WEIGHTS:
        assert np.allclose(written[weight], best(applied_updates(path)[weight], 3), atol=1e-4)


@pytest.mark.parametrize("alpha", [16.0, 0.0])
def test_convert_keeps_the_factors(write_gguf, rng, tmp_path, alpha):
    tensors = factors(rng)
    path = write_gguf(tensors, alpha=alpha)
    convert(path, tmp_path / "new.gguf")
    for tensor in GGUFReader(tmp_path / "new.gguf").tensors:
        assert np.array_equal(np.asarray(tensor.data), tensors[tensor.name])


def test_the_architecture_is_written_once(write_gguf, rng, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        convert(write_gguf(factors(rng)), tmp_path / "new.gguf")
    # The package warns of a key that is given twice, and takes the last.
    assert not caplog.records


def test_merge_adds_them(write_gguf, rng, tmp_path):
    paths = [write_gguf(factors(rng)), write_gguf(factors(rng, 2), "second.gguf", alpha=3.0)]
    merge(paths, tmp_path / "sum.gguf", weights=[1.0, 0.5])
    first, second = map(applied_updates, paths)
    for name, update in applied_updates(tmp_path / "sum.gguf").items():
        assert np.allclose(update, first[name] + 0.5 * second[name], atol=1e-4)


def test_quantised_factors_are_dequantised(tmp_path, rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 32), (16, 32)))
    writer = GGUFWriter(tmp_path / "q.gguf", "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("output.weight.lora_a", a.repeat(8, axis=0))
    writer.add_tensor("output.weight.lora_b", quantize(b, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (layer,) = open_adapter(tmp_path / "q.gguf").layers
    assert layer.rank == 32
    assert np.allclose(layer.update().to_dense(), b @ a.repeat(8, axis=0), atol=0.2)


def test_what_llama_cpp_refuses_is_refused(write_gguf, rng):
    with pytest.raises(ValueError, match="'control_vector'"):
        open_adapter(write_gguf(factors(rng), kind="control_vector"))
    tensors = factors(rng) | {"blk.0.attn_q.weight.lora_a": np.ones((3, 12), np.float32)}
    adapter = open_adapter(write_gguf(tensors, "other.gguf"))
    assert [layer.name for layer in adapter.layers] == ["blk.0.ffn_down"]
    assert "disagree: lora_a is 3 × 12, and lora_b 16 × 4" in adapter.unsupported["blk.0.attn_q"]


def test_layers_of_another_format_are_referred_to_llama_cpps_converter(tmp_path, rng):
    from safetensors.numpy import save_file

    save_file({"p.lora_A.weight": np.ones((2, 4)), "p.lora_B.weight": np.ones((3, 2))}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"convert_lora_to_gguf\.py"):
        resize(tmp_path / "x.safetensors", tmp_path / "x.gguf", rank=1)
    assert not (tmp_path / "x.gguf").exists()


def test_a_census_has_a_row_for_it_and_none_for_a_model(write_gguf, rng):
    path = write_gguf(factors(rng))
    write_gguf({"blk.0.attn_q.weight": np.ones((4, 4), np.float32)}, name="model.gguf")
    (row,) = census(path.parent)
    assert (row.path, row.format, row.layers, row.failure) == (str(path), "gguf", len(WEIGHTS), None)
