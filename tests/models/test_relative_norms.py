"""Updates beside the weights that they are added to, and factors that are larger than what they stand for."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import AboveNoise, Budget, apply, convert, extract, merge, plan, resize, verify

SHAPES = {"h.0.q": (6, 8), "h.1.q": (6, 8), "h.2.out": (5, 4)}


def norms(tensors):
    return {name: float(np.linalg.norm(tensor.astype(np.float64))) for name, tensor in tensors.items()}


@pytest.fixture
def files(tmp_path, rng):
    """A base, a fine-tune of rank 2, and the same update as an adapter of a scale of 1."""
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    B = {name: rng.standard_normal((m, 2)).astype(np.float32) for name, (m, _) in SHAPES.items()}
    A = {name: rng.standard_normal((2, n)).astype(np.float32) for name, (_, n) in SHAPES.items()}
    for path, weights in (("base", base), ("tuned", {name: base[name] + B[name] @ A[name] for name in base})):
        save_file({f"{name}.weight": weight for name, weight in weights.items()}, tmp_path / f"{path}.safetensors")
    factors = {f"transformer.{name}.lora_A.weight": A[name] for name in SHAPES}
    factors |= {f"transformer.{name}.lora_B.weight": B[name] for name in SHAPES}
    save_file(factors, tmp_path / "lora.safetensors")
    updates = norms({name: B[name].astype(np.float64) @ A[name] for name in SHAPES})
    return tmp_path, norms(base), updates


def check(layers, files):
    _, base, updates = files
    assert {layer.name.removeprefix("transformer.") for layer in layers} == SHAPES.keys()
    for layer in layers:
        name = layer.name.removeprefix("transformer.")
        figures = getattr(layer, "rounding", layer)
        assert figures.base_norm == pytest.approx(base[name], rel=1e-12)
        assert figures.relative_norm == pytest.approx(updates[name] / base[name], rel=1e-5)


def together(files):
    _, base, updates = files
    return math.hypot(*updates.values()) / math.hypot(*base.values())


@pytest.mark.parametrize("verb", ["extract", "extract an adapter", "resize", "merge"])
def test_written_adapters_know_their_base(files, verb):
    folder = files[0]
    base, tuned, lora = (folder / f"{name}.safetensors" for name in ("base", "tuned", "lora"))
    report = {
        "extract": lambda: extract(base, tuned, folder / "out", rank=2),
        "extract an adapter": lambda: extract(base, lora, folder / "out.safetensors", rank=2),
        "resize": lambda: resize(lora, folder / "out.safetensors", rank=1, base=base),
        "merge": lambda: merge([lora], folder / "out.safetensors", base=base),
    }[verb]()
    check(report.layers, files)
    assert report.totals.relative_norm == pytest.approx(together(files), rel=1e-5)


def test_several_ranks_and_budgets_know_it_too(files):
    base, tuned = (files[0] / f"{name}.safetensors" for name in ("base", "tuned"))
    for report in extract(base, tuned, files[0] / "out", rank=[1, 2], dry_run=True):
        check(report.layers, files)
    check(extract(base, tuned, files[0] / "out", rank=Budget(parameters=60), dry_run=True).layers, files)


def test_without_a_base_nothing_is_said_of_it(files):
    lora, out = files[0] / "lora.safetensors", files[0] / "out.safetensors"
    for report in (resize(lora, out, rank=1, dry_run=True), merge([lora], out, dry_run=True)):
        assert (
            {layer.base_norm for layer in report.layers} == {layer.relative_norm for layer in report.layers} == {None}
        )
        assert report.totals.relative_norm is None


def test_a_base_of_other_shapes_says_nothing_of_a_layer(files):
    folder = files[0]
    save_file({"h.0.q.weight": np.ones((6, 8)), "h.1.q.weight": np.ones((3, 8))}, folder / "other.safetensors")
    report = resize(
        folder / "lora.safetensors", folder / "out", rank=1, base=folder / "other.safetensors", dry_run=True
    )
    known = {layer.name.removeprefix("transformer."): layer.base_norm for layer in report.layers}
    assert known == {"h.0.q": pytest.approx(math.sqrt(48)), "h.1.q": None, "h.2.out": None}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_models_know_it(files, dtype):
    folder = files[0]
    base, lora, merged = (folder / f"{name}.safetensors" for name in ("base", "lora", "merged"))
    for report in (apply(base, lora, merged, dtype=dtype), verify(base, lora, merged)):
        check(report.layers, files)
        assert report.rounding.relative_norm == pytest.approx(together(files), rel=1e-5)


def test_factors_larger_than_their_matrices_are_warned_of(files):
    """6·8 = 48 entries, and 14·r of the factors, so that 3 is the largest rank below; of 5 × 4, 2."""
    base, tuned, lora = (files[0] / f"{name}.safetensors" for name in ("base", "tuned", "lora"))
    for rank, larger in ((2, 0), (3, 1), (4, 3)):
        report = extract(base, tuned, files[0] / "out", rank=rank, dry_run=True)
        warned = [warning for warning in report.warnings if "larger than" in warning]
        assert len(warned) == bool(larger)
        if warned:
            assert f"the factors of {larger} of 3 layers are larger than the matrices" in warned[0]
            assert f"those of 'h.2.out' have rank {rank} and {9 * rank / 20:.3g} times its 5 × 4 entries" in warned[0]
            assert "Up to rank 2 they are smaller; or leave such layers out (--exclude)" in warned[0]
    assert not resize(lora, files[0] / "out", rank=2, dry_run=True).warnings


def test_factors_as_large_as_their_matrix_are_not_warned_of(tmp_path, rng):
    """Of 4 × 4, rank 2 has 2·(4 + 4) = 16 entries, and so has the matrix."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned")]
    for path, weight in zip(paths, (np.zeros((4, 4)), rng.standard_normal((4, 4))), strict=True):
        save_file({"q.weight": weight}, path)
    reports = extract(*paths, tmp_path / "out", rank=[2, 3], dry_run=True)
    assert [len(report.warnings) for report in reports] == [0, 1]


