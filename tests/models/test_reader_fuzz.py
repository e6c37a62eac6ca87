"""No file crashes a reader: mutants read as safetensors itself reads them, or are refused with a message."""

import json
import tracemalloc
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save

from lowrank_core.cli.app import main
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.safetensors_file import STORED_NAMES
from lowrank_core.models.files.tensors import open_file
from lowrank_core.models.inspection.census import census
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.inspection.report import Inspection

from .mutants import CONFIG, hostile_files, join, kohya_file, lying_values, mutants, peft_file, split, swelling_files

ROUNDS, MUTANTS_A_ROUND = 20, 50  # a thousand in all
REFUSED = r"not a valid \w+ file|is empty|is a pickle"
REFUSALS = (ValueError, FileNotFoundError)
NAMES = {stored: name for name, stored in STORED_NAMES.items()}
DTYPES = {stored: np.dtype(getattr(ml_dtypes, name, name)) for stored, name in NAMES.items()}
NUMPY_AXES = 64
# A file's size class: some hundred kilobytes of Python and NumPy for a file of two, however large it says it is.
PEAK = 4 << 20


def write(folder: Path, content: bytes, *, peft: bool, config: dict = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("adapter_model.safetensors" if peft else "kohya.safetensors")
    file.write_bytes(content)
    if peft:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return file


def as_safetensors_reads(content: bytes) -> dict[str, dict] | None:
    try:
        return dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        return None


def inspect_or_refuse(path: Path) -> Inspection | None:
    try:
        return inspect(path)
    except REFUSALS as error:
        message = str(error)
    assert message.strip()
    return None


@contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK


def norm_of(layer: str, tensors: dict[str, dict], scaling: float) -> float:
    """‖γBA‖ from the bytes that safetensors gives."""

    def factor(*endings: str) -> tuple[np.ndarray, float]:
        key = next(key for key in tensors if key.removeprefix("base_model.model.") in {layer + end for end in endings})
        array = np.frombuffer(tensors[key]["data"], DTYPES[tensors[key]["dtype"]]).astype(np.float64)
        # A flipped exponent makes entries that overflow when multiplied.
        largest = float(np.max(np.abs(array))) or 1.0
        return array.reshape(tensors[key]["shape"][0], -1) / largest, largest

    A, size_of_A = factor(".lora_A.weight", ".lora_A", ".lora_down.weight")
    B, size_of_B = factor(".lora_B.weight", ".lora_B", ".lora_up.weight")
    return float(np.linalg.norm(B @ A)) * size_of_A * size_of_B * scaling


def check_tensors(file: Path, expected: dict[str, dict]) -> None:
    tensors, _ = open_file(file)
    assert {key: (list(tensor.shape), tensor.dtype) for key, tensor in tensors.items()} == {
        key: (held["shape"], NAMES.get(held["dtype"], held["dtype"])) for key, held in expected.items()
    }
    for key, tensor in tensors.items():
        if tensor.is_readable and len(tensor.shape) <= NUMPY_AXES:
            assert tensor.read().tobytes() == bytes(expected[key]["data"])


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_mutated_adapter_reads_as_safetensors_reads_it_or_is_refused(round_, tmp_path):
    peft = round_ % 2 == 0
    original = peft_file() if peft else kohya_file()
    inspect(write(tmp_path, original, peft=peft))  # what a first call imports and keeps is not the file's
    read = 0
    for content in mutants(original, round_, MUTANTS_A_ROUND):
        file = write(tmp_path, content, peft=peft)
        with little_memory():
            report = inspect_or_refuse(file)
        expected = as_safetensors_reads(content)
        if expected is None or names_an_entry_twice(content):
            assert report is None
            with pytest.raises(ValueError, match=REFUSED):
                open_file(file)
            continue
        check_tensors(file, expected)
        for layer in () if report is None else report.layers:
            read += 1
            assert layer.norm == pytest.approx(norm_of(layer.name, expected, layer.scaling), rel=1e-9)
    assert read > 0


@pytest.mark.parametrize(("content", "config"), [pytest.param(*rest, id=name) for name, *rest in swelling_files()])
def test_a_small_file_takes_little_memory_whatever_it_says(content, config, tmp_path):
    inspect(write(tmp_path / "sound", peft_file(), peft=True))
    file = write(tmp_path, content, peft=True, config=config)
    with little_memory():
        inspect_or_refuse(file)


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in hostile_files()])
def test_a_hostile_file_is_refused_by_every_reader(content, tmp_path):
    inspect(write(tmp_path / "sound", peft_file(), peft=True))
    peft, kohya = (write(tmp_path / str(peft), content, peft=peft) for peft in (True, False))
    refusals = (ValueError,)
    if find_spec("torch"):
        import_module("torch")  # Its own memory is none of the file's.
    else:
        refusals = (ValueError, ImportError)  # of a pickle, which torch alone could read
    readers = [(inspect, peft), (inspect, kohya), (open_checkpoint, kohya)]
    for reader, file in readers:
        with little_memory(), pytest.raises(refusals, match=REFUSED) as refused:
            reader(file)
        assert str(file) in str(refused.value)


