"""What ``inspect`` and ``extract --above-noise`` say of weights stored in half precision."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core import update_with_spectrum
from lowrank_core.cli.app import main


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Two layers of bfloat16: one changed by a rank of 2 and many steps, one by far less than a step."""
    rng = np.random.default_rng(0)
    base = {f"h.{i}.proj.weight": rng.standard_normal((60, 40)).astype(ml_dtypes.bfloat16) for i in range(2)}
    tuned = {}
    for (name, weight), size in zip(base.items(), (10.0, 0.01), strict=True):
        update = size * update_with_spectrum([1.0, 0.9], (60, 40), rng=rng)
        tuned[name] = (weight.astype(np.float64) + update).astype(ml_dtypes.bfloat16)
    for folder, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    return str(tmp_path / "base"), str(tmp_path / "tuned")


def test_inspect_shows_the_rank_above_rounding(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["inspect", pair[1], "--base", pair[0], "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    section = printed.partition("Rounding of the stored weights")[2]
    large, small = (next(line for line in section.splitlines() if f"{i}.proj" in line) for i in range(2))
    figures = [layer["rounding"] for layer in json.loads(report.read_text())["layers"]]
    assert figures[0]["rank_above_rounding_one_side"] == 2
    assert f"{figures[0]['rounding_edge_one_side']:.3g}" in large
    assert f"{100 * figures[0]['variance_below_rounding_one_side']:.2f} %" in large
    assert "?" not in large
    assert f"{100 * figures[1]['unchanged']:.1f} % ?" in small
    assert "? in 1 layer: most entries that could have changed did not" in section


def test_weights_in_single_precision_have_no_rounding_section(
    tuning: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tuning[1]), "--base", str(tuning[0])]) == 0
    assert "Rounding" not in capsys.readouterr().out


def test_extract_above_noise(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["extract", *pair, str(out), "--above-noise"]) == 0
    assert "cannot be told apart in 1 of 2 layers" in " ".join(capsys.readouterr().out.split())
    factors = load_file(out / "adapter_model.safetensors")
    assert {tensor.shape for tensor in factors.values()} == {(2, 40), (60, 2)}
    assert main(["extract", *pair, str(out), "--above-noise", "--sides", "2", "--max-rank", "1", "--force"]) == 0
    assert {tensor.shape for tensor in load_file(out / "adapter_model.safetensors").values()} == {(1, 40), (60, 1)}
