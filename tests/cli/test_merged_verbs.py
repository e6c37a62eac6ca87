"""What ``apply`` and ``verify`` print and write, and their exit codes."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.cli.app import main

SHAPES = {"self_attn.q_proj": (12, 8), "mlp.down_proj": (8, 20)}


@pytest.fixture
def base(tmp_path):
    rng = np.random.default_rng(1)
    names = [f"model.layers.{layer}.{module}" for layer in range(2) for module in SHAPES]
    weights = {f"{name}.weight": rng.standard_normal(SHAPES[name.split(".", 3)[3]]) for name in names}
    weights["model.norm.weight"] = np.ones(8)
    path = tmp_path / "base.safetensors"
    save_file({key: weight.astype(np.float32) for key, weight in weights.items()}, path)
    return path


def test_a_model_is_written_and_is_right(base, adapter, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["apply", str(base), str(adapter), str(out), "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "4 updates of 512 entries" in printed
    assert "All of the adapter is in it." in printed
    assert main(["verify", str(base), str(adapter), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 updates right, as merged in float64; 1 other tensor as in the base" in printed
    assert "Right: every tensor was compared" in printed
    assert main(["apply", str(base), str(adapter), str(out)]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_wrong_model_is_explained(base, adapter, tmp_path, capsys):
    tensors = load_file(base)
    tensors["model.norm.weight"][3] = 2.0
    tensors["extra.weight"] = np.ones((2, 2), np.float32)
    wrong = tmp_path / "wrong.safetensors"
    save_file(tensors, wrong)
    report, rows = tmp_path / "report.json", tmp_path / "rows.csv"
    assert main(["verify", str(base), str(adapter), str(wrong), "--json", str(report), "--csv", str(rows)]) == 1
    printed = capsys.readouterr().out
    assert "- model.layers.0.mlp.down_proj, and 3 more layers: not merged: the base's weight" in printed
    assert "model.norm.weight: differs from the base's in 1 of 8 entries" in printed
    assert "extra.weight: only in the merged model: 2 × 2" in printed
    assert "Wrong: 4 wrong layers, 2 other differences." in printed
    written = json.loads(report.read_text(encoding="utf-8"))
    assert (written["right"], written["complete"], written["wrong_layers"]) == (False, True, 4)
    with rows.open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [layer["name"] for layer in written["layers"]]
    assert all(int(row["wrong_entries"]) > 0 and float(row["error"]) < 1e-6 for row in table)


def test_what_is_not_applied_makes_the_exit_code_1(base, adapter, tmp_path, capsys):
    tensors = load_file(base)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, base)
    out, rows = tmp_path / "out.safetensors", tmp_path / "rows.csv"
    assert main(["apply", str(base), str(adapter), str(out), "--csv", str(rows)]) == 1
    printed = capsys.readouterr().out
    assert "model.layers.1.mlp.down_proj: 'model.layers.1.mlp.down_proj' does not stand for any module" in printed
    assert "Not all of the adapter is in it." in printed
    assert "does not stand for any module" in rows.read_text(encoding="utf-8").splitlines()[-1]
    assert main(["verify", str(base), str(adapter), str(out)]) == 1
    assert "Wrong: 1 not compared." in capsys.readouterr().out


def test_many_wrong_layers_are_folded_and_few_diagnoses_named(tmp_path, capsys):
    rng = np.random.default_rng(2)
    names = [f"h.{i}.q" for i in range(30)]
    base = {f"{name}.weight": rng.standard_normal((6, 5)).astype(np.float32) for name in names}
    factors = {f"transformer.{name}.lora_A.weight": rng.standard_normal((2, 5)).astype(np.float32) for name in names}
    factors |= {f"transformer.{name}.lora_B.weight": rng.standard_normal((6, 2)).astype(np.float32) for name in names}
    wrong = {key: weight + 0.1 * rng.standard_normal((6, 5)).astype(np.float32) for key, weight in base.items()}
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "lora", "wrong")]
    for path, tensors in zip(paths, (base, factors, wrong), strict=True):
        save_file(tensors, path)
    command = ["verify", *map(str, paths)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "30 layers in 1 kind: the median, and under it the worst; of wrong and entries the sum." in printed
    row = next(line.split() for line in printed.splitlines() if line.strip().startswith("h.*.q"))
    assert row[:6] == ["h.*.q", "30", "6", "×", "5", "float32"]
    assert sum(line.startswith("  - h.") for line in printed.splitlines()) == 12
    assert "… and 18 more: --full or --json." in printed
    assert main([*command, "--full"]) == 1
    printed = capsys.readouterr().out
    assert sum(line.startswith("  - h.") for line in printed.splitlines()) == 30
    assert "in 1 kind" not in printed
