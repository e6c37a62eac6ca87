"""GGUF files as the gguf package writes and reads them."""

import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter, dequantize, quantize

from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.tensors import open_file, read_tensors
from lowrank_core.models.inspection.census import census
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.pairing.pairs import pair_checkpoints

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


@pytest.mark.parametrize("name", QUANTISED)
def test_rounding_to_a_quantised_type_errs_by_a_step_at_the_most(tmp_path, rng, name):
    values = rng.standard_normal((6, 64)).astype(np.float32)
    tensor = open_file(write_gguf(tmp_path / "x.gguf", {"x": (values, name)}))[0]["x"]
    read, steps = tensor.read_with_steps((6, 64))
    assert tensor.is_coarse
    error = np.abs(read - values)
    # llama.cpp clips the end of some types' ranges, by up to one step.
    assert np.all(error <= 1.01 * steps)
    assert np.quantile(error / steps, 0.9) < 0.51
    assert np.array_equal(tensor.along(0, 1, 3).read_with_steps((2, 64))[1], steps[1:3])


@pytest.mark.parametrize("name", [*QUANTISED, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_numbers_of_a_scale_differ_by_whole_steps(tmp_path, rng, name):
    stored = GGMLQuantizationType[name]
    entries, size = GGML_QUANT_SIZES[stored]
    blocks = rng.integers(0, 256, (3, 8 * size)).astype(np.uint8)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", blocks, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values, steps = open_file(tmp_path / "x.gguf")[0]["x"].read_with_steps((3, 8 * entries))
    # Of random bytes some scales are infinite or very unlike each other; 16 entries have one scale in every type.
    values, steps = values.reshape(-1, 16).astype(np.float64), steps.reshape(-1, 16).astype(np.float64)
    usable = np.isfinite(values).all(1) & np.isfinite(steps).all(1) & (steps > 1e-3 * np.abs(values)).all(1)
    assert np.count_nonzero(usable) > 20
    values, steps = values[usable], steps[usable]
    assert np.allclose(steps, steps[:, :1], rtol=1e-3)
    multiples = (values - values[:, :1]) / steps[:, :1]
    assert np.abs(multiples - np.round(multiples)).max() < 0.05
    assert np.abs(np.round(multiples)).max() > 1


def test_types_whose_rounding_is_not_known_are_not_taken_for_exact(tmp_path):
    stored = GGMLQuantizationType.IQ4_NL
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", np.zeros((3, GGML_QUANT_SIZES[stored][1]), np.uint8), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_file(tmp_path / "x.gguf")[0]["x"]
    assert not tensor.is_coarse
    with pytest.raises(ValueError, match=r"^'x' is stored as IQ4_NL, of which the rounding is not known"):
        tensor.read_with_steps((3, 32))


def test_numbers_and_strings_of_the_metadata_are_text_and_arrays_are_passed_over(tmp_path):
    fields = [
        ("general.type", "string", "adapter"),
        ("adapter.type", "string", "lora"),
        ("adapter.lora.alpha", "float32", 16.0),
        *[("a", "uint8", 200), ("b", "int64", -5), ("c", "bool", True), ("d", "float64", 0.1)],
        *[("e", "array", ["one", "two"]), ("f", "array", [1, 2, 3]), ("g", "array", [0.5]), ("h", "array", [""] * 9)],
        *[("i", "int8", -100), ("j", "uint16", 50_000), ("k", "int16", -30_000), ("l", "uint32", 2**32 - 1)],
        *[("m", "int32", -(2**31)), ("n", "uint64", 2**64 - 1)],
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
        "i": "-100",
        "j": "50000",
        "k": "-30000",
        "l": "4294967295",
        "m": "-2147483648",
        "n": "18446744073709551615",
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


def number(value, size=8):
    return (value % 2 ** (8 * size)).to_bytes(size, "little")


def text(value):
    return number(len(value)) + value.encode()


def header(*parts, tensors=0, fields=1):
    return b"GGUF" + number(3, 4) + number(tensors) + number(fields) + b"".join(parts)


def described(name="x", shape=(32,), kind=0, offset=0):
    sides = b"".join(number(side) for side in shape)
    return text(name) + number(len(shape), 4) + sides + number(kind, 4) + number(offset)


HOSTILE = {
    "cut short": (b"GGUF", "4 bytes from byte 4 on are beyond its end"),
    "2^63 fields": (header(fields=2**63), "9223372036854775808 entries from byte 24 on are beyond its end"),
    "2^63 tensors": (header(tensors=2**63, fields=0), "9223372036854775808 entries from byte 16 on are beyond its end"),
    "a name of 2^63 bytes": (
        header(number(2**63), bytes(99)),
        "9223372036854775808 bytes from byte 32 on are beyond its end",
    ),
    "an array of 2^62 numbers": (
        header(text("a"), number(9, 4), number(0, 4), number(2**62), bytes(99)),
        "4611686018427387904 entries from byte 49 on are beyond its end",
    ),
    "an array of 2^62 strings": (
        header(text("a"), number(9, 4), number(8, 4), number(2**62), bytes(99)),
        "4611686018427387904 entries from byte 49 on are beyond its end",
    ),
    "an array of arrays": (
        header(text("a"), number(9, 4), number(9, 4), number(1), bytes(99)),
        "its metadata has an array of the unknown type 9",
    ),
    "a value of no type": (
        header(text("a"), number(99, 4), bytes(99)),
        "its metadata has a value of the unknown type 99",
    ),
    "a field named twice": (
        header(*2 * [text("a") + number(0, 4) + b"0"], fields=2, tensors=0),
        "its header names 'a' twice",
    ),
    "no alignment": (header(text("general.alignment"), number(4, 4), number(0, 4)), "its general.alignment is '0'"),
    "a name that is not UTF-8": (
        header(number(1), b"\xff", number(0, 4), bytes(9)),
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
    "2^31 axes": (
        header(text("x"), number(2**31, 4), bytes(99), tensors=1, fields=0),
        "'x' has 2147483648 axes, and at most 4 are possible",
    ),
    "a shape that wraps": (
        header(described(shape=(2**33, 2**31)), bytes(99), tensors=1, fields=0),
        "'x' has a shape of (2147483648, 8589934592), which no memory can address",
    ),
    "an empty, vast shape": (
        header(described(shape=(0, 2**63)), bytes(99), tensors=1, fields=0),
        "'x' has a shape of (9223372036854775808, 0), which no memory can address",
    ),
    "a shape beyond the file": (
        header(described(shape=(2**40,)), bytes(99), tensors=1, fields=0),
        "'x' is beyond its end",
    ),
    "an offset beyond the file": (
        header(described(offset=2**64 - 32), bytes(99), tensors=1, fields=0),
        "'x' is beyond its end",
    ),
    "half a block": (
        header(described(shape=(33,), kind=8), bytes(999), tensors=1, fields=0),
        "'x' has a shape of (33,), whose rows are not whole blocks of Q8_0",
    ),
    "half a block in each row": (
        header(described(shape=(16, 2), kind=8), bytes(999), tensors=1, fields=0),
        "'x' has a shape of (2, 16), whose rows are not whole blocks of Q8_0",
    ),
    "a tensor of no type": (
        header(described(kind=999), bytes(999), tensors=1, fields=0),
        "999 is not a valid GGMLQuantizationType",
    ),
    "a tensor named twice": (
        header(2 * described(), bytes(999), tensors=2, fields=0),
        "its header names a tensor twice",
    ),
}


@pytest.mark.parametrize("name", [*HOSTILE])
def test_a_hostile_header_is_refused_at_once_and_in_little_memory(tmp_path, name):
    content, message = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is not a valid GGUF file") as refused:
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert f" GGUF file ({message}): " in str(refused.value)


def test_empty_strings_may_end_a_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(header(text("words"), number(9, 4), number(8, 4), number(3), *3 * [text("")]))
    assert open_file(path) == ({}, {})


def test_a_mutated_file_is_read_or_refused(tmp_path, rng):
    values = rng.standard_normal((4, 32)).astype(np.float32)
    fields = [("adapter.lora.alpha", "float32", 16.0), ("words", "array", ["one", "two"]), ("n", "array", [1, 2])]
    path = write_gguf(tmp_path / "x.gguf", {"a": values, "b": (values, "Q8_0"), "c": (values, "BF16")}, fields)
    content, head = path.read_bytes(), 400
    read = 0
    for _ in range(1000):
        changed = bytearray(content)
        for place in rng.integers(4, head, size=rng.integers(1, 4)):
            changed[place] = rng.choice([0, 1, 2, 9, 127, 128, 255])
        if rng.integers(4) == 0:
            del changed[rng.integers(4, len(changed)) :]
        path.write_bytes(changed)
        try:
            tensors, _ = open_file(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - most are read
            continue
        for tensor in tensors.values():
            read += tensor.read().shape == tensor.shape
    assert read > 100


def test_a_missing_extra_names_the_line_that_installs_it(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "x.gguf", {"x": np.ones(2, np.float32)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r'needs gguf.*pip install "lowrank_core\[gguf\]"'):
        open_file(path)


def test_a_file_whose_package_is_missing_is_one_row_of_a_census(tmp_path, monkeypatch):
    # By its name alone a census takes it for a file of tensors.
    write_gguf(tmp_path / "x.safetensors", {"x": np.ones(2, np.float32)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    [row] = census(tmp_path)
    assert "lowrank_core[gguf]" in row.failure
    assert row.stamp == ""


def test_reading_one_tensor_takes_the_memory_of_one(tmp_path):
    side, count = 256, 40
    path = write_gguf(tmp_path / "x.gguf", {f"t{i}": np.ones((side, side), np.float32) for i in range(count)})
    tensors, _ = open_file(path)
    tracemalloc.start()
    try:
        for tensor in tensors.values():
            tensor.read()
        assert tracemalloc.get_traced_memory()[1] < 3 * side * side * 4
    finally:
        tracemalloc.stop()


def test_an_adapter_is_extracted_from_two_quantised_checkpoints(tmp_path, rng):
    base = rng.standard_normal((8, 64)).astype(np.float32)
    tuned = base + np.outer(rng.standard_normal(8), rng.standard_normal(64)).astype(np.float32)
    for name, weight in (("base", base), ("tuned", tuned)):
        write_gguf(tmp_path / f"{name}.gguf", {"blk.0.attn_q.weight": (weight, "Q8_0")})
    report = extract(tmp_path / "base.gguf", tmp_path / "tuned.gguf", tmp_path / "out", rank=1)
    assert report.layers[0].dtype == "Q8_0"
    assert report.layers[0].variance_captured > 0.99