def test_a_plan_warns_of_them_and_a_matrix_of_one_row_is_better_left_out(tmp_path, rng):
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned")]
    save_file({"wide.weight": np.zeros((1, 8)), "gate.weight": np.zeros((8, 8))}, paths[0])
    save_file({"wide.weight": np.ones((1, 8)), "gate.weight": rng.standard_normal((8, 8))}, paths[1])
    planned = plan(paths[1], paths[0], budget=Budget(variance=1.0))
    (warning,) = planned.warnings
    assert "the factors of 2 of 2 layers" in warning
    assert "'gate' have rank 8 and 2 times its 8 × 8 entries" in warning
    (warning,) = extract(*paths, tmp_path / "out", rank=1, dry_run=True).warnings
    assert "'wide' have rank 1 and 1.12 times its 1 × 8 entries. Leave such layers out" in warning


def test_a_converted_adapter_is_warned_of_as_it_is(tmp_path):
    lora = tmp_path / "lora.safetensors"
    factors = {"lora_unet_q.lora_down.weight": np.ones((3, 4)), "lora_unet_q.lora_up.weight": np.ones((4, 3))}
    save_file({name: factor.astype(np.float32) for name, factor in factors.items()}, lora)
    report = convert(lora, tmp_path / "out.safetensors", dry_run=True)
    assert json.dumps(report.warnings).count("larger than the matrices") == 1


@pytest.mark.parametrize("rank", [2, [1, 2], AboveNoise()])
def test_an_extraction_reads_each_weight_once(files, monkeypatch, rank):
    opened = Counter()
    open_path = Path.open

    def counting(path, *arguments, **options):
        # Weights are read without a buffer, and each is sought anew.
        opened[path.name] += options.get("buffering") == 0 and path.parent == files[0]
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", counting)
    extract(files[0] / "base.safetensors", files[0] / "tuned.safetensors", rank=rank)
    assert +opened == dict.fromkeys(("base.safetensors", "tuned.safetensors"), len(SHAPES))