@pytest.mark.parametrize("shape", [[2, 2], [4, 1]])
def test_a_header_that_names_a_tensor_twice_is_refused(shape, tmp_path):
    # Both are of the same bytes, so that safetensors itself reads the file, and takes the last.
    header, data = split(save({"a": np.eye(2), "b": np.ones((2, 2))}))
    other = json.dumps(header["a"] | {"shape": shape})
    file = write(tmp_path, join(f'{json.dumps(header)[:-1]}, "a": {other}}}', data), peft=False)
    with pytest.raises(ValueError, match="names 'a' twice"):
        open_file(file)


def names_an_entry_twice(content: bytes) -> bool:
    twice = []
    length = int.from_bytes(content[:8], "little")
    json.loads(content[8 : 8 + length], object_pairs_hook=lambda pairs: twice.append(len(dict(pairs)) < len(pairs)))
    return any(twice)


def test_every_mutant_has_a_row_in_a_census_or_no_factors(tmp_path):
    for peft, original in ((True, peft_file()), (False, kohya_file())):
        for place, content in enumerate(mutants(original, 100, MUTANTS_A_ROUND)):
            write(tmp_path / ("peft" if peft else "kohya") / f"{place:02}", content, peft=peft)
    rows = census(tmp_path)
    assert sum(Path(row.path).parent.name == "peft" for row in rows) == MUTANTS_A_ROUND
    assert all(row.layers or row.failure for row in rows)
    assert main(["inspect", str(tmp_path), "--recursive", "--jsonl", str(tmp_path / "c.jsonl")]) == 1


@pytest.mark.parametrize("peft", [True, False])
def test_the_command_line_says_one_line_and_no_traceback(peft, tmp_path, capsys):
    codes = set()
    for content in mutants(peft_file() if peft else kohya_file(), 200, MUTANTS_A_ROUND):
        code = main(["inspect", str(write(tmp_path, content, peft=peft))])
        captured = capsys.readouterr()
        codes.add(code)
        assert (captured.out == "") == (code == 2)
        assert captured.err.count("\n") == (1 if code == 2 else 0)
        assert "Traceback" not in captured.err
    # A kohya file without magnitudes is all layers; PEFT's has more, which is named.
    assert {1 if peft else 0, 2} <= codes <= {0, 1, 2}


@pytest.mark.parametrize("key", [*CONFIG, "use_qalora", "arrow_config", "alora_invocation_tokens"])
def test_a_configuration_that_lies_is_read_or_refused(key, tmp_path):
    for value in lying_values():
        inspect_or_refuse(write(tmp_path, peft_file(), peft=True, config=CONFIG | {key: value}))


def test_a_mutated_configuration_is_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    text = json.dumps(CONFIG).encode()
    write(tmp_path, peft_file(), peft=True)
    for _ in range(200):
        changed = bytearray(text)
        for place in rng.integers(0, len(text), size=rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        (tmp_path / "adapter_config.json").write_bytes(changed[: rng.integers(len(text) // 2, 2 * len(text))])
        inspect_or_refuse(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        *("../weights.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "C:b.safetensors", "..", ""),
        *("\0", "\ud800", "x" * 5000, None, 5, [], {}, ["weights.safetensors"]),
    ],
)
def test_an_index_that_names_no_plain_file_beside_it_is_refused(shard, tmp_path):
    inner = tmp_path / "model"
    inner.mkdir()
    for folder in (tmp_path, inner):
        (folder / "weights.safetensors").write_bytes(save({"a": np.eye(2)}))
    index = inner / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(REFUSALS, match=r"shard|names"):
        open_checkpoint(index)


def test_an_index_whose_shard_is_missing_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"'model-00001-of-00002.safetensors', which is not beside it"):
        open_checkpoint(tmp_path)
