from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from lowrank_core.models.files.streams import header_size, stream_tensors

TENSORS = {
    "double": np.arange(6.0).reshape(2, 3),
    "single": np.full((3, 1, 2), 1.5, np.float32),
    "scalar": np.array(7.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "brain": np.array([1.0, -2.0, 3.0], ml_dtypes.bfloat16),
    "half": np.array([0.1], np.float16),
    "flags": np.array([True, False]),
}


def write(path, tensors, keys=None, metadata=None):
    with stream_tensors(path, tensors if keys is None else keys, metadata or {}) as stream:
        for key, tensor in tensors.items():
            stream.add(key, tensor)


def test_safetensors_itself_reads_what_was_streamed(tmp_path):
    path = tmp_path / "file.safetensors"
    write(path, TENSORS, [*TENSORS, "never added"], {"format": "pt"})
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert loaded[key].dtype == tensor.dtype
        assert loaded[key].shape == tensor.shape
        assert loaded[key].tobytes() == tensor.tobytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_strided_big_endian_and_read_only_arrays_are_written(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "every other": np.arange(10.0)[::2],
        "big-endian": np.arange(3).astype(">f8"),
        "broadcast": np.broadcast_to(np.float64(2), (3, 2)),
    }
    write(path, tensors)
    for key, tensor in load_file(path).items():
        assert np.array_equal(tensor, tensors[key])


def test_the_order_of_the_metadata_does_not_change_the_file(tmp_path):
    metadata = {"ss_network_dim": "4", "ss_base_model": "sd_v1", "made": "by hand"}
    write(tmp_path / "one", TENSORS, metadata=metadata)
    write(tmp_path / "other", TENSORS, metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_metadata_may_grow_by_a_few_entries(tmp_path):
    path = tmp_path / "file.safetensors"
    with stream_tensors(path, ["a"], {}) as stream:
        stream.add("a", TENSORS["single"])
        stream.metadata["ss_network_dim"] = "Dynamic"
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"ss_network_dim": "Dynamic"}


def test_names_of_any_script_and_length(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = dict.fromkeys(("层.0", '"quoted"\n', "x" * 3000, *map(str, range(500))), TENSORS["single"])
    write(path, tensors)
    assert load_file(path).keys() == tensors.keys()


def test_two_layers_of_one_name_and_unaligned_tensors_are_refused(tmp_path):
    with stream_tensors(tmp_path / "file", ["a", "b"], {}) as stream:
        stream.add("a", TENSORS["half"])
        with pytest.raises(ValueError, match=r"^'a' would be written twice"):
            stream.add("a", TENSORS["half"])
        with pytest.raises(ValueError, match=r"^'b' would not be aligned"):
            stream.add("b", TENSORS["single"])


def test_a_header_larger_than_the_space_reserved_for_it_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"^the header takes"),
        stream_tensors(tmp_path / "file", [], {}) as stream,
    ):
        stream.metadata["long"] = "x" * 10_000


@pytest.mark.parametrize("more", [0, 1])
def test_a_header_may_fill_the_space_reserved_for_it_and_no_more(tmp_path, more):
    path = tmp_path / "file.safetensors"
    reserved = header_size([], {}) - 8
    text = "x" * (reserved + more - len('{"__metadata__": {"long": ""}}'))
    with (
        pytest.raises(ValueError, match=rf"^the header takes {reserved + 1} bytes") if more else nullcontext(),
        stream_tensors(path, [], {}) as stream,
    ):
        stream.metadata["long"] = text
    if not more:
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"long": text}
