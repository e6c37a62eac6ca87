"""What ``lowrank plan`` prints and writes, compared with the dense updates."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank_core.cli.app import main

from .conftest import write_adapter

# Of `tuning`, whose embedding changed and is not asked for.
INCOMPLETE = 1


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def dense(base: Path, tuned: Path) -> dict[str, np.ndarray]:
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    return {
        key.removesuffix(".weight"): after[key].astype(np.float64) - before[key]
        for key in before
        if before[key].ndim == 2 and "embed" not in key
    }


def kept(update: np.ndarray, rank: int) -> float:
    values = np.linalg.svd(update, compute_uv=False)
    return float(np.sum(values[:rank] ** 2) / np.sum(values**2))


def test_plan_of_two_checkpoints(tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("plan", *tuning, "--parameters", 200, "--out", tmp_path / "p.json", "--json", tmp_path / "all.json")
        == INCOMPLETE
    )
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "all.json").read_text())
    updates = dense(*tuning)
    assert {layer["name"] for layer in report["layers"]} == set(updates)
    parameters = 0
    for layer in report["layers"]:
        update = updates[layer["name"]]
        assert layer["variance_captured"] == pytest.approx(kept(update, layer["rank"]), abs=1e-6)
        assert layer["alpha"] == (layer["rank"] or None)
        parameters += layer["rank"] * sum(update.shape)
    assert report["parameters"] == parameters <= 200
    mean = np.mean([layer["variance_captured"] for layer in report["layers"]])
    assert report["variance"] == pytest.approx(mean, abs=1e-12)
    assert report["variance"] <= report["upper_bound"]
    assert f"{parameters} parameters in" in printed
    assert f"keep {100 * mean:.2f} % of the variance" in printed
    assert report["skipped"] == {"embed_tokens": "an embedding, which is planned for only when asked for (--include)"}
    assert json.loads((tmp_path / "p.json").read_text()) == report["config"]


def test_uniform_ranks_beside_the_plan(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("plan", *tuning, "--parameters", 200, "--json", tmp_path / "all.json") == INCOMPLETE
    report = json.loads((tmp_path / "all.json").read_text())
    updates = dense(*tuning)
    costs = [sum(min(rank, *u.shape) * sum(u.shape) for u in updates.values()) for rank in range(9)]
    means = [np.mean([kept(update, rank) for update in updates.values()]) for rank in range(9)]
    same = report["same_parameters"]
    assert same["rank"] == max(rank for rank in range(9) if costs[rank] <= report["parameters"])
    assert (same["parameters"], same["variance"]) == (costs[same["rank"]], pytest.approx(means[same["rank"]], abs=1e-6))
    assert report["variance"] >= same["variance"]
    least = report["same_variance"]
    assert least["rank"] == min(rank for rank in range(9) if means[rank] >= report["variance"])
    assert least["parameters"] == costs[least["rank"]] >= report["parameters"]


def test_a_variance_is_met_with_the_rule_and_scale_asked_for(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--variance", 0.8, "--rule", "rslora", "--scale", 2, "--max-rank", 6, "--objective", "absolute")
    assert run("plan", *tuning, *options, "--json", tmp_path / "all.json") == INCOMPLETE
    report = json.loads((tmp_path / "all.json").read_text())
    updates = dense(*tuning)
    energy = {name: np.sum(update**2) for name, update in updates.items()}
    ranks = {layer["name"]: layer["rank"] for layer in report["layers"]}
    share = sum(kept(updates[name], ranks[name]) * energy[name] for name in updates) / sum(energy.values())
    assert share >= 0.8 - 1e-6
    assert report["variance"] == pytest.approx(share, abs=1e-6)
    assert report["config"]["use_rslora"] is True
    for layer in report["layers"]:
        assert layer["rank"] <= 6
        if layer["rank"]:
            assert layer["alpha"] / np.sqrt(layer["rank"]) == pytest.approx(2, rel=1e-12)


def test_an_adapter_keeps_each_layers_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = write_adapter(tmp_path / "a", rank=3, use_rslora=True)
    assert run("plan", adapter, "--parameters", 100, "--out", tmp_path / "p.json") == 0
    config = json.loads((tmp_path / "p.json").read_text())
    assert config["use_rslora"] is True
    pattern = {name: config["alpha_pattern"].get(name, config["lora_alpha"]) for name in config["rank_pattern"]}
    for name, rank in config["rank_pattern"].items():
        assert pattern[name] / np.sqrt(rank) == pytest.approx(6 / np.sqrt(3), rel=1e-12)
    assert "γ = α/√r" in capsys.readouterr().out


def test_many_layers_are_gathered_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = write_adapter(tmp_path / "a", layers=30)
    assert run("plan", adapter, "--variance", 0.7) == 0
    printed = capsys.readouterr().out
    assert "60 layers in 2 kinds of model.layers.*:" in " ".join(printed.split())
    assert len([line for line in printed.splitlines() if "q_proj" in line]) == 1
    assert run("plan", adapter, "--variance", 0.7, "--full") == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "q_proj" in line]) == 30


def test_failed_layers_are_named_and_the_others_planned(
    checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", *checkpoints, "--variance", 0.5) == 1
    assert "h.1.proj: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", 100, "--variance", 0.5], "Give --parameters or --variance, and only one of them"),
        ([], "Give --parameters or --variance"),
        (["--parameters", 3], "the cheapest, rank 1 of layer 'layers.0.self_attn.q_proj', costs m + n = 20"),
        (["--variance", 0.99, "--max-rank", 1], "cannot be captured: the largest ranks allowed capture 0."),
        (["--variance", 0], "nothing to plan"),
        (["--parameters", 100, "--objective", "best"], "unknown objective 'best'; accepted are relative, absolute"),
        (["--parameters", 100, "--rule", "best"], "unknown scaling rule 'best'"),
        (["--parameters", 100, "--scale", -1], "scale must be finite and positive"),
        (["--parameters", 100, "--exclude", "nothing"], "exclude 'nothing' matches none"),
        (["--parameters", 100, "--out", "/nowhere/p.json"], "the folder '/nowhere' for 'p.json' does not exist"),
    ],
)
def test_bad_options_are_one_line(
    tuning: tuple[Path, Path], arguments: list, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", *tuning, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_three_paths_are_too_many(tuning: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *tuning, tuning[0], "--parameters", 100) == 2
    assert "two checkpoints, BASE and TUNED, or one ADAPTER; got 3 paths" in capsys.readouterr().err


def test_extract_and_resize_spend_the_budget_that_a_plan_spends(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    figures = {}
    for verb, more in (("plan", ()), ("extract", (tmp_path / "out",))):
        json_file = tmp_path / f"{verb}.json"
        assert run(verb, *tuning, *more, "--parameters", 250, "--max-rank", 5, "--json", json_file) == INCOMPLETE
        figures[verb] = {layer["name"]: layer["rank"] for layer in json.loads(json_file.read_text())["layers"]}
    assert figures["plan"] == figures["extract"]
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(tensor.size for tensor in stored.values()) <= 250
    assert run("resize", tmp_path / "out", tmp_path / "small", "--parameters", 120, "--objective", "absolute") == 0
    stored = load_file(tmp_path / "small" / "adapter_model.safetensors")
    assert 80 <= sum(tensor.size for tensor in stored.values()) <= 120


def test_a_budget_cannot_be_padded(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", *tuning, tmp_path / "out", "--parameters", 250, "--uniform") == 2
    assert "uniform pads every layer to the largest rank of all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
