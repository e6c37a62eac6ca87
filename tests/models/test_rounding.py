"""Rounding noise of whole checkpoints: reported by layer, and used to choose ranks."""

import json
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core import spectrum, update_with_spectrum
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.inspection.report import to_rows
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.rank_choice import AboveNoise
from lowrank_core.models.results import to_json
from lowrank_core.rounding_noise import rounding_noise

BFLOAT16 = ml_dtypes.bfloat16
# Sizes of an update of rank 3: many steps of the stored weights, about one, far under one, and none.
SIZES = {"large": 30.0, "step": 0.5, "small": 0.03, "none": 0.0}


@pytest.fixture
def pair(tmp_path):
    """Two bfloat16 checkpoints, of which each layer changed by a rank of 3 and a size of its own."""
    rng = np.random.default_rng(0)
    base, tuned = {}, {}
    for name, size in SIZES.items():
        weight = rng.standard_normal((96, 72)).astype(BFLOAT16)
        update = size * update_with_spectrum([1.0, 0.8, 0.6], (96, 72), rng=rng)
        base[f"{name}.proj.weight"] = weight
        tuned[f"{name}.proj.weight"] = (weight.astype(np.float64) + update).astype(BFLOAT16)
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def by_layer(layers):
    return {layer.name.partition(".")[0]: layer for layer in layers}


def test_inspect_reports_what_is_rounding(pair):
    report = inspect(pair[1], pair[0])
    rounding = {name: layer.rounding for name, layer in by_layer(report.layers).items()}
    assert [rounding[name].rank_above[0] for name in SIZES] == [3, 3, 0, 0]
    assert [rounding[name].noise.applies for name in SIZES] == [True, True, False, True]
    assert rounding["none"].noise.unchanged == 1.0
    assert rounding["large"].variance_below[0] < 0.001
    assert 0.01 < rounding["step"].variance_below[0] < 0.1
    before, after = (load_file(path)["step.proj.weight"] for path in pair)
    noise = rounding_noise(before, after)
    assert rounding["step"].noise == noise
    update = spectrum(after.astype(np.float32) - before.astype(np.float32))
    assert rounding["step"].rank_above == (noise.one_side.rank(update), noise.two_sides.rank(update))


def test_each_weight_is_read_once(pair, monkeypatch):
    from lowrank_core.models.files import tensors as files

    reads = []
    read = files.read_tensors
    monkeypatch.setattr(files, "read_tensors", lambda tensors: reads.extend(tensors) or read(tensors))
    inspect(pair[1], pair[0])
    assert len(reads) == len(set(reads)) == 2 * len(SIZES)


def test_json_and_rows_hold_the_same_figures(pair):
    report = inspect(pair[1], pair[0])
    described = json.loads(json.dumps(to_json(report), allow_nan=False))
    for layer, row in zip(described["layers"], to_rows(report), strict=True):
        assert layer["rounding"].items() <= row.items()
        assert row["rounding_edge_one_side"] > row["rounding_noise_one_side"]


def test_float32_weights_have_no_rounding_to_report(tmp_path, rng):
    for name in ("base", "tuned"):
        save_file({"proj.weight": rng.standard_normal((6, 5)).astype(np.float32)}, tmp_path / f"{name}.safetensors")
    report = inspect(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors")
    assert report.layers[0].rounding is None
    assert to_json(report)["layers"][0]["rounding"] is None
    assert "unchanged" not in to_rows(report)[0]


@pytest.mark.parametrize("workers", [None, 2])
def test_extract_above_noise_keeps_the_update_and_warns_where_the_model_does_not_apply(pair, tmp_path, workers):
    executor = ThreadPoolExecutor(workers) if workers else None
    report = extract(*pair, tmp_path / "out", rank=AboveNoise(), executor=executor)
    assert {name: layer.rank for name, layer in by_layer(report.layers).items()} == {"large": 3, "step": 3, "small": 0}
    assert report.unchanged == ("none.proj",)
    assert any("cannot be told apart in 1 of 4 layers" in warning for warning in report.warnings)
    assert any("'small.proj'" in warning for warning in report.warnings)


def test_above_noise_clamps_to_the_largest_rank_and_counts_one_side_or_two(pair, tmp_path):
    report = extract(*pair, tmp_path / "out", rank=AboveNoise(sides=2, max_rank=2), dry_run=True)
    assert by_layer(report.layers)["large"].rank == 2
    with pytest.raises(ValueError, match=r"^one side was rounded, the tuned one, or two"):
        AboveNoise(sides=3)
