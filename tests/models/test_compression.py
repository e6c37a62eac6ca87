import dataclasses
import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models.operations.compression import to_rows, totals_of
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.results import to_json
from tests.models.models_on_disk import checkpoint_pair


@pytest.fixture
def report(tmp_path, rng):
    others = [("bad.weight", np.ones((2, 2)), np.full((2, 2), np.nan)), ("n.bias", np.ones(2), np.zeros(2))]
    paths, _ = checkpoint_pair(tmp_path, rng, others=others)
    return extract(*paths, tmp_path / "out", rank=2)


def test_json_is_plain_and_whole(report):
    written = to_json(report)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written.keys() == report.__dataclass_fields__.keys() - {"adapter"}
    assert written["layers"][0].keys() == report.layers[0].__dataclass_fields__.keys()
    assert written["layers"][0]["singular_values"] == report.layers[0].singular_values.tolist()
    assert written["weights"] is None
    assert written["totals"] == vars(report.totals)


def test_rows_have_one_set_of_columns(report):
    rows = to_rows(report)
    assert [row["name"] for row in rows] == [*(layer.name for layer in report.layers), "bad"]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert (rows[0]["rows"], rows[0]["columns"], rows[0]["failure"]) == (*report.layers[0].shape, None)
    assert "NaN" in rows[-1]["failure"]
    assert rows[-1]["rank"] is None


def test_totals_add_up_in_squares(report):
    totals = report.totals
    assert (totals.layers, totals.failures) == (3, 1)
    weights = [layer.norm**2 for layer in report.layers]
    for name in ("error", "best_error", "storage_error"):
        mean = math.sqrt(np.average([getattr(layer, name) ** 2 for layer in report.layers], weights=weights))
        assert getattr(totals, name) == pytest.approx(mean, rel=1e-12)
    captured = np.average([layer.variance_captured for layer in report.layers], weights=weights)
    assert totals.variance_captured == pytest.approx(captured, rel=1e-12)
    partial = [dataclasses.replace(layer, missed=10.0**-i) for i, layer in enumerate(report.layers, 7)]
    assert (totals.missed, totals_of(partial, 0).missed) == (0.0, 1e-7)


def test_totals_of_nothing():
    totals = totals_of((), 2)
    assert (totals.norm, totals.variance_captured, totals.error, totals.failures) == (0.0, 1.0, 0.0, 2)


@pytest.mark.parametrize("size", [1e-180, 1e180])
def test_totals_of_any_size(tmp_path, size):
    save_file({"a.weight": np.zeros((2, 2)), "b.weight": np.zeros((2, 2))}, tmp_path / "base.safetensors")
    tuned = {"a.weight": np.diag([4.0, 3.0]) * size, "b.weight": np.diag([12.0, 0.0]) * size}
    save_file(tuned, tmp_path / "tuned.safetensors")
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    totals = extract(*paths, tmp_path / "out", rank=1, dtype="float64").totals
    assert totals.norm == pytest.approx(13 * size)
    assert totals.error == pytest.approx(3 / 13)
