"""Histories of runs: steps in their order, growth, spikes and angles by construction."""

import json

import numpy as np
import pytest

from lowrank_core.models import history, to_json


def factors(B, A, name="layers.0.q_proj"):
    return {f"{name}.lora_A.weight": A.astype(np.float32), f"{name}.lora_B.weight": B.astype(np.float32)}


@pytest.fixture
def run(write_peft):
    """A run whose update doubles, keeps its inputs, and whose one output direction turns by 30 degrees each time."""
    paths = []
    for nth, step in enumerate((50, 100, 1000)):
        angle = np.radians(30.0 * nth)
        B = 2.0**nth * np.outer(np.r_[np.cos(angle), np.sin(angle), np.zeros(6)], [1.0, 0.0])
        paths.append(write_peft(factors(B, np.eye(2, 5)), f"run/checkpoint-{step}"))
    return paths


def test_growth_and_angles_are_those_by_construction(run):
    report = history(run, leading=1)
    assert report.steps == (50, 100, 1000)
    assert report.complete
    assert [row.norm for row in report.rows] == pytest.approx([4.0, 8.0, 16.0], rel=1e-6)
    assert [row.leading_variance for row in report.rows] == pytest.approx([1.0] * 3)
    assert [row.effective_rank for row in report.rows] == pytest.approx([1.0] * 3, abs=1e-5)
    assert np.isnan(report.rows[0].column_angle)
    assert [row.column_angle for row in report.rows[1:]] == pytest.approx([30.0, 30.0], abs=1e-4)
    assert [row.row_angle for row in report.rows[1:]] == pytest.approx([0.0, 0.0], abs=1e-4)


def test_json_has_none_for_the_angles_of_the_first_step(run):
    rows = to_json(history(run))["rows"]
    assert (rows[0]["column_angle"], rows[0]["row_angle"]) == (None, None)
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_json_has_none_for_numbers_that_it_does_not_have(number):
    values = {"a": number, "b": [number, 1.0], "c": np.array([[number, 2.0]]), "d": {0.9: number}}
    assert to_json(values) == {"a": None, "b": [None, 1.0], "c": [[None, 2.0]], "d": {"0.9": None}}


def test_a_folder_is_its_checkpoints_by_their_numbers(run):
    assert history([run[0].parent]).paths == tuple(map(str, run))
    assert history(run[::-1]).paths == tuple(map(str, run))


def test_a_layer_that_is_not_in_all_is_named(run, write_peft):
    more = factors(np.ones((8, 2)), np.ones((2, 5))) | factors(np.ones((8, 2)), np.ones((2, 5)), "layers.1.q_proj")
    report = history([run[0], write_peft(more, "run/checkpoint-2000")])
    assert report.failures == {"layers.1.q_proj": "is not in all checkpoints"}
    assert not report.complete


def test_what_is_in_no_row_and_the_warnings_of_each_checkpoint_are_named(write_peft):
    tensors = factors(np.ones((8, 2)), np.ones((2, 5))) | {"lm_head.weight": np.ones((3, 5), np.float32)}
    config = {"modules_to_save": ["lm_head"], "init_lora_weights": "pissa"}
    run = [write_peft(tensors, f"run/checkpoint-{step}", **config) for step in (1, 2)]
    report = history(run)
    assert list(report.not_low_rank) == [f"lm_head.weight ({path})" for path in run]
    assert [warning.partition(": ")[0] for warning in report.warnings] == [str(path) for path in run]
    assert all("pissa" in warning for warning in report.warnings)
    assert (report.failures, report.complete) == ({}, False)


def test_vectors_beside_a_base_are_not_missing_from_the_rows(write_file, rng):
    tensors = {"q.weight": rng.standard_normal((6, 4)), "norm.weight": np.ones(4)}
    base = write_file(tensors, "base.safetensors")
    run = [write_file({k: v + step for k, v in tensors.items()}, f"run-{step}.safetensors") for step in (1, 2)]
    report = history(run, base)
    assert (len(report.not_low_rank), report.complete) == (2, True)


def test_what_is_no_history_is_refused(run, write_peft):
    other = write_peft(factors(np.ones((8, 2)), np.ones((2, 5)), "mlp.up"), "other-7")
    for paths, message in (
        ([run[0]], "0 folders named checkpoint-N"),
        ([run[0], run[0]], "same step"),
        ([run[0], other], "no layer is in all 2"),
    ):
        with pytest.raises(ValueError, match=message):
            history(paths)


@pytest.mark.parametrize(("size", "fraction"), [(1e-3, 1.0), (0.0, 0.0)])
def test_the_leading_part_of_a_small_update_is_its_fraction(write_peft, size, fraction):
    one = size * np.outer(np.ones(8), [1.0, 0.0])
    paths = [write_peft(factors(one, np.eye(2, 5)), f"small/checkpoint-{step}") for step in (1, 2)]
    assert [row.leading_variance for row in history(paths).rows] == pytest.approx([fraction] * 2)
