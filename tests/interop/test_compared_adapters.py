"""Adapters that PEFT trained from two seeds and on two tasks are compared as their dense updates are."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from lowrank_core.models import compare
from tests import oracles
from tests.interop.models import Transformer, lora_layers, train

LINEAR = ["q_proj", "v_proj", "up", "down"]
RUNS = {"first": (0, 1), "seed": (1, 1), "task": (0, 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of adapters of one base by seed of the factors and task, and their dense updates by layer."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    base = Transformer()
    save_file(base.state_dict(), folder / "base.safetensors")
    updates = {}
    for name, (seed, task) in RUNS.items():
        torch.manual_seed(seed)
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR))
        train(model, task=task).save_pretrained(folder / name)
        # Of the factors in float64: PEFT's own product is rounded to float32.
        updates[name] = {
            layer: module.scaling["default"]
            * (module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()).detach().numpy()
            for layer, module in lora_layers(model).items()
        }
    return folder, updates


def test_they_are_compared_as_the_dense_updates_are(runs):
    folder, updates = runs
    report = compare([folder / name for name in RUNS])
    assert report.complete
    assert [(pair.first, pair.second) for pair in report.pairs] == [
        (str(folder / one), str(folder / other))
        for one, other in (("first", "seed"), ("first", "task"), ("seed", "task"))
    ]
    for pair, (one, other) in zip(report.pairs, (("first", "seed"), ("first", "task"), ("seed", "task")), strict=True):
        first, second = updates[one], updates[other]
        assert [layer.name for layer in pair.layers] == sorted(first)
        for layer in pair.layers:
            exact = oracles.comparison(first[layer.name], second[layer.name])
            assert abs(layer.cosine - exact["cosine"]) <= 1e-10
            assert abs(layer.sum_norm - exact["sum_norm"]) <= 1e-10 * exact["sum_norm"]
            for space, side in ((layer.columns, "columns"), (layer.rows, "rows")):
                for name in ("angles", "overlap", "first_captured", "second_captured"):
                    assert np.allclose(getattr(space, name), exact[side][name], rtol=0, atol=1e-10), name
        whole = [np.concatenate([update.ravel() for _, update in sorted(each.items())]) for each in (first, second)]
        norms = [np.linalg.norm(each) for each in whole]
        assert abs(pair.totals.cosine - whole[0] @ whole[1] / (norms[0] * norms[1])) <= 1e-10
        assert abs(pair.totals.sum_norm - np.linalg.norm(whole[0] + whole[1])) <= 1e-10 * norms[0]
        assert pair.totals.first_norm == pytest.approx(norms[0], rel=1e-12)


def test_one_start_shares_the_row_space_whatever_the_task(runs):
    folder, _ = runs
    report = compare([folder / name for name in RUNS])
    _, tasks, both = report.pairs
    # In so few steps A moves little; of two seeds it is independent.
    for shared, independent in zip(tasks.layers, both.layers, strict=True):
        assert shared.rows.overlap[-1, -1] > max(0.5, 1.5 * independent.rows.overlap[-1, -1]), shared.name
    assert np.array(report.cosines).shape == (3, 3)
    # One task leads the same way from one start more than from two, and more than two tasks do.
    assert report.cosines[0][1] > report.cosines[1][2]


def test_a_merged_model_is_compared_with_its_adapter(runs):
    folder, _ = runs
    torch.manual_seed(0)
    base = Transformer()
    from peft import PeftModel

    merged = PeftModel.from_pretrained(copy.deepcopy(base), folder / "first").merge_and_unload()
    save_file(merged.state_dict(), folder / "merged.safetensors")
    report = compare([folder / "merged.safetensors", folder / "first"], folder / "base.safetensors", rank=4)
    (pair,) = report.pairs
    assert not pair.only_in_second
    assert "head" in pair.only_in_first
    for layer in pair.layers:
        # A merged weight is rounded to float32.
        assert layer.cosine == pytest.approx(1.0, abs=1e-4)
        assert layer.columns.angles.max() < 1e-2
