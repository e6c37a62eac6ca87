import io
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import open_file, read_tensors


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int8", "uint8", "bool"],
)
def test_a_tensor_is_read_to_the_bit_in_its_own_dtype(write_file, rng, dtype):
    values = (4 * rng.standard_normal((3, 5))).astype(np.dtype(dtype))
    tensors, _ = open_file(write_file({"x": values}))
    read = tensors["x"].read()
    assert (tensors["x"].shape, tensors["x"].dtype, read.dtype.name) == ((3, 5), dtype, dtype)
    assert read.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_a_number_and_an_empty_tensor_are_read_in_their_own_dtype(write_file, dtype, shape):
    values = np.full(shape, 1.5).astype(np.dtype(dtype))
    read = open_file(write_file({"x": values}))[0]["x"].read()
    assert (read.shape, read.dtype, read.tobytes()) == (shape, values.dtype, values.tobytes())


def test_a_type_that_numpy_does_not_have_is_refused_by_name(write_file):
    path = write_file({"x": np.zeros((2, 2), ml_dtypes.float8_e4m3fn)})
    path.write_bytes(path.read_bytes().replace(b'"F8_E4M3"', b'"F8_E8M0"'))
    tensors, _ = open_file(path)
    with pytest.raises(ValueError, match=r"^'x' is stored as F8_E8M0: .* dequantised first"):
        tensors["x"].read()


def test_a_system_that_reads_a_few_bytes_at_a_time_is_asked_until_all_are_there(write_file, monkeypatch):
    values = np.arange(100.0)
    tensor = open_file(write_file({"x": values}))[0]["x"]

    class Slow(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Slow(self))
    assert np.array_equal(tensor.read(), values)


def test_several_tensors_are_read_in_the_order_given(write_file):
    one, _ = open_file(write_file({"a": np.array([1.0]), "b": np.array([2.0])}, "one.safetensors"))
    two, _ = open_file(write_file({"c": np.array([3.0])}, "two.safetensors"))
    assert [array[0] for array in read_tensors([one["b"], two["c"], one["a"]])] == [2.0, 3.0, 1.0]


def test_stored_tensors_can_be_pickled(write_file):
    tensors, _ = open_file(write_file({"a": np.array([1.0])}))
    assert pickle.loads(pickle.dumps(tensors["a"])).read() == [1.0]


@pytest.mark.parametrize("keep", [4, 20, -1])
def test_a_file_cut_short_is_refused(write_file, keep):
    path = write_file({"a": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        open_file(path)


def test_a_header_with_wrong_offsets_is_refused(write_file):
    path = write_file({"a": np.arange(100.0)})
    path.write_bytes(path.read_bytes().replace(b"[0,800]", b"[0,999]"))
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        open_file(path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".gguf", ""])
def test_a_file_is_read_by_what_is_in_it_and_not_by_its_name(write_file, suffix):
    path = write_file({"a": np.array([1.0])})
    assert open_file(path.rename(path.with_suffix(suffix)))[0]["a"].read() == [1.0]


def test_a_header_of_any_length_is_one_of_safetensors(write_file):
    # 0x0280 and 0x040280 are how pickles of protocol 2 begin.
    for length in (0x0280, 0x040280):
        path = write_file({"a": np.array([1.0])})
        content = path.read_bytes()
        header = content[8 : 8 + int.from_bytes(content[:8], "little")].ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + header + content[-8:])
        assert open_file(path)[0]["a"].read() == [1.0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        open_file(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("target", ["link.safetensors", "absent"])
def test_a_link_to_itself_or_to_nothing_is_said_to_be_one(tmp_path, target):
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / target)
    with pytest.raises(FileNotFoundError, match="link to nothing, or to itself"):
        open_file(link)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "JSON list"),
    ],
)
def test_bad_json_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json")


def test_a_missing_extra_names_the_line_that_installs_it(write_file):
    path = write_file({"a": np.array([1.0], ml_dtypes.bfloat16)})
    for missing in ("safetensors", "ml_dtypes"):
        code = (
            f"import sys; sys.modules[{missing!r}] = None\n"
            "from pathlib import Path\nfrom lowrank_core.models.files.tensors import open_file\n"
            f"try:\n    open_file(Path({str(path)!r}))\nexcept ImportError as error:\n    print(error)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert missing in said
        assert 'pip install "lowrank_core[models]"' in said


def test_reading_models_imports_neither_torch_nor_peft():
    code = (
        "import sys, lowrank_core.models.inspection.layers\n"
        "print(sorted({'torch', 'peft', 'safetensors', 'ml_dtypes'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
