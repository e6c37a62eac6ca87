"""What each verb prints and writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.cli.app import main
from lowrank_core.cli.options import parse_ranks

from .conftest import write_adapter

SIGNATURES = {".png": b"\x89PNG\r\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}
SMALL = ["demo", "--size", "8", "--ranks", "2,4"]


@pytest.fixture(scope="module")
def demo_json(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("demo") / "demo.json"
    assert main(["demo", "--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_demo_writes_the_articles_figures(demo_json: dict) -> None:
    facts = demo_json["facts"]
    assert facts["ranks"] == [2, 4, 8, 16, 32, 48]
    assert [f"{error:.6f}" for error in facts["errors"]["standard"]] == [
        *("2.165376", "1.481534", "1.000000", "0.701083", "0.627560", "0.685698")
    ]
    assert [f"{share:.6f}" for share in demo_json["style"]["variance_captured"][:2]] == ["0.888897", "0.991524"]
    for update in (demo_json["style"], facts):
        best, captured = (np.array(update[key]) for key in ("best_possible", "variance_captured"))
        np.testing.assert_allclose(best**2 + captured, 1.0, rtol=1e-12)
        every = update["every_rank"]
        assert [every["best_possible"][rank - 1] for rank in update["ranks"]] == update["best_possible"]
    assert len(facts["singular_values"]) == 64
    assert demo_json["scaling"]["ranks"] == [1, 2, 4, 8, 16, 32, 48, 64]
    assert demo_json["scaling"]["gamma"]["standard"][-1] == 0.25
    assert [learning["optimizer"] for learning in demo_json["learning"]] == ["sgd", "adam", "adam"]
    assert len(demo_json["verdicts"]) == 7
    assert demo_json["settings"] == {"size": 64, "ranks": [2, 4, 8, 16, 32, 48], "alpha": 16.0, "seed": 42}


def test_every_figure_of_the_demo_is_a_number(demo_json: dict) -> None:
    def leaves(value: object) -> list[object]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        if isinstance(value, list):
            return [leaf for item in value for leaf in leaves(item)]
        return [value]

    assert all(isinstance(leaf, int | float | str) for leaf in leaves(demo_json))


def test_json_on_standard_output_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["size"] == 8


def test_the_demo_skips_default_ranks_beyond_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size", "10", "--json", "-"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["facts"]["ranks"] == [2, 4, 8]
    assert written["learning"][0]["ranks"] == [2, 4, 8, 10]


@pytest.mark.parametrize("ending", SIGNATURES)
def test_the_demo_draws_in_every_format_the_same_each_time(tmp_path: Path, ending: str) -> None:
    paths = [tmp_path / f"{name}{ending}" for name in "ab"]
    for path in paths:
        assert main([*SMALL, "--figure", str(path)]) == 0
    assert paths[0].read_bytes().startswith(SIGNATURES[ending])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_a_demo_whose_runs_diverge_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demo.json"
    assert main([*SMALL, "--alpha", "2000", "--figure", str(tmp_path / "demo.png"), "--json", str(path)]) == 0
    assert None in json.loads(path.read_text())["learning"][0]["errors"]["rslora"]
    assert "diverged" in capsys.readouterr().out


def test_a_demo_of_one_rank_is_drawn(tmp_path: Path) -> None:
    assert main(["demo", "--size", "4", "--ranks", "4", "--figure", str(tmp_path / "demo.svg")]) == 0


def test_inspect_prints_and_writes_the_numbers_of_the_adapter(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"report.{name}" for name in ("json", "csv", "png")}
    options = ["--json", str(files["json"]), "--csv", str(files["csv"]), "--figure", str(files["png"])]
    assert main(["inspect", str(adapter), "--ranks", "1,2,3", *options]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "4 layers" in printed

    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    B, A = (tensors[f"base_model.model.{name}.lora_{factor}.weight"].astype(np.float64) for factor in "BA")
    values = np.linalg.svd(6 / 3 * B @ A, compute_uv=False)
    best = np.sqrt([np.sum(values[rank:] ** 2) for rank in (1, 2)]) / np.linalg.norm(values)

    report = json.loads(files["json"].read_text())
    layer = next(layer for layer in report["layers"] if layer["name"] == name)
    np.testing.assert_allclose(layer["singular_values"], values[:3], rtol=1e-6)
    np.testing.assert_allclose(layer["best_error"][:2], best, rtol=1e-6)
    row = next(row for row in csv.DictReader(files["csv"].read_text().splitlines()) if row["name"] == name)
    np.testing.assert_allclose([float(row["best_error_1"]), float(row["best_error_2"])], best, rtol=1e-6)
    assert f"{best[0]:.4f}" in printed
    assert files["png"].read_bytes().startswith(SIGNATURES[".png"])


def test_inspect_takes_rules_and_alpha(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", str(adapter), "--ranks", "4", "--rule", "unscaled", "--rule", "rslora", "--alpha", "2"]
    assert main([*arguments, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rules"], report["alpha"]) == (["unscaled", "rslora"], 2.0)
    layer = report["layers"][0]
    assert layer["errors"]["unscaled"] == layer["best_error"]
    np.testing.assert_allclose(layer["errors"]["rslora"], layer["best_error"], atol=1e-12)


def test_csv_on_standard_output_is_csv_alone(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(adapter), "--csv", "-"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 4


def test_a_bad_layer_is_named_and_the_others_are_reported(
    checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = checkpoints
    assert main(["inspect", str(tuned), "--base", str(base)]) == 1
    printed = capsys.readouterr().out
    assert "1 layer," in printed
    failed = printed.partition("\nFailed\n")[2]
    assert "h.1.proj" in failed
    assert "h.0.proj.bias" in printed.partition("Not low-rank")[2]


def test_no_layer_that_can_be_read_is_bad_input(
    checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, tuned = checkpoints
    only = {"h.1.proj.weight": load_file(tuned)["h.1.proj.weight"]}
    broken, written = tmp_path / "broken.safetensors", tmp_path / "report.json"
    save_file(only, broken)
    assert main(["inspect", str(broken), "--base", str(tuned), "--json", str(written)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "h.0.proj: only in the base checkpoint" in captured.err
    assert not written.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [({"peft_type": "IA3"}, "IA3"), ({"lora_alpha": "sixteen"}, "sixteen")],
)
def test_an_adapter_that_cannot_be_understood_is_one_line(
    tmp_path: Path, config: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(write_adapter(tmp_path / "bad", **config))]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_inspect_fails_on_the_verdicts_it_is_asked_to(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = load_file(adapter / "adapter_model.safetensors")
    zero = {key: tensor * ("lora_A" in key or "q_proj" in key) for key, tensor in factors.items()}
    path = write_adapter(tmp_path / "zero")
    save_file(zero, path / "adapter_model.safetensors", metadata={"format": "pt"})
    for conditions, code in (([], 0), (["spike"], 0), (["zero"], 3), (["not-finite", "zero"], 3)):
        options = [option for condition in conditions for option in ("--fail-on", condition)]
        assert main(["inspect", str(path), *options]) == code
        assert "The update is zero (norm 0) in 2 of 4 layers" in capsys.readouterr().out
    assert main(["inspect", str(adapter), "--fail-on", "zero"]) == 0
    assert "Verdicts" not in capsys.readouterr().out


def test_an_adapter_of_nan_alone_is_reported_where_that_is_the_condition(
    checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, tuned = checkpoints
    command = ["inspect", str(tuned), "--base", str(tuned)]
    only = {"h.1.proj.weight": load_file(tuned)["h.1.proj.weight"]}
    save_file(only, tuned)
    assert main(command) == 2
    assert main([*command, "--fail-on", "not-finite"]) == 3
    assert "1 of 1 layers has no finite update: h.1.proj" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail-on", "zeros"], "'zeros' is not a condition: conditions are zero, not-finite"),
        (["--fail-on", "zero", "--recursive"], "--fail-on is of one adapter, and --recursive of many"),
        (["--match", "a=b", "--recursive"], "--match is of one adapter, and --recursive of many"),
        (["--component", "vae", "--recursive"], "--component is of one adapter, and --recursive of many"),
        (["--alpha", "2"], "no rule was given"),
        (["--leading", "3"], "give that too"),
        (["--intruders"], "give the base too (--base)"),
        (["--fail-on", "under-rounding"], "it needs the adapter, and its base (--base)"),
    ],
)
def test_inspect_refuses_options_that_say_nothing(
    adapter: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(adapter), *options]) == 2
    assert message in capsys.readouterr().err


def test_inspect_counts_intruders_beside_the_base(
    tuning: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = tuning
    for options, leading in (([], None), (["--intruders"], 10), (["--intruders", "--leading", "1"], 1)):
        main(["inspect", str(tuned), "--base", str(base), "--json", "-", *options])
        counts = [layer["base"]["intruders"] for layer in json.loads(capsys.readouterr().out)["layers"]]
        assert all(count is None if leading is None else 0 <= count <= leading for count in counts)


def test_a_condition_on_a_merge_is_refused_for_two_checkpoints(
    tuning: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = tuning
    assert main(["inspect", str(tuned), "--base", str(base), "--fail-on", "under-rounding"]) == 2
    assert "it needs the adapter, and its base" in capsys.readouterr().err


def test_ranks_are_sorted_and_each_taken_once() -> None:
    assert parse_ranks("8, 2,4,4") == (2, 4, 8)
