"""Weights and adapters in memory: every report is that of the same arrays in files, but for what it calls them."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.models import (
    apply,
    compare,
    convert,
    extract,
    history,
    inspect,
    local_processes,
    merge,
    open_adapter,
    open_checkpoint,
    plan,
    resize,
    to_json,
    verify,
)
from tests.models.models_on_disk import checkpoint_pair

# What a report calls its sources and its output, and whether it was written.
NAMES = {"path", "paths", "base", "sources", "adapter", "merged", "out", "written", "first", "second"}


def figures(report):
    """A report as JSON, without what its sources and its output are called; NaN, which is not itself, as None."""
    if isinstance(report, float) and math.isnan(report):
        return None
    if isinstance(report, dict):
        return {name: figures(value) for name, value in report.items() if name not in NAMES}
    return [figures(item) for item in report] if isinstance(report, list) else report


def without_model(report):
    """The figures of a written adapter without the name of the base model in its configuration."""
    content = figures(to_json(report))
    config = {name: value for name, value in content["config"].items() if name != "base_model_name_or_path"}
    return {**content, "config": config}


@pytest.fixture(params=["float32", "float16", "bfloat16", "float8_e4m3fn"])
def pair(request, tmp_path, rng):
    """Paths of two checkpoints, and the same as mappings."""
    dtype = np.dtype(getattr(ml_dtypes, request.param, request.param))
    others = [
        ("norm.weight", np.ones(8, dtype), np.full(8, 1.5, dtype)),
        ("steps", np.array(3), np.array(4)),
        ("embed_tokens.weight", np.ones((6, 4), dtype), np.full((6, 4), 2, dtype)),
    ]
    size = 2.0 if request.param == "float8_e4m3fn" else 0.05
    shapes = {"0.q_proj": (12, 8), "0.conv": (6, 4, 3, 3), "1.q_proj": (12, 8)}
    paths, _ = checkpoint_pair(tmp_path, rng, shapes=shapes, dtype=dtype, size=size, others=others)
    return paths, tuple(read(path) for path in paths)


def read(path):
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def test_an_inspection_is_that_of_the_files(pair):
    (base, tuned), (before, after) = pair
    expected = inspect(tuned, base, intruders=4)
    report = inspect(after, before, intruders=4)
    assert figures(to_json(report)) == figures(to_json(expected))
    assert (report.path, report.base) == ("state_dict", "state_dict (2)")
    opened = inspect(open_checkpoint(after), open_checkpoint(base), intruders=4)
    assert figures(to_json(opened)) == figures(to_json(expected))


def test_an_extracted_adapter_is_that_of_the_files(tmp_path, pair):
    (base, tuned), (before, after) = pair
    for format_name, out in (("peft", "adapter"), ("kohya", "adapter.safetensors")):
        expected = extract(base, tuned, tmp_path / out, rank=3)
        report = extract(before, after, rank=3, format=format_name)
        file = tmp_path / out / "adapter_model.safetensors" if format_name == "peft" else tmp_path / out
        state, written = report.adapter.state_dict(), load_file(file)
        assert list(state) == sorted(written)
        assert all(np.array_equal(state[name], written[name]) for name in written)
        assert all(state[name].dtype == written[name].dtype for name in written)
        assert figures(to_json(report) | {"config": None}) == figures(to_json(expected) | {"config": None})
        assert not report.written
        assert open_adapter(tmp_path / out).state_dict().keys() == state.keys()
    assert without_model(extract(before, after, rank=3)) == without_model(extract(base, tuned, tmp_path / "n", rank=3))


def test_what_is_given_is_not_modified(pair):
    _, (before, after) = pair
    copies = [{name: array.copy() for name, array in state.items()} for state in (before, after)]
    for state in (before, after):
        for array in state.values():
            array.flags.writeable = False
    extract(before, after, variance=0.9)
    inspect(after, before, intruders=2)
    for state, copied in zip((before, after), copies, strict=True):
        assert all(np.array_equal(state[name], copied[name]) for name in copied)


@pytest.fixture
def adapters(tmp_path, rng):
    """Two adapters in memory, with the paths of the same in files, and the checkpoints they are of."""
    (base, tuned), _ = checkpoint_pair(tmp_path, rng)
    before, after = load_file(base), load_file(tuned)
    halfway = {name: (before[name] + after[name]) / 2 for name in after}
    save_file(halfway, tmp_path / "half.safetensors")
    in_files, in_memory = [], []
    for step, (path, state) in enumerate(((tmp_path / "half.safetensors", halfway), (tuned, after)), 1):
        extract(base, path, tmp_path / f"run-{step}", rank=4)
        in_files.append(tmp_path / f"run-{step}")
        in_memory.append(extract(before, state, rank=4).adapter)
    return in_files, in_memory, (base, before)


def test_operations_on_adapters_are_those_on_the_files(tmp_path, adapters):
    in_files, in_memory, (base, before) = adapters
    calls = {
        "inspect": lambda paths, model: inspect(paths[0], model),
        "inspect alone": lambda paths, _: inspect(paths[0]),
        "compare": lambda paths, _: compare(paths, rank=3),
        "history": lambda paths, _: history(paths),
        "plan": lambda paths, _: plan(paths[1], parameters=100),
        "resize": lambda paths, _: resize(paths[1], dtype="bfloat16", rank=2),
        "convert": lambda paths, _: convert(paths[1], format="kohya"),
        "merge": lambda paths, _: merge(paths, weights=[1.0, -0.5]),
        "extract": lambda paths, model: extract(model, paths[1], rank=2, format="peft"),
    }
    for name, call in calls.items():
        expected, report = call(in_files, base), call(in_memory, before)
        if getattr(report, "config", None):
            assert without_model(report)["config"].keys() == without_model(expected)["config"].keys(), name
            assert figures(to_json(report) | {"config": None}) == figures(to_json(expected) | {"config": None}), name
        else:
            assert figures(to_json(report)) == figures(to_json(expected)), name


def test_a_merged_model_is_verified_in_memory(tmp_path, adapters):
    in_files, in_memory, (base, before) = adapters
    applied = apply(before, in_memory[0], tmp_path / "merged")
    assert applied.written
    apply(base, in_files[0], tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    expected = load_file(tmp_path / "merged.safetensors")
    assert all(np.array_equal(merged[name], expected[name]) for name in expected)
    report = verify(before, in_memory[0], merged)
    assert report.right
    assert figures(to_json(report)) == figures(to_json(verify(base, in_files[0], tmp_path / "merged.safetensors")))


def test_several_ranks_and_uniform_ones_are_padded_in_memory(tmp_path, rng):
    (base, tuned), _ = checkpoint_pair(tmp_path, rng)
    before, after = load_file(base), load_file(tuned)
    reports = extract(before, after, rank=[2, 4])
    for report, expected in zip(reports, extract(base, tuned, tmp_path / "out", rank=[2, 4]), strict=True):
        state, written = report.adapter.state_dict(), open_adapter(expected.out).state_dict()
        assert all(np.array_equal(state[name], written[name]) for name in written)
    state = extract(before, after, variance=0.5, uniform=True).adapter.state_dict()
    extract(base, tuned, tmp_path / "uniform", variance=0.5, uniform=True)
    written = load_file(tmp_path / "uniform" / "adapter_model.safetensors")
    assert all(np.array_equal(state[name], written[name]) for name in written)
    assert len({min(array.shape) for array in state.values()}) == 1


def test_nothing_in_the_current_folder_is_taken_for_part_of_what_is_in_memory(tmp_path, adapters, monkeypatch):
    _, (adapter, _), (_, before) = adapters
    folder = tmp_path / "elsewhere"
    (folder / "inner").mkdir(parents=True)
    for name in ("config.json", "adapter_config.json", "inner/adapter_config.json"):
        (folder / name).write_text('{"model_type": "gpt2", "peft_type": "nonsense"}')
    expected = to_json(inspect(adapter, before))
    monkeypatch.chdir(folder)
    assert to_json(inspect(adapter, before)) == expected
    apply(before, adapter, folder / "merged")
    assert [path.name for path in (folder / "merged").iterdir()] == ["model.safetensors"]


def test_tied_weights_are_one(rng):
    shared = rng.standard_normal((8, 4))
    opened = open_checkpoint({"wte.weight": shared, "lm_head.weight": shared, "other.weight": shared.copy()})
    assert set(opened.tensors) == {"other.weight", "wte.weight"}


def test_processes_have_the_arrays(tmp_path, rng):
    (base, tuned), _ = checkpoint_pair(tmp_path, rng)
    before, after = load_file(base), load_file(tuned)
    with local_processes(1) as executor:
        report = inspect(after, before, executor=executor)
    assert to_json(report) == to_json(inspect(after, before))
    tensor = open_checkpoint(before).tensors["layers.0.up.weight"]
    assert np.array_equal(pickle.loads(pickle.dumps(tensor)).read(), before["layers.0.up.weight"])


PEFT_STATE = {
    "base_model.model.proj.lora_A.weight": np.ones((2, 6), np.float32),
    "base_model.model.proj.lora_B.weight": np.ones((4, 2), np.float32),
}


def test_an_adapter_of_peft_needs_its_configuration():
    with pytest.raises(ValueError, match=r"the scale of the update is unknown.*Give the model of PEFT's itself, or"):
        inspect(PEFT_STATE)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": {"proj"}}
    adapter = open_adapter(PEFT_STATE, config=config)
    assert adapter.layers[0].scaling == 4.0
    assert inspect(adapter).layers[0].scaling == 4.0
    scaled = {"lora_unet_proj.lora_down.weight": np.ones((2, 6)), "lora_unet_proj.lora_up.weight": np.ones((4, 2))}
    assert inspect(scaled | {"lora_unet_proj.alpha": np.array(8.0)}).layers[0].scaling == 4.0


REFUSED = [
    ({"a.weight": [1.0, 2.0]}, "'a.weight' is of type list, where an array or a tensor is needed"),
    ({"state_dict": {"a.weight": np.ones((2, 2))}}, r"give that mapping itself, state_dict\['state_dict'\]"),
    ({3: np.ones((2, 2))}, "names are texts"),
    ({}, "state_dict has no weights"),
    ({"a.weight": np.ma.masked_array(np.ones((2, 2)))}, r"masked array.*\.filled"),
    (np.ones((2, 2)), "ndarray is neither a path nor weights in memory"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED)
def test_what_is_neither_a_path_nor_weights_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        open_checkpoint(source)


def test_a_component_and_a_configuration_belong_to_files_and_to_memory():
    with pytest.raises(ValueError, match="give the component itself"):
        open_checkpoint({"a.weight": np.ones((2, 2))}, component="unet")
    with pytest.raises(ValueError, match=r"^a config is for an adapter in memory"):
        open_adapter("adapter", config={})
