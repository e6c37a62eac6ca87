"""Input that extract, resize and merge cannot use: one line that says what is wrong, and nothing written."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.cli.app import main

from .conftest import write_adapter

PREFIX = "base_model.model."


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["extract", "BASE", "TUNED", "OUT"],
            "Give one of --rank, --variance, --error, --ratio, --parameters, --megabytes and",
        ),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 2, "--error", 0.1], "--rank and --error exclude each other"),
        (["extract", "BASE", "TUNED", "OUT", "--variance", 90], "between 0 and 1; got 90"),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 0], "--rank"),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 2, "--uniform", "--alpha", 4], "uniform"),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 2, "--dtype", "int8"], "'int8'"),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 2, "--include", "nowhere"], "'nowhere'"),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 2, "--workers", 2, "--dask", "tcp://x:1"], "exclude each other"),
        (["extract", "BASE", "TUNED", "no/OUT", "--rank", 2], "the folder 'no' for 'OUT' does not exist"),
        (["extract", "BASE", "TUNED", "OUT", "--rank", 2, "--figure", "x.txt"], "its ending says the format"),
        (["extract", "BASE", "no-such", "OUT", "--rank", 2], "no-such"),
        (["resize", "ADAPTER", "OUT", "--max-rank", 4], "--max-rank"),
        (["resize", "BASE", "OUT", "--rank", 2], "is a model checkpoint, not an adapter"),
        (["merge", "ADAPTER", "ADAPTER", "OUT", "--weights", "1"], "1 weights for 2 adapters"),
        (["merge", "ADAPTER", "ADAPTER", "OUT", "--weights", "1;2"], "numbers separated by commas"),
        (["merge", "ADAPTER", "ADAPTER", "OUT", "--weights", "1,nan"], "finite"),
        (["merge", "OUT"], "ADAPTER"),
    ],
)
def test_options_that_cannot_be_used_are_one_line_and_write_nothing(
    tuning: tuple[Path, Path],
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"BASE": tuning[0], "TUNED": tuning[1], "ADAPTER": adapter}
    refused(tmp_path, [paths.get(argument, argument) for argument in arguments], message, capsys)


def refused(folder: Path, arguments: list, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lowrank: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(folder.rglob("*")) == before


def cut_short(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-100])
    return "it may be cut short"


def lying(path: Path) -> str:
    header = json.dumps({"layers.0.q.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 6400]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return "not a valid safetensors file"


def pickled(path: Path) -> str:
    path.rename(path.with_suffix(".bin"))
    path.with_suffix(".bin").write_bytes(pickle.dumps({}))
    return "pickle"


def shard_elsewhere(path: Path) -> str:
    path.rename(path.parent.parent / "shard.safetensors")
    index(path, "../shard.safetensors")
    return "'../shard.safetensors'"


def missing_shard(path: Path) -> str:
    path.unlink()
    index(path, "shard.safetensors")
    return "shard.safetensors"


def index(path: Path, shard: str) -> None:
    content = {"weight_map": {"layers.0.self_attn.q_proj.weight": shard}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [cut_short, lying, pickled, shard_elsewhere, missing_shard])
def test_a_damaged_checkpoint_is_named_in_one_line(
    tuning: tuple[Path, Path], tmp_path: Path, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    message = damage(tuning[1] / "model.safetensors")
    refused(tmp_path, ["extract", *tuning, tmp_path / "out", "--rank", 2], message, capsys)


@pytest.mark.parametrize("verb", ["resize", "merge"])
@pytest.mark.parametrize("damage", [cut_short, lying])
def test_a_damaged_adapter_is_named_in_one_line(
    adapter: Path, tmp_path: Path, verb: str, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    message = damage(adapter / "adapter_model.safetensors")
    if damage is lying:
        message = "adapter_model.safetensors"
    refused(tmp_path, [verb, adapter, tmp_path / "out", "--rank", 2], message, capsys)


def test_factors_that_disagree_are_named(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_A" in key)
    save_file(tensors | {key: np.vstack([tensors[key], tensors[key]])}, path, metadata={"format": "pt"})
    code = run("resize", adapter, tmp_path / "out", "--rank", 2)
    captured = capsys.readouterr()
    assert code in {1, 2}
    assert key.removeprefix(PREFIX).removesuffix(".lora_A.weight") in captured.out + captured.err


@pytest.mark.parametrize("verb", ["resize", "merge"])
def test_an_adapter_of_an_altered_base_needs_base_restored(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_adapter(tmp_path / "pissa", init_lora_weights="pissa")
    refused(tmp_path, [verb, source, tmp_path / "out", "--rank", 2], "--base-restored", capsys)
    assert run(verb, source, tmp_path / "out", "--rank", 2, "--base-restored") == 0
