"""Ranks that were planned, in models that PEFT builds; and the rules that other tools choose ranks by."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import conversion
from safetensors.torch import save_file

from lowrank_core import Spectrum, rank_for_ratio, rank_for_variance, spectrum, variance_captured
from lowrank_core.cli.app import main
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.planning import plan
from lowrank_core.models.operations.rank_choice import Budget
from tests.interop.models import Transformer, lora_layers, train


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory):
    """A base that was trained fully, both as checkpoints."""
    folder = tmp_path_factory.mktemp("fine-tune")
    torch.manual_seed(0)
    base = Transformer()
    tuned = train(copy.deepcopy(base))
    for name, model in (("base", base), ("tuned", tuned)):
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return base, folder / "base.safetensors", folder / "tuned.safetensors"


@pytest.mark.parametrize("rule", ["standard", "rslora"])
@pytest.mark.parametrize("asked", [("--parameters", "4000"), ("--variance", "0.8"), ("--parameters", "500")])
def test_peft_builds_the_ranks_and_scales_that_were_planned(fine_tune, tmp_path, rule, asked):
    base, before, after = fine_tune
    written, report = tmp_path / "plan.json", tmp_path / "report.json"
    options = [*asked, "--rule", rule, "--scale", "1.5", "--out", str(written), "--json", str(report)]
    # The embedding was trained too, and no rank is planned for it.
    assert main(["plan", str(before), str(after), *options]) == 1
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**json.loads(written.read_text())))
    built = lora_layers(model)
    planned = {layer["name"]: layer for layer in json.loads(report.read_text())["layers"] if layer["rank"]}
    assert set(built) == set(planned)
    for name, module in built.items():
        assert module.r["default"] == planned[name]["rank"]
        assert module.scaling["default"] == pytest.approx(1.5, rel=1e-12)
        assert module.lora_A["default"].weight.shape[0] == planned[name]["rank"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == json.loads(report.read_text())["parameters"]
    train(model, steps=5)


@pytest.mark.parametrize("parameters", [1500, 3000, 6000, 12000])
@pytest.mark.parametrize("objective", ["relative", "absolute"])
def test_a_budget_keeps_no_less_than_any_uniform_rank(fine_tune, tmp_path, parameters, objective):
    _, before, after = fine_tune
    report = extract(before, after, tmp_path / "out", rank=Budget(parameters=parameters, objective=objective))
    assert report.totals.parameters <= parameters
    energy = {layer.name: layer.norm**2 if objective == "absolute" else 1.0 for layer in report.layers}

    def kept(layers):
        return sum(energy[layer.name] * layer.variance_captured for layer in layers) / sum(energy.values())

    compared = 0
    for rank in range(1, 33):
        uniform = extract(before, after, tmp_path / "uniform", rank=rank, dry_run=True)
        if uniform.totals.parameters > report.totals.parameters:
            break
        assert kept(report.layers) >= kept(uniform.layers)
        compared += 1
    assert compared >= 1
    found = plan(after, before, budget=Budget(parameters=parameters, objective=objective))
    assert found.same_parameters.rank == compared
    assert found.variance > found.same_parameters.variance


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_pefts_energy_rule(fine_tune, threshold):
    _, before, after = fine_tune
    from safetensors.torch import load_file

    first, second = load_file(before), load_file(after)
    updates = [second[key] - first[key] for key in first if first[key].ndim == 2]
    updates += [torch.from_numpy(np.random.default_rng(seed).standard_normal((40, 30))) for seed in range(20)]
    for update in updates:
        of = spectrum(update)
        values = torch.linalg.svdvals(update.float())
        # Off ties: PEFT adds up in float32.
        if np.min(np.abs(variance_captured(of) - threshold)) > 1e-6:
            assert conversion._find_cutoff_index(values, threshold) == rank_for_variance(of, threshold)


def drawn_spectra():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = np.sort(rng.random(rng.integers(2, 20)))[::-1]
        yield Spectrum(values, np.linalg.norm(values), (40, len(values)), complete=True)


def test_kohyas_rules_keep_one_rank_more():
    """Its script ``resize_lora.py`` finds the number of ranks by each rule, and then takes one more.

    ``sv_ratio`` t: the number of σ_i > σ₁ / t. ``sv_fro`` t: the first index, counted from 1, at which H ≥ t²·N².
    Either is kept within 1 … p − 1, and 1 is added.
    """
    for of in drawn_spectra():
        p = len(of.values)
        for t in (1.5, 2.0, 5.0, 20.0):
            kohya = max(1, min(int(np.sum(of.values > of.values[0] / t)), p - 1)) + 1
            assert kohya == min(rank_for_ratio(of, 1 / t) + 1, p)
        for t in (0.5, 0.8, 0.9, 0.99):
            heads = np.cumsum(of.values**2) / np.sum(of.values**2)
            kohya = max(1, min(int(np.searchsorted(heads, t**2)) + 1, p - 1)) + 1
            assert kohya == min(rank_for_variance(of, t**2) + 1, p)


def test_lycoris_keeps_the_same_by_ratio_and_one_rank_less_by_quantile():
    """Its ``ratio`` counts σ_i > ρ·σ₁. Its ``quantile`` counts the cumulated sums of σ under a share q of the whole.

    The latter are all but the one that reaches the share. A sum of σ is a variance of √σ. At least 1 is kept.
    """
    for of in drawn_spectra():
        for ratio in (0.05, 0.3, 0.7):
            assert max(1, int(np.sum(of.values > ratio * of.values[0]))) == rank_for_ratio(of, ratio)
        roots = np.sqrt(of.values)
        root = Spectrum(roots, np.linalg.norm(roots), of.shape, complete=True)
        for q in (0.3, 0.5, 0.75, 0.9):
            lycoris = max(1, int(np.sum(np.cumsum(of.values) < q * np.sum(of.values))))
            assert lycoris == max(1, rank_for_variance(root, q) - 1)
