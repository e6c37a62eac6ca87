"""Verdicts: each with an adapter that deserves it and one that nearly does, and none on sound adapters."""

import numpy as np
import pytest

from lowrank_core.models import inspect
from lowrank_core.models.inspection.verdicts import CONDITIONS, check_conditions

SHAPE = (24, 16)
RANK = 8
# σ₁²/N² is 1 / 8.
FLAT = np.ones(RANK)


def module(name, values, rng):
    """Return the factors of a module whose update has these singular values; its scale is 1."""
    m, n = SHAPE
    U, V = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (m, n))
    # safetensors writes memory as it is, whatever the order of its axes.
    A, B = (np.ascontiguousarray(factor, np.float32) for factor in (values[:, np.newaxis] * V.T, U))
    return {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}


@pytest.fixture
def inspected(write_peft, rng):
    """Return the inspection of an adapter whose layers have these singular values, by name."""

    def inspected(layers, *options, **tensors):
        factors = {key: tensor for name, values in layers.items() for key, tensor in module(name, values, rng).items()}
        path = write_peft(factors | tensors, f"adapter{rng.integers(1 << 40)}", r=RANK, lora_alpha=RANK)
        return inspect(path, *options)

    return inspected


def blocks(*spectra):
    return {f"layers.{block}.proj": np.asarray(values, dtype=float) for block, values in enumerate(spectra)}


def with_fraction(fraction, rank=RANK):
    """Return singular values of which the first has this fraction of the squared norm, and the others equal parts."""
    return np.sqrt(np.concatenate([[fraction], np.full(rank - 1, (1 - fraction) / (rank - 1))]))


def test_an_update_of_zero_is_named(inspected):
    (verdict,) = inspected(blocks(FLAT, 0 * FLAT, FLAT, 0 * FLAT)).verdicts
    assert (verdict.kind, verdict.layers, verdict.number) == ("zero", ("layers.1.proj", "layers.3.proj"), 2.0)
    assert verdict.sentence == "The update is zero (norm 0) in 2 of 4 layers: layers.1.proj, layers.3.proj."


def test_an_adapter_of_zeros_changes_nothing(inspected):
    (verdict,) = inspected(blocks(0 * FLAT, 0 * FLAT)).verdicts
    assert verdict.sentence == "The update is zero in every layer (2 of 2 have norm 0): it changes nothing."


def test_a_tiny_update_is_not_zero(inspected):
    assert inspected(blocks(FLAT, 1e-30 * FLAT)).verdicts == ()


