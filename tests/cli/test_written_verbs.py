"""What extract, resize and merge print and write, compared with dense matrices and the files themselves."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lowrank_core.cli import workers
from lowrank_core.cli.app import main
from lowrank_core.cli.verbs.merge import parse_weights

from .conftest import write_adapter

LAYER = "layers.1.mlp.down_proj"
PREFIX = "base_model.model."
PNG = b"\x89PNG\r\n"
# Of `tuning`, whose embedding changed and is not asked for.
INCOMPLETE = 1


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def sources_of(verb: str, tuning: tuple[Path, Path], adapter: Path) -> list[object]:
    """What a verb reads, so that all that differs is in a layer."""
    return {
        "extract": [*tuning, "--exclude", "embed_tokens"],
        "resize": [adapter],
        "merge": [adapter, adapter],
    }[verb]


def difference(base: Path, tuned: Path, name: str = LAYER) -> NDArray[np.float64]:
    before, after = (load_file(folder / "model.safetensors")[f"{name}.weight"] for folder in (base, tuned))
    return after.astype(np.float64) - before.astype(np.float64)


def factors(adapter: Path) -> dict[str, NDArray[np.floating]]:
    return load_file(adapter / "adapter_model.safetensors")


def product(adapter: Path, name: str = LAYER) -> NDArray[np.float64]:
    """BA of a PEFT adapter, without its scale."""
    tensors = factors(adapter)
    B, A = (tensors[f"{PREFIX}{name}.lora_{factor}.weight"].astype(np.float64) for factor in "BA")
    return B @ A


def config(adapter: Path) -> dict:
    return json.loads((adapter / "adapter_config.json").read_text())


def best(update: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    U, values, Vh = np.linalg.svd(update)
    return (U[:, :rank] * values[:rank]) @ Vh[:rank]


def row_of(printed: str, name: str) -> list[str]:
    """The cells of a layer in the first table that has it, without the × of its shape."""
    return next(line for line in printed.splitlines() if line.strip().startswith(name)).replace("×", " ").split()


def test_extract_prints_and_writes_the_best_update(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, files = tmp_path / "out", {ending: tmp_path / f"report.{ending}" for ending in ("json", "csv", "png")}
    options = [
        option
        for ending, path in zip(("json", "csv", "figure"), files.values(), strict=True)
        for option in (f"--{ending}", path)
    ]
    assert run("extract", *tuning, out, "--rank", 3, *options) == INCOMPLETE
    printed = capsys.readouterr().out
    assert "\x1b" not in printed

    update = difference(*tuning)
    values = np.linalg.svd(update, compute_uv=False)
    variance = np.sum(values[:3] ** 2) / np.sum(values**2)
    error = np.sqrt(np.sum(values[3:] ** 2) / np.sum(values**2))
    row = row_of(printed.partition("\n  1\n")[2], "mlp.down_proj")
    assert row[:7] == ["mlp.down_proj", "8", "20", "3", f"{100 * variance:.2f}", "%", f"{error:.4f}"]
    layer = next(layer for layer in json.loads(files["json"].read_text())["layers"] if layer["name"] == LAYER)
    record = next(row for row in csv.DictReader(files["csv"].read_text().splitlines()) if row["name"] == LAYER)
    for report in (layer, record):
        np.testing.assert_allclose(float(report["variance_captured"]), variance, rtol=1e-6)
        np.testing.assert_allclose([float(report["best_error"]), float(report["error"])], error, rtol=1e-6)
    assert files["png"].read_bytes().startswith(PNG)

    assert (config(out)["r"], config(out)["lora_alpha"], config(out)["rank_pattern"]) == (3, 16, {})
    np.testing.assert_allclose(16 / 3 * product(out), best(update, 3), atol=1e-5)


def test_ranks_are_the_least_that_capture_the_variance_in_table_and_file(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", *tuning, tmp_path / "out", "--variance", 0.8, "--max-rank", 5) == INCOMPLETE
    blocks = capsys.readouterr().out.partition("\n  0\n")[2].partition("\n  1\n")
    written = factors(tmp_path / "out")
    for layer, block in ((0, blocks[0]), (1, blocks[2])):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"layers.{layer}.{module}"
            values = np.linalg.svd(difference(*tuning, name), compute_uv=False)
            least = int(np.searchsorted(np.cumsum(values**2), 0.8 * np.sum(values**2))) + 1
            assert written[f"{PREFIX}{name}.lora_A.weight"].shape[0] == min(least, 5)
            assert row_of(block, module)[3] == str(min(least, 5))


def test_the_totals_are_those_of_all_layers_together(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert (
        run("extract", *tuning, tmp_path / "out", "--error", 0.5, "--dtype", "bfloat16", "--json", path) == INCOMPLETE
    )
    report = json.loads(path.read_text())
    layers, totals = report["layers"], report["totals"]
    assert len({layer["rank"] for layer in layers}) > 1
    norms, lost = [], []
    for layer in layers:
        update = difference(*tuning, layer["name"])
        norms.append(np.linalg.norm(update) ** 2)
        lost.append(np.linalg.norm(update - best(update, layer["rank"])) ** 2)
    np.testing.assert_allclose(totals["variance_captured"], 1 - np.sum(lost) / np.sum(norms), rtol=1e-6)
    np.testing.assert_allclose(totals["best_error"], np.sqrt(np.sum(lost) / np.sum(norms)), rtol=1e-6)
    entries = sum(tensor.size for tensor in factors(tmp_path / "out").values())
    assert (totals["parameters"], totals["bytes"]) == (entries, 2 * entries)
    assert totals["source_parameters"] == sum(layer["shape"][0] * layer["shape"][1] for layer in layers)
    assert totals["source_bytes"] == 4 * totals["source_parameters"]
    # The mean of many roundings to 8 bits, within the half unit that each is.
    assert 2**-11 < totals["storage_error"] < 2**-8


def test_a_dry_run_reports_the_same_and_writes_nothing(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = ["extract", *tuning, tmp_path / "out", "--variance", 0.7, "--json", "-"]
    assert run(*arguments, "--dry-run") == INCOMPLETE
    dry = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    assert run(*arguments) == INCOMPLETE
    wet = json.loads(capsys.readouterr().out)
    assert (dry["written"], wet["written"]) == (False, True)
    assert any("single scale" in warning for warning in dry["warnings"])
    assert {**dry, "written": True} == wet


def test_an_existing_adapter_is_replaced_only_with_force(
    tuning: tuple[Path, Path], adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in adapter.iterdir()}
    assert run("extract", *tuning, adapter, "--rank", 2) == 2
    assert "--force" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in adapter.iterdir()} == before
    assert run("extract", *tuning, adapter, "--rank", 2, "--force") == INCOMPLETE
    assert {path.name for path in adapter.iterdir()} == {path.name for path in before}
    np.testing.assert_allclose(8 * product(adapter), best(difference(*tuning), 2), atol=1e-5)


def test_a_bad_layer_is_named_and_the_others_are_written(
    checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", *checkpoints, tmp_path / "out", "--rank", 2) == 1
    printed = capsys.readouterr().out
    assert "h.1.proj" in printed.partition("\nFailed, and not in the adapter\n")[2]
    assert "h.0.proj.bias: changed by norm" in printed.partition("\nNot in the adapter\n")[2]
    assert sorted(factors(tmp_path / "out")) == [f"{PREFIX}h.0.proj.lora_{factor}.weight" for factor in "AB"]


def test_what_an_adapter_cannot_contain_is_listed_with_its_norm(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", *tuning, tmp_path / "out", "--rank", 2) == INCOMPLETE
    left_out = " ".join(capsys.readouterr().out.partition("\nNot in the adapter\n")[2].split())
    for name in ("embed_tokens", "norm"):
        assert f"norm {np.linalg.norm(difference(*tuning, name)):.4g}" in left_out.partition(name)[2]


@pytest.mark.parametrize(
    ("options", "entry", "value"),
    [
        (["--alpha", 5], "lora_alpha", 5),
        (["--rule", "rslora"], "use_rslora", True),
        (["--include", "q_proj"], "target_modules", ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]),
        (["--exclude", "layers.0.*", "--exclude", "q_proj"], "target_modules", ["layers.1.mlp.down_proj"]),
        (["--transposed", "*_proj"], "fan_in_fan_out", True),
        (["--uniform"], "lora_alpha", 2),
    ],
)
def test_options_reach_the_configuration(
    tuning: tuple[Path, Path], tmp_path: Path, options: list, entry: str, value: object
) -> None:
    assert run("extract", *tuning, tmp_path / "out", "--rank", 2, "--exclude", "embed_tokens", *options) == 0
    written = config(tmp_path / "out")[entry]
    assert (sorted(written) if isinstance(written, list) else written) == value


def test_options_reach_the_factors(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--prefix", "model", "--embedding", "embed_tokens", "--dtype", "float16"]
    assert run("extract", *tuning, tmp_path / "out", "--ratio", 0.6, *options) == 0
    written = factors(tmp_path / "out")
    assert all(key.startswith(f"{PREFIX}model.") for key in written)
    assert f"{PREFIX}model.embed_tokens.lora_embedding_A" in written
    assert {tensor.dtype.name for tensor in written.values()} == {"float16"}
    values = np.linalg.svd(difference(*tuning), compute_uv=False)
    assert written[f"{PREFIX}model.{LAYER}.lora_A.weight"].shape[0] == np.count_nonzero(values >= 0.6 * values[0])


def test_a_uniform_adapter_has_one_rank_and_the_table_says_what_is_padding(
    tuning: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", *tuning, tmp_path / "out", "--variance", 0.8, "--uniform") == INCOMPLETE
    printed = capsys.readouterr().out
    (stored,) = {tensor.shape[0] for key, tensor in factors(tmp_path / "out").items() if "lora_A" in key}
    assert config(tmp_path / "out")["r"] == config(tmp_path / "out")["lora_alpha"] == stored
    rows = [row_of(block, "self_attn.q_proj") for block in printed.split("\n  1\n")[:2]]
    assert all(row[4] == str(stored) for row in rows)
    assert any(int(row[3]) < stored for row in rows)
    values = np.linalg.svd(difference(*tuning), compute_uv=False)
    least = int(np.searchsorted(np.cumsum(values**2), 0.8 * np.sum(values**2))) + 1
    np.testing.assert_allclose(product(tmp_path / "out"), best(difference(*tuning), least), atol=1e-5)


@pytest.mark.parametrize("verb", ["extract", "resize", "merge"])
def test_workers_change_nothing(verb: str, tuning: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    sources = {"extract": [*tuning, "--exclude", "embed_tokens"], "resize": [adapter], "merge": [adapter, adapter]}[
        verb
    ]
    outs = [tmp_path / name for name in ("one", "two")]
    for out, threads in zip(outs, (1, 2), strict=True):
        assert run(verb, *sources, out, "--variance", 0.9, "--workers", threads) == 0
    written = [(out / "adapter_model.safetensors").read_bytes() for out in outs]
    assert written[0] == written[1]


@pytest.mark.parametrize("verb", ["extract", "resize", "merge"])
@pytest.mark.parametrize(
    ("place", "options", "argument"),
    [("ThreadPoolExecutor", ["--workers", 3], 3), ("dask_cluster", ["--dask", "tcp://x:1"], "tcp://x:1")],
)
def test_layers_are_worked_on_where_the_options_say(
    verb: str,
    place: str,
    options: list,
    argument: object,
    tuning: tuple[Path, Path],
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requested, layers = [], []

    class Recorder(ThreadPoolExecutor):
        def submit(self, *arguments, **options):
            layers.append(arguments)
            return super().submit(*arguments, **options)

    def executor(argument: object) -> Recorder:
        requested.append(argument)
        return Recorder(1)

    monkeypatch.setattr(workers, place, executor)
    sources = {"extract": [*tuning, "--exclude", "embed_tokens"], "resize": [adapter], "merge": [adapter, adapter]}[
        verb
    ]
    assert run(verb, *sources, tmp_path / "out", "--rank", 2, *options) == 0
    assert requested == [argument]
    assert len(layers) == 4


def test_resize_keeps_the_best_of_the_scaled_update(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("resize", adapter, tmp_path / "out", "--rank", 2, "--alpha", 1) == 0
    printed = capsys.readouterr().out
    name = "model.layers.1.self_attn.q_proj"
    update = 6 / 3 * product(adapter, name)
    values = np.linalg.svd(update, compute_uv=False)
    row = row_of(printed.partition("\n  1\n")[2], "self_attn.q_proj")
    assert row[3:6] == ["2", f"{100 * np.sum(values[:2] ** 2) / np.sum(values**2):.2f}", "%"]
    np.testing.assert_allclose(1 / 2 * product(tmp_path / "out", name), best(update, 2), atol=1e-5)
    # 3 components of 12 + 8 and 8 + 20 entries in two blocks, and then 2.
    assert row_of(printed.partition("\nSize\n")[2], "all together")[2:4] == ["288", "192"]


def test_resize_without_a_rank_keeps_all_and_marks_clamped_ranks(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("resize", adapter, tmp_path / "all") == 0
    np.testing.assert_allclose(
        config(tmp_path / "all")["lora_alpha"] / 3 * product(tmp_path / "all", f"model.{LAYER}"),
        6 / 3 * product(adapter, f"model.{LAYER}"),
        atol=1e-5,
    )
    assert "*" not in capsys.readouterr().out
    assert run("resize", adapter, tmp_path / "more", "--rank", 7) == 0
    printed = capsys.readouterr().out
    assert row_of(printed, "self_attn.q_proj")[3] == "3*"
    assert "where rank 7 was requested" in printed


def test_resize_keeps_the_dtype_unless_given_one(adapter: Path, tmp_path: Path) -> None:
    half, again, wide = (tmp_path / name for name in ("half", "again", "wide"))
    assert run("resize", adapter, half, "--rank", 2, "--dtype", "float16") == 0
    assert run("resize", half, again, "--rank", 1) == 0
    assert run("resize", half, wide, "--rank", 1, "--dtype", "float32") == 0
    dtypes = [{tensor.dtype.name for tensor in factors(out).values()} for out in (half, again, wide)]
    assert dtypes == [{"float16"}, {"float16"}, {"float32"}]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_resize_keeps_the_rule_unless_given_one(tmp_path: Path, use_rslora: bool) -> None:
    source = write_adapter(tmp_path / "source", use_rslora=use_rslora)
    assert run("resize", source, tmp_path / "kept", "--rank", 2) == 0
    assert config(tmp_path / "kept")["use_rslora"] is use_rslora
    assert run("resize", source, tmp_path / "other", "--rank", 2, "--rule", "standard") == 0
    assert config(tmp_path / "other")["use_rslora"] is False
    before = 6 / (np.sqrt(3) if use_rslora else 3)
    for out, after in (("kept", 16 / (np.sqrt(2) if use_rslora else 2)), ("other", 16 / 2)):
        name = "model.layers.0.mlp.down_proj"
        np.testing.assert_allclose(
            after * product(tmp_path / out, name), best(before * product(source, name), 2), atol=1e-5
        )


def test_a_uniform_adapter_follows_the_one_rule_that_all_readers_know(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "source", use_rslora=True)
    assert run("resize", source, tmp_path / "out", "--rank", 2, "--uniform") == 0
    assert [config(tmp_path / "out")[entry] for entry in ("r", "lora_alpha", "use_rslora")] == [2, 2, False]


def test_a_kohya_file_is_converted_back_with_the_names_of_the_base(tuning: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = tuning
    there, back = tmp_path / "there.safetensors", tmp_path / "back"
    assert run("extract", *tuning, there, "--rank", 2, "--prefix", "lora_te1") == INCOMPLETE
    down = load_file(there)["lora_te1_layers_1_mlp_down_proj.lora_down.weight"]
    assert down.shape == (2, 20)
    assert run("resize", there, back, "--base", base) == 0
    scale = config(back)["lora_alpha"] / config(back)["r"]
    np.testing.assert_allclose(scale * product(back), best(difference(*tuning), 2), atol=1e-5)


@pytest.mark.parametrize("weights", [["--weights", "-1,0.5"], ["--weights", "-1", "--weights", "0.5"]])
def test_merge_adds_the_updates_with_their_weights_in_order(
    tmp_path: Path, weights: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_adapter(tmp_path / "one")
    two = write_adapter(tmp_path / "two", rank=2, seed=1, lora_alpha=3, use_rslora=True)
    assert run("merge", one, two, tmp_path / "out", *weights) == 0
    name = "model.layers.1.mlp.down_proj"
    update = -6 / 3 * product(one, name) + 0.5 * 3 / np.sqrt(2) * product(two, name)
    out = config(tmp_path / "out")
    assert out["r"] == 5
    np.testing.assert_allclose(out["lora_alpha"] / 5 * product(tmp_path / "out", name), update, atol=1e-4)
    # (3 + 2) components of 12 + 8 and 8 + 20 entries in two blocks, before and after.
    assert row_of(capsys.readouterr().out.partition("\nSize\n")[2], "all together")[2:4] == ["480", "480"]


def test_merge_keeps_the_best_of_the_sum(adapter: Path, tmp_path: Path) -> None:
    two = write_adapter(tmp_path / "two", rank=2, seed=1)
    assert run("merge", adapter, two, tmp_path / "out", "--rank", 1) == 0
    name = "model.layers.0.self_attn.q_proj"
    update = 6 / 3 * product(adapter, name) + 6 / 2 * product(two, name)
    np.testing.assert_allclose(16 * product(tmp_path / "out", name), best(update, 1), atol=1e-5)


def test_weights_are_read_in_either_spelling() -> None:
    assert parse_weights(["1,-0.5", "2"]) == [1.0, -0.5, 2.0]
