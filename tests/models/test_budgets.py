"""Budgets over the layers of a checkpoint or an adapter."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from lowrank_core import allocate_ranks, spectrum
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.planning import plan
from lowrank_core.models.operations.rank_choice import Budget, layer_spectra
from lowrank_core.models.operations.resizing import resize
from lowrank_core.models.results import to_json
from tests.models.models_on_disk import checkpoint_pair


def test_ranks_are_those_that_the_spectra_allocate(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng)
    expected = allocate_ranks({name: spectrum(update) for name, update in updates.items()}, parameters=150)
    report = extract(*paths, tmp_path / "out", rank=Budget(parameters=150))
    assert {layer.name: layer.rank for layer in report.layers} == expected.ranks
    assert report.totals.parameters == expected.parameters
    smaller = resize(tmp_path / "out", tmp_path / "small", rank=Budget(variance=0.8, objective="absolute"))
    assert smaller.totals.variance_captured >= 0.8 - 1e-6
    both = merge([tmp_path / "out", tmp_path / "small"], tmp_path / "both", rank=Budget(parameters=100))
    assert both.totals.parameters <= 100


@pytest.mark.parametrize("workers", [1, 3])
def test_an_executor_changes_nothing(tmp_path, rng, workers):
    paths, _ = checkpoint_pair(tmp_path, rng)
    here = plan(paths[1], paths[0], budget=Budget(parameters=150))
    with ThreadPoolExecutor(workers) as executor:
        there = plan(paths[1], paths[0], budget=Budget(parameters=150), executor=executor)
    assert to_json(here) == to_json(there)


def test_a_layer_that_cannot_be_read_fails_alone(tmp_path, rng):
    bad = np.zeros((12, 8), dtype=np.float32)
    worse = bad + np.float32(np.nan)
    paths, updates = checkpoint_pair(tmp_path, rng, others=[("bad.weight", bad, worse)])
    report = extract(*paths, tmp_path / "out", rank=Budget(parameters=150))
    assert set(report.failures) == {"bad"}
    assert {layer.name for layer in report.layers} == set(updates)
    planned = plan(paths[1], paths[0], budget=Budget(parameters=150))
    assert set(planned.failures) == {"bad"}
    assert {layer.name: layer.rank for layer in planned.layers} == {layer.name: layer.rank for layer in report.layers}


def test_the_budget_is_divided_among_the_written_layers_alone(tmp_path, rng):
    paths, updates = checkpoint_pair(tmp_path, rng)
    report = extract(*paths, tmp_path / "out", rank=Budget(parameters=100), include=["q_proj"])
    chosen = {name: spectrum(update) for name, update in updates.items() if "q_proj" in name}
    assert {layer.name: layer.rank for layer in report.layers} == allocate_ranks(chosen, parameters=100).ranks


def test_spectra_are_in_order_and_progress_is_reported():
    calls = []
    matrices = {"b": np.eye(2), "a": np.eye(3), "bad": np.full((2, 2), np.nan)}
    layers = [SimpleNamespace(name=name, update=lambda name=name: matrices[name]) for name in matrices]
    spectra, failures = layer_spectra(layers, progress=lambda *call: calls.append(call))
    assert list(spectra) == ["b", "a"]
    assert list(failures) == ["bad"]
    assert calls == [("b", 1, 3), ("a", 2, 3), ("bad", 3, 3)]


def test_a_module_whose_name_is_the_end_of_another_is_planned_alone(tmp_path, rng):
    shapes = {"proj": (8, 8), "block.proj": (8, 8)}
    paths, _ = checkpoint_pair(tmp_path, rng, shapes=shapes)
    config = plan(paths[1], paths[0], budget=Budget(parameters=48), exclude=["block.proj"]).config
    # A list would reach both, for PEFT takes a name in it for the end of one too.
    assert config["target_modules"] == "proj"


def test_embeddings_are_planned_for_on_request(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, shapes={"q_proj": (8, 8), "embed_tokens": (20, 8)})
    planned = plan(paths[1], paths[0], budget=Budget(parameters=100))
    assert list(planned.skipped) == ["embed_tokens"]
    asked = plan(paths[1], paths[0], budget=Budget(parameters=100), include=["q_proj", "embed_tokens"])
    assert {layer.name for layer in asked.layers} == {"q_proj", "embed_tokens"}


def test_nothing_to_plan(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, size=0.0)
    with pytest.raises(ValueError, match="there is nothing to plan"):
        plan(paths[1], paths[0], budget=Budget(parameters=100))