def test_a_layer_that_was_not_tuned_is_no_fault_of_a_checkpoint(write_file, rng):
    base = {f"{name}.weight": rng.standard_normal(SHAPE) for name in "ab"}
    path = write_file(base, "base.safetensors")
    part = write_file(base | {"b.weight": base["b.weight"] + 1.0}, "part.safetensors")
    assert inspect(part, path).verdicts == ()
    (verdict,) = inspect(write_file(base, "same.safetensors"), path).verdicts
    assert (verdict.kind, verdict.layers) == ("zero", ("a", "b"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_layer_that_is_not_finite_is_named(inspected, value):
    B = np.ones((SHAPE[0], RANK), np.float32)
    B[1, 2] = value
    tensors = {"x.lora_A.weight": np.ones((RANK, SHAPE[1]), np.float32), "x.lora_B.weight": B}
    (verdict,) = inspected(blocks(FLAT), **tensors).verdicts
    assert (verdict.kind, verdict.layers, verdict.number) == ("not-finite", ("x",), 1.0)
    assert verdict.sentence.startswith("1 of 2 layers has no finite update: x; of the first, 'base_model.model.x.")
    assert f"contains NaN or infinity in 1 of its {B.size} entries" in verdict.sentence


def test_a_layer_that_failed_for_another_reason_is_finite(inspected):
    tensors = {
        "x.lora_A.weight": np.ones((RANK, SHAPE[1]), np.float32),
        "x.lora_B.weight": np.full((SHAPE[0], RANK + 1), np.finfo(np.float32).max),
    }
    report = inspected(blocks(FLAT), **tensors)
    assert "disagree" in report.failures["x"]
    assert report.verdicts == ()


def test_a_checkpoint_that_is_not_finite_is_named(write_file, rng):
    base = {f"{name}.weight": rng.standard_normal(SHAPE) for name in "ab"}
    tuned = {key: weight + 1.0 for key, weight in base.items()}
    tuned["a.weight"][0, 0] = np.inf
    report = inspect(write_file(tuned, "tuned.safetensors"), write_file(base, "base.safetensors"))
    assert [(verdict.kind, verdict.layers) for verdict in report.verdicts] == [("not-finite", ("a",))]


@pytest.mark.parametrize(("fraction", "is_spike"), [(0.81, False), (0.83, True)])
def test_a_spike_is_ten_times_as_large_beside_the_rest_as_in_layers_that_are_alike(inspected, fraction, is_spike):
    """The others have σ₁²/N² = 0.32, odds of 0.47: a spike has odds of 4.7, and a fraction of 4.7 / 5.7 = 0.825."""
    report = inspected(blocks(*[with_fraction(0.32)] * 8, with_fraction(fraction)))
    assert [verdict.kind for verdict in report.verdicts] == ["spike"] * is_spike
    if is_spike:
        (verdict,) = report.verdicts
        assert verdict.layers == ("layers.8.proj",)
        assert verdict.number == pytest.approx(fraction, rel=1e-5)
        assert verdict.sentence == (
            "One direction has 83.0% of the squared norm (σ₁²/N²) in layers.8.proj; the median of the 9 layers of its "
            "kind is 32.0%, and above 82.5% it is a spike."
        )


@pytest.mark.parametrize(("deviations", "is_spike"), [(5.9, False), (6.1, True)])
def test_a_spike_is_six_deviations_above_the_median(inspected, deviations, is_spike):
    """Log-odds of 0, ±0.3 and ±0.6 have the median 0 and the MAD 0.3; the tenth moves neither."""
    odds = [-0.6, -0.6, -0.3, -0.3, 0.0, 0.3, 0.3, 0.6, 0.0, 1.4826 * 0.3 * deviations]
    report = inspected(blocks(*(with_fraction(1 / (1 + np.exp(-each))) for each in odds)))
    assert [verdict.layers for verdict in report.verdicts] == [("layers.9.proj",)] * is_spike


def test_a_spike_has_half_of_the_squared_norm(inspected):
    """Odds of ten times those of a flat spectrum of rank 16, 1 / 15, are a fraction of 0.4, which is less than half."""
    flat = np.ones(16)
    for fraction, is_spike in ((0.49, False), (0.51, True)):
        report = inspected(blocks(*[flat] * 8, with_fraction(fraction, 16)))
        assert bool(report.verdicts) is is_spike


def test_fewer_than_eight_layers_of_a_kind_have_no_spike(inspected):
    assert inspected(blocks(*[FLAT] * 6, with_fraction(0.99))).verdicts == ()
    assert len(inspected(blocks(*[FLAT] * 7, with_fraction(0.99))).verdicts) == 1


def test_layers_are_compared_with_those_of_their_kind_and_rank(inspected):
    """Of lower rank, a layer has fewer directions to spread over."""
    others = {f"layers.{block}.other": with_fraction(0.99) for block in range(8)}
    assert inspected(blocks(*[FLAT] * 8) | others).verdicts == ()
    assert inspected(blocks(*[FLAT] * 8, with_fraction(0.99, 2))).verdicts == ()


@pytest.mark.parametrize("rank", [1, 2])
def test_an_adapter_in_which_all_layers_are_one_direction_has_no_layer_that_differs(inspected, rank):
    values = np.concatenate([[1.0], np.zeros(rank - 1)])
    assert inspected(blocks(*[values * block for block in range(1, 13)])).verdicts == ()


def test_twenty_sound_adapters_have_no_verdict(inspected):
    """Ranks from 1 to 16, 12 blocks of four kinds, each with a spectrum that falls at a rate of its own."""
    rng = np.random.default_rng(7)
    for seed in range(20):
        rank = (1, 2, 4, 8, 16)[seed % 5]
        layers = {}
        for kind, rate in zip(("q", "v", "up", "down"), rng.uniform(0.2, 0.9, 4), strict=True):
            for block, own in enumerate(rate + 0.1 * rng.standard_normal(12)):
                layers[f"layers.{block}.{kind}"] = rng.lognormal() * np.arange(1, rank + 1) ** -abs(own)
        assert inspected(layers).verdicts == ()


def test_conditions_are_the_kinds_of_verdicts():
    check_conditions(CONDITIONS)
    with pytest.raises(ValueError, match=r"^'zeros' is not a condition: conditions are zero, not-finite"):
        check_conditions(["zero", "zeros"])


def test_several_layers_that_are_not_finite_are_counted(inspected):
    tensors = {}
    for name in ("x", "y"):
        tensors[f"{name}.lora_A.weight"] = np.ones((RANK, SHAPE[1]), np.float32)
        tensors[f"{name}.lora_B.weight"] = np.full((SHAPE[0], RANK), np.nan, np.float32)
    (verdict,) = inspected(blocks(FLAT), **tensors).verdicts
    assert verdict.sentence.startswith("2 of 3 layers have no finite update: x, y; of the first, ")
