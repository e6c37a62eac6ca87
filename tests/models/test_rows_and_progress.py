"""The columns of tables, the counts of progress, and reports that nothing changes once they are made."""

import dataclasses
import importlib
import pkgutil

import ml_dtypes
import numpy as np
import pytest

import lowrank_core.models
from lowrank_core.models import apply, census, compare, inspect
from lowrank_core.models.inspection.report import to_rows
from lowrank_core.models.operations import applying, compared

SHAPES = {"layers.0.q_proj": (6, 4), "layers.1.q_proj": (10, 4)}


@pytest.fixture
def base(write_file, rng):
    return write_file(
        {f"model.{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()},
        "b.safetensors",
    )


@pytest.fixture
def adapter(write_peft, rng):
    return write_peft(
        {
            f"model.{name}.lora_{side}.weight": rng.standard_normal((2, n) if side == "A" else (m, 2)).astype(
                np.float32
            )
            for name, (m, n) in SHAPES.items()
            for side in "AB"
        }
    )


def test_every_report_and_value_is_frozen():
    modules = [module.name for module in pkgutil.walk_packages(lowrank_core.models.__path__, "lowrank_core.models.")]
    classes = {
        value
        for name in modules
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    assert len(classes) > 40
    assert [kind.__name__ for kind in classes if not kind.__dataclass_params__.frozen] == []


OF_VARIANCE = [f"rank_for_{percent}_percent" for percent in (90, 95, 99)]
OF_EACH = ["name", "rows", "columns", "dtype", "parameters", "adapter_parameters", "rank", "alpha", "scaling"]
OF_SPECTRUM = ["scaling_source", "norm", "effective_rank", "stable_rank", "numerical_rank", *OF_VARIANCE]


def test_the_rows_of_an_inspection_have_what_its_layers_have(adapter):
    report = inspect(adapter, ranks=[1], rules=["standard"])
    rows = to_rows(report)
    assert list(rows[0]) == [*OF_EACH, *OF_SPECTRUM, "best_error_1", "standard_1", "failure"]
    for layer, row in zip(report.layers, rows, strict=True):
        assert (row["rows"], row["columns"]) == SHAPES[layer.name.removeprefix("model.")]
        assert (row["rank"], row["alpha"], row["scaling"]) == (2, 8.0, 4.0)
        assert (row["parameters"], row["adapter_parameters"]) == (np.prod(layer.shape), 2 * sum(layer.shape))
        assert (row["norm"], row["effective_rank"]) == (layer.norm, layer.effective_rank)
        assert row["failure"] is None


def test_the_rows_beside_a_base_have_its_noise(write_file, rng):
    paths = [
        write_file({"q_proj.weight": rng.standard_normal((6, 4)).astype(ml_dtypes.bfloat16)}, name)
        for name in ("tuned.safetensors", "base.safetensors")
    ]
    (row,) = to_rows(inspect(*paths, ranks=[1]))
    assert (row["rounding_applies"], row["unchanged"]) == (True, 0.0)


def test_the_rows_of_a_comparison_name_both_sides(adapter, base):
    rows = compared.to_rows(compare([adapter, adapter]))
    assert [row["name"] for row in rows] == [f"model.{name}" for name in SHAPES]
    for row, shape in zip(rows, SHAPES.values(), strict=True):
        assert row["first"] == row["second"] == str(adapter)
        assert (row["matrix_rows"], row["matrix_columns"]) == shape
        assert row["failure"] is None


def test_the_rows_of_an_application_have_shapes_and_losses(base, adapter, tmp_path):
    rows = applying.to_rows(apply(base, adapter, tmp_path / "merged.safetensors"))
    losses = [field.name for field in dataclasses.fields(applying.RoundingLoss)]
    assert list(rows[0]) == ["name", "rows", "columns", "dtype", "merged_dtype", *losses, "failure"]
    assert [(row["rows"], row["columns"]) for row in rows] == list(SHAPES.values())


def test_progress_counts_to_the_whole(base, adapter, tmp_path):
    counts = []

    def note(name, done, total):
        counts.append((done, total))

    apply(base, adapter, tmp_path / "merged.safetensors", progress=note)
    assert counts == [(1, 2), (2, 2)]
    counts.clear()
    found = tmp_path / "found"
    for number in range(3):
        (found / str(number)).mkdir(parents=True)
        for file in adapter.iterdir():
            (found / str(number) / file.name).write_bytes(file.read_bytes())
    census(found, ranks=[1], jsonl=tmp_path / "c.jsonl", progress=note)
    assert counts == [(1, 3), (2, 3), (3, 3)]
    counts.clear()
    (found / "2" / "adapter_model.safetensors").touch()
    census(found, ranks=[1], jsonl=tmp_path / "c.jsonl", progress=note)
    assert counts == [(3, 3)]
