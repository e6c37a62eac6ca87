"""GGUF files as the gguf package writes and reads them."""

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter, dequantize, quantize

from lowrank_core.models.files.checkpoints import open_checkpoint, pair_checkpoints
from lowrank_core.models.files.tensors import open_file, read_tensors

PLAIN = ("float64", "float32", "float16", "int8", "int16", "int32", "int64")
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def write_gguf(path, tensors, fields=(), **options):
    """Write arrays, or pairs of an array and the name of a type to quantise it to."""
    writer = GGUFWriter(path, "llama", **options)
    for key, method, value in fields:
        getattr(writer, f"add_{method}")(key, value)
    for key, tensor in tensors.items():
        array, name = tensor if isinstance(tensor, tuple) else (tensor, None)
        stored = None if name is None else GGMLQuantizationType[name]
        writer.add_tensor(key, array if stored is None else quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", PLAIN)
def test_a_plain_tensor_is_read_to_the_bit_in_its_own_dtype(tmp_path, rng, dtype):
    values = (4 * rng.standard_normal((3, 2, 5))).astype(dtype)
    tensor = open_file(write_gguf(tmp_path / "x.gguf", {"first": np.ones(3, np.float32), "x": values}))[0]["x"]
    assert (tensor.shape, tensor.dtype, tensor.array_dtype) == ((3, 2, 5), dtype, dtype)
    assert tensor.read().tobytes() == values.tobytes()


def test_bfloat16_is_read_to_the_bit(tmp_path, rng):
    values = rng.standard_normal((3, 32)).astype(np.float32)
    tensor = open_file(write_gguf(tmp_path / "x.gguf", {"x": (values, "BF16")}))[0]["x"]
    assert (tensor.shape, tensor.dtype) == ((3, 32), "bfloat16")
    assert tensor.read().tobytes() == values.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_tensor_is_read_as_the_package_dequantises_it(tmp_path, rng, name):
    values = rng.standard_normal((2, 3, 64)).astype(np.float32)
    path = write_gguf(tmp_path / "x.gguf", {"x": (values, name)})
    tensor = open_file(path)[0]["x"]
    assert (tensor.shape, tensor.dtype, tensor.array_dtype, tensor.is_readable) == ((2, 3, 64), name, "float32", True)
    [stored] = GGUFReader(path).tensors
    read = tensor.read()
    assert (read.shape, read.dtype) == ((2, 3, 64), np.float32)
    assert np.array_equal(read, dequantize(stored.data, stored.tensor_type).reshape(read.shape))
    assert np.abs(read - values).max() < 0.5


def test_numbers_and_strings_of_the_metadata_are_text_and_arrays_are_passed_over(tmp_path):
    fields = [
        ("general.type", "string", "adapter"),
        ("adapter.type", "string", "lora"),
        ("adapter.lora.alpha", "float32", 16.0),
        *[("a", "uint8", 200), ("b", "int64", -5), ("c", "bool", True), ("d", "float64", 0.1)],
        *[("e", "array", ["one", "two"]), ("f", "array", [1, 2, 3]), ("g", "array", [0.5])],
    ]
    _, metadata = open_file(write_gguf(tmp_path / "x.gguf", {"x": np.ones(1, np.float32)}, fields))
    assert metadata == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": "16.0",
        "a": "200",
        "b": "-5",
        "c": "True",
        "d": "0.1",
    }


def test_tensors_begin_where_the_file_says_that_they_are_aligned(tmp_path, rng):
    values = {name: rng.standard_normal(3).astype(np.float32) for name in "ab"}
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(128)
    for name, array in values.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors, _ = open_file(tmp_path / "x.gguf")
    for array, expected in zip(read_tensors([tensors["b"], tensors["a"]]), (values["b"], values["a"]), strict=True):
        assert np.array_equal(array, expected)


def test_two_checkpoints_have_the_difference_of_their_dequantised_weights(tmp_path, rng):
    for name in ("base", "tuned"):
        values = rng.standard_normal((4, 32)).astype(np.float32)
        write_gguf(tmp_path / f"{name}.gguf", {"blk.0.attn_q.weight": (values, "Q8_0"), "norm": np.ones(4, np.float32)})
    base, tuned = (open_checkpoint(tmp_path / f"{name}.gguf") for name in ("base", "tuned"))
    [layer] = pair_checkpoints(base, tuned).layers
    assert (layer.name, layer.shape, layer.dtype) == ("blk.0.attn_q", (4, 32), "Q8_0")
    weights = [checkpoint.tensors["blk.0.attn_q.weight"].read() for checkpoint in (base, tuned)]
    assert np.array_equal(layer.update(), weights[1] - weights[0])


def test_big_endian_and_other_versions_are_named(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", {"x": np.ones(2, np.float32)}, endianess=GGUFEndian.BIG)
    with pytest.raises(ValueError, match="big-endian"):
        open_file(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(ValueError, match="version 1, not 2 or 3"):
        open_file(path)
