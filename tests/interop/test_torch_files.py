"""Files of torch.save: their tensors to the bit, and no code of theirs ever run."""

import collections
import datetime as dt
import pickle
import shlex
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from lowrank_core.models.files import torch_file
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.tensors import open_file, read_tensors
from lowrank_core.models.pairing.pairs import pair_checkpoints

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int8", "uint8", "bool")
MARK = "ran"


class Payload:
    """What runs a function where its pickle is loaded without care."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.fixture(params=["zip", "legacy"])
def save(tmp_path, request):
    def write(content, name="model.bin"):
        return saved(tmp_path / name, content, _use_new_zipfile_serialization=request.param == "zip")

    return write


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_read_to_the_bit_in_its_own_dtype(tmp_path, dtype):
    values = (4 * np.random.default_rng(0).standard_normal((3, 5))).astype(numpy_dtype(dtype))
    tensor = torch.tensor(values.astype(np.float64)).to(getattr(torch, dtype))
    tensors, metadata = open_file(saved(tmp_path / "x.pt", {"x": tensor, "scalar": tensor[0, 0], "none": tensor[:0]}))
    assert metadata == {}
    read = tensors["x"].read()
    assert (tensors["x"].shape, tensors["x"].dtype, read.dtype.name) == ((3, 5), dtype, dtype)
    assert read.tobytes() == values.tobytes()
    assert tensors["scalar"].read().shape == ()
    assert tensors["none"].read().shape == (0, 5)


def test_views_and_parameters_are_read_as_their_numbers(save):
    matrix = torch.arange(12.0).reshape(3, 4)
    content = {"t": matrix.T, "part": matrix[1:, ::2], "p": torch.nn.Parameter(matrix), "tied": matrix}
    tensors, _ = open_file(save(collections.OrderedDict(content)))
    arrays = read_tensors([tensors["t"], tensors["part"], tensors["p"], tensors["tied"]])
    for array, tensor in zip(arrays, content.values(), strict=True):
        assert np.array_equal(array, tensor.detach().numpy())
        assert array.flags.c_contiguous
        assert array.flags.owndata or array.base is not None
        assert array.flags.writeable


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_a_state_dict_is_taken_out_of_what_training_saved_with_it(save, wrapper):
    weights = {"layer.weight": torch.ones(2, 2), "steps": 7, "note": "x", "nothing": None}
    tensors, _ = open_file(save({wrapper: weights, "optimizer": {"state": {0: {"m": torch.ones(9)}}}, "epoch": 3}))
    assert list(tensors) == ["layer.weight"]


def test_a_tensor_beside_a_state_dict_is_not_passed_over(save):
    tensors, _ = open_file(save({"model": {"a": torch.ones(1)}, "b": torch.ones(1)}))
    assert list(tensors) == ["b", "model.a"]


@pytest.mark.parametrize("beside", ["text_encoder", "state_dict_ema", "upscaler"])
def test_a_model_beside_a_state_dict_is_not_passed_over(save, beside):
    tensors, _ = open_file(save({"model": {"a": torch.ones(2)}, beside: {"b": torch.ones(3)}, "epoch": 3}))
    assert {key: tensor.shape for key, tensor in tensors.items()} == {"model.a": (2,), f"{beside}.b": (3,)}


@pytest.mark.parametrize(
    "beside",
    [
        {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(9)}}}], "lr_schedulers": [{"lrs": torch.ones(3)}]},
        {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}}, "loss": torch.tensor(0.25)},
        {"rng_state": torch.ones(16, dtype=torch.uint8), "grad_scaler": {"scale": torch.ones(1)}},
    ],
)
def test_what_trainers_save_beside_a_state_dict_is_left_out(save, beside):
    assert list(open_file(save({"state_dict": {"a": torch.ones(2)}, **beside}))[0]) == ["a"]


def test_a_container_of_two_names_is_read_under_both(save):
    shared = {"a": torch.ones(2)}
    assert list(open_file(save({"unet": shared, "ema": shared}))[0]) == ["ema.a", "unet.a"]


@pytest.mark.parametrize("leaf", [{}, {"a": torch.ones(1)}])
def test_a_container_of_very_many_names_costs_no_more_than_the_most_that_are_read(save, leaf, monkeypatch):
    monkeypatch.setattr(torch_file, "_MOST_NAMES", 1000)
    content = leaf
    for _ in range(14):
        content = dict.fromkeys(range(40), content)
    content = {"b": torch.ones(1), "model": content}
    if leaf:
        with pytest.raises(ValueError, match=r"has 1,000 names of tensors or more"):
            open_file(save(content))
    else:
        assert list(open_file(save(content))[0]) == ["b"]


def test_two_tensors_of_one_name_are_refused(save):
    with pytest.raises(ValueError, match="two of its tensors have one name"):
        open_file(save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}))


def test_names_of_nested_containers_are_joined_by_dots(save):
    tensors, _ = open_file(save({"unet": {"a": torch.ones(1)}, "parts": [torch.ones(2), (torch.ones(3),)]}))
    assert {key: tensor.shape for key, tensor in tensors.items()} == {
        "parts.0": (2,),
        "parts.1.0": (3,),
        "unet.a": (1,),
    }


def test_a_container_within_itself_is_read_once(save):
    content = {"a": torch.ones(1)}
    content["self"] = content
    assert list(open_file(save(content))[0]) == ["a"]


def test_a_deep_container_and_a_lone_tensor_are_refused(save):
    content = {"a": torch.ones(1)}
    for _ in range(50):
        content = [content]
    with pytest.raises(ValueError, match="nested deeper"):
        open_file(save(content))
    with pytest.raises(ValueError, match="one tensor without a name"):
        open_file(save(torch.ones(1)))


def test_tensors_are_found_in_17_containers_and_no_deeper(save):
    content = torch.ones(1)
    for _ in range(17):
        content = [content]
    assert list(open_file(save(content))[0]) == [".".join(17 * "0")]
    with pytest.raises(ValueError, match="nested deeper"):
        open_file(save([content]))


def test_a_tensor_that_a_file_has_no_longer_is_named(save):
    read = open_file(save({"a": torch.ones(2, 3).T}))[0]["a"]
    save({"b": torch.ones(2)})
    with pytest.raises(ValueError, match="is not a valid PyTorch file \\('a' is no longer in it\\)"):
        read.read()


def test_repeated_entries_of_more_bytes_than_the_file_are_refused(save):
    # 4 kB of one number in a file of about 1 kB or less.
    tensors, _ = open_file(save({"r": torch.ones(1).expand(32, 32)}))
    with pytest.raises(ValueError, match="'r' repeats its entries and is larger than its file"):
        tensors["r"].read()


def test_a_tensor_that_has_no_plain_numbers_is_refused_by_name_and_the_others_are_read(save):
    repeated = torch.ones(1).expand(1 << 15, 1 << 15)
    sparse = torch.eye(3).to_sparse()
    content = {
        "a": torch.ones(2),
        "m": torch.ones(2, device="meta"),
        "r": repeated,
        "s": sparse,
        "c": torch.ones(1) + 1j,
    }
    tensors, _ = open_file(save(content))
    assert tensors["a"].read().tolist() == [1.0, 1.0]
    for key, message in {"m": "'m' .* meta device", "r": "'r' repeats", "s": "'s' .* sparse", "c": "complex64"}.items():
        with pytest.raises(ValueError, match=message):
            tensors[key].read()


@pytest.mark.parametrize("suffix", [".bin", ".safetensors", ".gguf", ""])
def test_the_name_of_a_file_decides_nothing(save, suffix):
    assert list(open_file(save({"a": torch.ones(1)}, f"model{suffix}"))[0]) == ["a"]


def test_two_checkpoints_have_their_difference(tmp_path):
    base, tuned = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for name, weight in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "pytorch_model.bin", {"q.weight": weight})
        (tmp_path / name / "training_args.bin").write_bytes(b"")
    [layer] = pair_checkpoints(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned")).layers
    assert np.array_equal(layer.update(), (tuned - base).numpy())


def payloads(folder):
    """Pickles that make a file where their code is run, and the class that each asks for."""
    mark = str(folder / MARK)
    return {
        "os": (Payload(__import__("os").mkdir, mark), "mkdir"),
        "exec": (Payload(exec, f"open({mark!r}, 'w')"), "exec"),
        "open": (Payload(open, mark, "w"), "open"),
        "date": (dt.date(2020, 1, 1), "datetime.date"),
    }


@pytest.mark.parametrize("name", ["os", "exec", "open", "date"])
@pytest.mark.parametrize("place", ["entry", "whole", "plain pickle"])
def test_code_is_never_run_and_the_class_that_was_asked_for_is_named(save, tmp_path, name, place):
    payload, asked = payloads(tmp_path)[name]
    if place == "plain pickle":
        path = tmp_path / "model.bin"
        path.write_bytes(pickle.dumps({"a": payload}, protocol=2))
    else:
        path = save({"a": torch.ones(1), "b": payload} if place == "entry" else payload)
    with pytest.raises(ValueError, match="is a pickle that asks for") as refused:
        open_file(path)
    assert asked in str(refused.value)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("module", [b"builtins", b"__builtin__"])
def test_a_few_bytes_that_ask_for_gigabytes_are_refused_at_once(tmp_path, module):
    # bytearray(2^40), which torch's restricted reader builds.
    content = b"\x80\x02c" + module + b"\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
    plain, archived = tmp_path / "plain.bin", tmp_path / "zip.bin"
    plain.write_bytes(content)
    with zipfile.ZipFile(archived, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    for path in (plain, archived):
        with pytest.raises(ValueError, match="asks for bytearray"):
            open_file(path)


@pytest.mark.parametrize("other", ["b/data.pkl", "a/DATA.PKL"])
def test_an_archive_with_two_pickles_is_refused(tmp_path, other):
    path = tmp_path / "zip.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", other):
            archive.writestr(name, b"\x80\x02}.")
    with pytest.raises(ValueError, match=r"data\.pkl twice"):
        open_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_protocol_that_cannot_be_read_safely_is_named(tmp_path, zipped):
    content = {"a": torch.ones(1)}
    path = saved(tmp_path / "x.pt", content, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="is a pickle of protocol 4; only those of protocol 2"):
        open_file(path)


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_an_archive_that_expands_is_refused_and_not_expanded(tmp_path, name):
    path = tmp_path / "model.bin"
    content = {"data.pkl": b"\x80\x02}.", "byteorder": b"little"}
    content[name] = pickle.dumps({"a": "x" * (1 << 24)}, protocol=2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, value in content.items():
            archive.writestr(f"archive/{entry}", value)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"not a valid PyTorch file.*expand"):
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_other_archives_are_named(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"")
    with pytest.raises(ValueError, match=r"zip archive that torch\.save did not write: unpack it"):
        open_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        open_file(path)


def mutants(content, rng, count):
    for _ in range(count):
        changed = bytearray(content)
        kind = rng.integers(3)
        if kind == 0:
            for place in rng.integers(0, len(content), size=rng.integers(1, 6)):
                changed[place] = rng.integers(0, 256)
        elif kind == 1:
            del changed[rng.integers(1, len(content)) :]
        else:
            start, end = sorted(rng.integers(0, len(content), size=2))
            del changed[start:end]
        yield bytes(changed)


def test_a_mutated_file_is_read_or_refused(save):
    path = save({"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})
    read, messages = 0, []
    for content in mutants(path.read_bytes(), np.random.default_rng(0), 150):
        path.write_bytes(content)
        try:
            tensors, _ = open_file(path)
            read += len(read_tensors(tensor for tensor in tensors.values() if tensor.is_readable))
        except (ValueError, OSError) as error:
            messages.append(str(error).strip())
    assert read > 0
    assert all(messages)


def test_without_torch_the_message_says_what_to_do(tmp_path):
    path = saved(tmp_path / "model.bin", {"a": torch.ones(1)})
    for setting, fact in (("sys.modules['torch'] = None", "torch"), ("torch.__version__ = '2.9.1'", "CVE-2026-24747")):
        code = (
            f"import sys\nfrom pathlib import Path\n{'import torch' if '2.9' in setting else ''}\n{setting}\n"
            "from lowrank_core.models.files.tensors import open_file\n"
            f"try:\n    open_file(Path({str(path)!r}))\nexcept ImportError as error:\n    print(error)"
        )
        message = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert fact in message
        assert "pip install 'torch>=2.10'" in message
        assert "runs the code in it" in message


def test_the_command_that_converts_does(tmp_path, monkeypatch):
    path = saved(tmp_path / "it's; touch ran.bin", {"a": torch.ones(2, 3).T, "b": torch.ones(1)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError) as refused:
        open_file(path)
    assert "pip install 'torch>=2.10'" in str(refused.value)
    command = str(refused.value).split("is installed: ")[1].split(". Any other way")[0]
    program, *arguments = shlex.split(command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path)
    assert open_file(path.with_suffix(".safetensors"))[0]["a"].read().shape == (3, 2)


def test_a_tensor_whose_place_is_known_is_read_without_torch(tmp_path, monkeypatch):
    matrix = torch.arange(12.0).reshape(3, 4)
    content = {"whole": matrix, "row": matrix[1], "transposed": matrix.T, "half": torch.ones(2, dtype=torch.bfloat16)}
    tensors, _ = open_file(saved(tmp_path / "model.bin", content))
    assert {key for key, tensor in tensors.items() if tensor.offset} == {"whole", "row", "half"}
    arrays = {key: tensor.read() for key, tensor in tensors.items()}
    monkeypatch.setattr(torch, "load", None)
    for key, tensor in content.items():
        assert np.array_equal(arrays[key].astype(np.float32), tensor.float().numpy())
        if key != "transposed":
            assert np.array_equal(tensors[key].read(), arrays[key])


def test_reading_one_tensor_of_a_large_file_reads_no_other(tmp_path):
    side, count = 1024, 32  # 4 MB each
    tensors = {f"layers.{i}.weight": torch.full((side, side), float(i)) for i in range(count)}
    path = saved(tmp_path / "model.bin", tensors)
    code = (
        "import sys, resource, numpy as np\nfrom pathlib import Path\n"
        "from lowrank_core.models.files.tensors import open_file\nimport torch\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        f"open_file(Path({str(saved(tmp_path / 'small.bin', {'a': torch.ones(1)}))!r}))[0]['a'].read()\n"
        f"before = peak()\ntensors, _ = open_file(Path({str(path)!r}))\n"
        "for tensor in tensors.values():\n    array = tensor.read()\n"
        "print(peak() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 6 * 4 * side * side


@pytest.mark.parametrize(
    ("name", "record"), [("swapped.bin", "byteorder"), ("x.safetensors", "byteorder"), ("x.bin", "ByteOrder")]
)
def test_the_numbers_of_a_big_endian_archive_are_swapped(tmp_path, name, record):
    path, swapped = saved(tmp_path / "x.pt", {"a": torch.arange(6.0)}), tmp_path / name
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(swapped, "w") as archive:
        for entry in source.infolist():
            is_order = entry.filename.endswith("byteorder")
            written = entry.filename.replace("byteorder", record)
            archive.writestr(written, b"big" if is_order else source.read(entry))
    tensors, _ = open_file(swapped)
    assert np.array_equal(tensors["a"].read(), np.arange(6, dtype=np.float32).byteswap())
