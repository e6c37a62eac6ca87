"""Budgets over the layers of a checkpoint or an adapter."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

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


def test_a_plan_has_the_warnings_of_its_adapter(write_peft):
    tensors = {"q.lora_A.weight": np.ones((2, 5), np.float32), "q.lora_B.weight": np.ones((8, 2), np.float32)}
    (warning,) = plan(write_peft(tensors, init_lora_weights="pissa"), parameters=20).warnings
    assert "pissa" in warning


def test_nothing_to_plan(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, size=0.0)
    with pytest.raises(ValueError, match=r"^there is nothing to plan"):
        plan(paths[1], paths[0], budget=Budget(parameters=100))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("out", ["adapter", "kohya.safetensors"])
def test_a_file_within_megabytes_is_no_larger_and_one_more_rank_would_be(tmp_path, rng, dtype, out):
    paths, _ = checkpoint_pair(tmp_path, rng)

    def size_of(folder, rank):
        (tmp_path / folder).mkdir()
        report = extract(*paths, tmp_path / folder / out, rank=rank, dtype=dtype)
        file = tmp_path / folder / out
        return report, (file / "adapter_model.safetensors" if file.is_dir() else file).stat().st_size

    _, full = size_of("full", 8)
    report, size = size_of("within", Budget(megabytes=(full - 300) / 1e6))
    assert size <= full - 300
    cheapest = min(sum(layer.shape) for layer in report.layers) * (4 if dtype == "float32" else 2)
    # Eight bytes are set aside for the alpha of each of nine keys at most.
    assert size + cheapest + 8 * 9 > full - 300
    smaller = resize(tmp_path / "within" / out, tmp_path / f"small-{out}", rank=Budget(megabytes=(full - 600) / 1e6))
    assert 0 < smaller.totals.parameters < report.totals.parameters


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(megabytes=1e-3), "too small for any rank: what the file has beside factors takes up to"),
        (Budget(megabytes=-1.0), "positive number of megabytes"),
        (Budget(megabytes=1.0, parameters=3), "one of parameters, variance and a positive number of megabytes"),
    ],
)
def test_megabytes_that_no_file_can_have_are_refused(tmp_path, rng, budget, message):
    paths, _ = checkpoint_pair(tmp_path, rng)
    with pytest.raises(ValueError, match=message):
        extract(*paths, tmp_path / "out", rank=budget)


def test_the_objective_base_weighs_energies_by_those_of_the_weights(tmp_path, rng):
    large, change = (rng.standard_normal((14, 8)).astype(np.float32) for _ in range(2))
    paths, updates = checkpoint_pair(tmp_path, rng, others=[("large.weight", 100 * large, 100 * large + change)])
    weights, tuned = map(load_file, paths)
    updates |= {"large": tuned["large.weight"].astype(np.float64) - weights["large.weight"]}
    spectra = {
        name: spectrum(update / np.linalg.norm(weights[f"{name}.weight"].astype(np.float64)))
        for name, update in updates.items()
    }
    expected = allocate_ranks(spectra, parameters=150, objective="absolute").ranks
    budget = Budget(parameters=150, objective="base")
    report = extract(*paths, tmp_path / "out", rank=budget)
    assert {layer.name: layer.rank for layer in report.layers} == expected
    planned = plan(paths[1], paths[0], budget=budget)
    assert {layer.name: layer.rank for layer in planned.layers} == expected
    absolute = allocate_ranks(
        {name: spectrum(update) for name, update in updates.items()}, parameters=150, objective="absolute"
    )
    assert expected != absolute.ranks
    for layer in planned.layers:
        assert layer.norm == pytest.approx(np.linalg.norm(updates[layer.name]), rel=1e-6)
    with pytest.raises(ValueError, match=r"^the objective 'base' needs .* a layer of an adapter"):
        resize(tmp_path / "out", tmp_path / "small", rank=budget)


def test_the_objective_base_plans_an_adapter_beside_the_weights_of_its_base(tmp_path, rng):
    (base, tuned), _ = checkpoint_pair(tmp_path, rng)
    extract(base, tuned, tmp_path / "adapter", variance=1 - 1e-12)
    budget = Budget(parameters=150, objective="base")
    with pytest.raises(ValueError, match=r"^the objective 'base' needs .* give the base"):
        plan(tmp_path / "adapter", budget=budget)
    ranks = [
        {layer.name: layer.rank for layer in plan(path, base, budget=budget).layers}
        for path in (tmp_path / "adapter", tuned)
    ]
    assert ranks[0] == ranks[1]


def test_the_objective_base_names_a_weight_of_zeros(tmp_path, rng):
    zeros = np.zeros((6, 5), dtype=np.float32)
    paths, _ = checkpoint_pair(tmp_path, rng, others=[("new.weight", zeros, zeros + 1)])
    with pytest.raises(ValueError, match="'new': its weight in the base is zero"):
        extract(*paths, tmp_path / "out", rank=Budget(parameters=150, objective="base"))


def test_all_of_the_variance_takes_a_uniform_rank_that_is_full():
    base = {"q.weight": np.zeros((5, 4))}
    planned = plan({"q.weight": np.eye(5, 4)}, base, variance=1.0)
    assert (planned.same_variance.rank, planned.same_variance.variance) == (4, 1.0)
