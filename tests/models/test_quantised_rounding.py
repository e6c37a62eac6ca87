"""Rounding noise of quantised weights: none of it passes for an update, and updates of a step and more are found."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core import update_with_spectrum
from lowrank_core.cli.app import main
from lowrank_core.models.files.encodings import Bytes
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.rank_choice import AboveNoise
from lowrank_core.rounding_noise import code_steps, rounding_noise, ulps
from tests.test_rounding_noise import difference, low_rank, weights

BFLOAT16, E4M3, E5M2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
KINDS = ("heavy", "rows", "outliers")
# The dtype of the numbers, and how many entries of each axis have one scale; no scales at all for "plain".
STORAGES = {
    "plain e4m3": (E4M3, None),
    "plain e5m2": (E5M2, None),
    "e4m3, one scale": (E4M3, (1000, 1000)),
    "e5m2, one scale": (E5M2, (1000, 1000)),
    "e4m3, 128×128 scales": (E4M3, (128, 128)),
    "e4m3, row scales": (E4M3, (1, 1000)),
    "int8, row scales": (np.int8, (1, 1000)),
}


def stored(weight, storage, margin=1.0):
    """Numbers as a storage has them, and their steps; the largest of a block is `margin` below what the dtype has."""
    dtype, block = STORAGES[storage]
    if block is None:
        return weight.astype(dtype), None
    m, n = weight.shape
    b, c = min(block[0], m), min(block[1], n)
    largest = 127.0 if dtype is np.int8 else float(ml_dtypes.finfo(dtype).max)
    starts = [np.arange(0, length, size) for length, size in ((m, b), (n, c))]
    sizes = np.maximum.reduceat(np.maximum.reduceat(np.abs(weight), starts[0], axis=0), starts[1], axis=1)
    scales = (margin * sizes / largest).astype(np.float32)
    quotients = weight / np.repeat(np.repeat(scales, b, axis=0)[:m], c, axis=1)[:, :n]
    numbers = np.round(quotients).astype(np.int8) if dtype is np.int8 else quotients.astype(dtype)
    blocks = Bytes(np.dtype(dtype).name, (b, c)).unpack([numbers, scales])
    return blocks.values(), blocks.steps()


@pytest.mark.parametrize("storage", STORAGES)
def test_rounding_alone_has_no_rank(storage):
    rng = np.random.default_rng(1)
    none = np.zeros(3, dtype=int)
    for case in range(100):
        fine = weights(rng, (140, 60), KINDS[case % 3]).astype(np.float32)
        quantised, steps = stored(fine, storage)
        again, other_steps = stored(fine, storage, margin=rng.uniform(1.05, 1.5))
        tuned = fine.astype(BFLOAT16)
        one = rounding_noise(fine, quantised, tuned_step=steps).one_side
        two = rounding_noise(quantised, tuned, base_step=steps).two_sides
        both = rounding_noise(quantised, again, base_step=steps, tuned_step=other_steps).two_sides
        none += [
            one.rank(difference(fine, quantised)) == 0,
            two.rank(difference(quantised, tuned)) == 0,
            both.rank(difference(quantised, again)) == 0,
        ]
    assert none.min() >= 95


@pytest.mark.parametrize("storage", STORAGES)
def test_an_update_of_a_step_or_more_is_recovered(storage):
    rng = np.random.default_rng(2)
    # An update of one step in the mean leaves rows of larger numbers as they are, which int8's scale is for.
    strengths = (2.0, 4.0, 8.0) if storage.startswith("int8") else (1.0, 2.0, 8.0)
    recovered = 0
    for case in range(30):
        base, base_step = stored(weights(rng, (240, 160), KINDS[case % 3]).astype(np.float32), storage)
        steps = ulps(base) if base_step is None else base_step
        update = strengths[case // 3 % 3] * np.sqrt(np.mean(steps**2)) * low_rank(rng, base.shape, 3)
        tuned, tuned_step = stored((base.astype(np.float64) + update).astype(np.float32), storage)
        noise = rounding_noise(base, tuned, base_step=base_step, tuned_step=tuned_step)
        assert noise.applies
        recovered += noise.one_side.rank(difference(base, tuned)) == 3
    assert recovered >= 0.95 * 30


@pytest.mark.parametrize("storage", ["plain e4m3", "e4m3, 128×128 scales", "int8, row scales"])
def test_an_update_of_many_steps_of_a_quantised_base_is_recovered_from_a_fine_tuned_weight(storage):
    rng = np.random.default_rng(3)
    recovered = 0
    for case in range(15):
        fine = weights(rng, (240, 160), KINDS[case % 3]).astype(np.float32)
        base, base_step = stored(fine, storage)
        steps = ulps(base) if base_step is None else base_step
        tuned = (fine + 2 * np.sqrt(np.mean(steps**2)) * low_rank(rng, fine.shape, 3)).astype(BFLOAT16)
        noise = rounding_noise(base, tuned, base_step=base_step)
        recovered += noise.two_sides.rank(difference(base, tuned)) == 3
    assert recovered >= 0.95 * 15


@pytest.mark.parametrize("margin", [1.0, 1.001])
@pytest.mark.parametrize("storage", ["e4m3, one scale", "int8, row scales"])
def test_far_under_a_step_the_model_does_not_apply_whatever_the_scales(storage, margin):
    rng = np.random.default_rng(4)
    fine = weights(rng, (120, 90), "heavy").astype(np.float32)
    base, base_step = stored(fine, storage)
    update = 0.05 * np.sqrt(np.mean(base_step**2)) * low_rank(rng, fine.shape, 3)
    tuned, tuned_step = stored((base + update).astype(np.float32), storage, margin=margin)
    noise = rounding_noise(base, tuned, base_step=base_step, tuned_step=tuned_step)
    assert not noise.applies
    assert noise.unchanged > 0.6


def test_steps_of_a_uniform_code_are_its_spacing_and_others_have_the_variance_of_their_cells():
    assert np.allclose(code_steps(np.arange(-3.0, 4.0), 3.5), 1.0)
    levels, limit = np.array([-1.0, -0.25, 0.0, 0.5, 1.0]), 1.0
    numbers = np.random.default_rng(5).uniform(-limit, limit, 400_000)
    nearest = np.abs(numbers[:, np.newaxis] - levels).argmin(axis=1)
    errors = numbers - levels[nearest]
    measured = [np.sqrt(12 * np.mean(errors[nearest == index] ** 2)) for index in range(len(levels))]
    assert np.allclose(code_steps(levels, limit), measured, rtol=0.01)


@pytest.fixture
def pair(tmp_path):
    """A float8 base with blocks of scales, and its bfloat16 original: changed in one layer of two."""
    rng = np.random.default_rng(6)
    base, tuned = {}, {}
    for name, size in {"changed": 1.0, "same": 0.0}.items():
        fine = 0.02 * rng.standard_normal((256, 192)).astype(np.float32)
        scales = np.abs(fine.reshape(2, 128, 192)).max(axis=(1, 2), keepdims=True) / 448
        scales = np.concatenate([scales, scales], axis=2)
        numbers = (fine.reshape(2, 128, 192) / scales[..., :1]).astype(E4M3).reshape(256, 192)
        base |= {f"{name}.weight": numbers, f"{name}.weight_scale_inv": scales[:, 0].astype(np.float32)}
        update = size * update_with_spectrum([1.0, 0.8, 0.6], fine.shape, rng=rng)
        tuned[f"{name}.weight"] = (fine + update).astype(BFLOAT16)
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def test_inspect_says_how_much_of_an_update_of_a_float8_base_is_float8(pair):
    rounding = {layer.name: layer.rounding for layer in inspect(pair[1], pair[0]).layers}
    assert [rounding[name].rank_above[1] for name in ("changed", "same")] == [3, 0]
    assert rounding["same"].variance_below[1] == 1.0
    assert rounding["changed"].variance_below[1] < 0.2


def test_extract_above_noise_leaves_the_rounding_of_a_float8_base_out(pair, tmp_path):
    report = extract(*pair, tmp_path / "out", rank=AboveNoise(sides=2))
    assert {layer.name: layer.rank for layer in report.layers} == {"changed": 3, "same": 0}
    assert not report.warnings


def test_extract_warns_where_the_base_is_coarser_and_one_side_is_taken_for_rounded(pair, tmp_path):
    report = extract(*pair, tmp_path / "out", rank=AboveNoise(max_rank=4))
    assert any("more coarsely than the tuned checkpoint in 2 of 2 layers" in warning for warning in report.warnings)


def test_the_table_says_where_the_base_is_coarser(pair, capsys):
    assert main(["inspect", str(pair[1]), "--base", str(pair[0])]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "In 2 layers the base is stored more coarsely" in printed
    assert "Update of 2 layers: difference of the two checkpoints, base dequantised." in printed
