"""Figures of an update beside the base's weights: norms, what a merge loses, and intruder dimensions."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models import inspect, to_json
from lowrank_core.models.inspection import intruders, layers
from lowrank_core.models.inspection.report import to_rows

SHAPE = (24, 16)


def dense_count(weight, update, leading):
    """Count intruders by LAPACK's decompositions of both matrices, as the definition has them."""
    U, values, _ = np.linalg.svd(weight.astype(float), full_matrices=False)
    Y = np.linalg.svd(weight.astype(float) + update, full_matrices=False)[0][:, :leading]
    cosines = np.abs(U[:, values > 1e-12 * values[0]].T @ Y)
    return int(np.sum(np.max(cosines, axis=0) < 0.5))


def factors(rng, shape=SHAPE, rank=2, size=0.1):
    return size * rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))


@pytest.fixture
def write_adapter(write_peft):
    def write(B, A, name="proj", **config):
        tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        return write_peft({key: tensor.astype(np.float32) for key, tensor in tensors.items()}, lora_alpha=2, **config)

    return write


def assert_norms(figures, weight, update):
    weight = weight.astype(float)
    assert figures.norm == pytest.approx(np.linalg.norm(weight), rel=1e-6)
    assert figures.spectral_norm == pytest.approx(np.linalg.norm(weight, 2), rel=1e-6)
    assert figures.relative_norm == pytest.approx(np.linalg.norm(update) / np.linalg.norm(weight), rel=1e-5)
    relative = np.linalg.norm(update, 2) / np.linalg.norm(weight, 2)
    assert figures.relative_spectral_norm == pytest.approx(relative, rel=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
def test_norms_and_merge_of_an_adapter_are_those_of_the_dense_arithmetic(
    write_adapter, write_file, rng, transposed, dtype
):
    B, A = (factor.astype(np.float32).astype(float) for factor in factors(rng, size=0.003))
    update = (B @ A).T if transposed else B @ A
    weight = rng.standard_normal(update.shape).astype(dtype)
    path = write_file({"model.proj.weight": weight}, "base.safetensors")
    report = inspect(write_adapter(B, A, fan_in_fan_out=transposed), path, intruders=4)
    figures = report.layers[0].base
    assert_norms(figures, weight, update)
    exact = weight.astype(float) + update
    change = exact.astype(dtype).astype(float) - weight.astype(float)
    # Both are zero in float64 but for the sum's own rounding.
    assert figures.merge_error == pytest.approx(np.linalg.norm(change - update) / np.linalg.norm(update), abs=1e-6)
    assert figures.merge_unchanged == pytest.approx(np.mean(change == 0), abs=1e-12)
    assert figures.intruders == report.totals.intruders == dense_count(weight, update, 4)
    assert report.totals.relative_norm == pytest.approx(figures.relative_norm)


def test_figures_of_two_checkpoints_are_without_a_merge(write_file, rng):
    base = {"a.weight": rng.standard_normal(SHAPE), "b.weight": rng.standard_normal((8, 3, 2, 2))}
    tuned = {key: weight + 0.1 * rng.standard_normal(weight.shape) for key, weight in base.items()}
    report = inspect(write_file(tuned, "tuned.safetensors"), write_file(base, "base.safetensors"))
    for layer in report.layers:
        weight, after = (tensors[f"{layer.name}.weight"].reshape(layer.shape) for tensors in (base, tuned))
        assert_norms(layer.base, weight, after - weight)
        assert (layer.base.merge_error, layer.base.merge_unchanged, layer.base.intruders) == (None, None, None)
    whole = [np.concatenate([weight.ravel() for weight in tensors.values()]) for tensors in (base, tuned)]
    assert report.totals.relative_norm == pytest.approx(np.linalg.norm(whole[1] - whole[0]) / np.linalg.norm(whole[0]))


def test_a_layer_too_large_for_memory_has_the_figures_of_norms(write_file, rng, monkeypatch):
    monkeypatch.setattr(layers, "is_large", lambda _pair: True)
    base = rng.standard_normal((20, 6)).astype(np.float32)
    tuned = base + rng.standard_normal(base.shape).astype(np.float32)
    report = inspect(write_file({"a": tuned}, "t.safetensors"), write_file({"a": base}, "b.safetensors"), intruders=3)
    figures = report.layers[0].base
    assert figures.relative_norm == pytest.approx(np.linalg.norm(tuned - base) / np.linalg.norm(base), rel=1e-5)
    assert (figures.spectral_norm, figures.intruders) == (None, None)
    assert "is without 1 layer too large to be examined, as 'a'" in report.warnings[-1]
    assert not report.complete
    without = inspect(report.path, report.base)
    assert (without.complete, without.warnings) == (True, ())


def test_an_expert_is_beside_its_own_matrix_of_the_stack(write_file, rng):
    base = {"experts.down_proj": rng.standard_normal((3, *SHAPE))}
    tuned = {"experts.down_proj": base["experts.down_proj"] * np.array([1.1, 1.2, 1.3]).reshape(3, 1, 1)}
    report = inspect(write_file(tuned, "tuned.safetensors"), write_file(base, "base.safetensors"))
    assert [layer.base.relative_norm for layer in report.layers] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(("name", "shape"), [("other", SHAPE), ("proj", (5, 7))])
def test_a_base_without_a_weight_of_any_layers_name_and_shape_is_refused(write_adapter, write_file, rng, name, shape):
    base = write_file({f"{name}.weight": rng.standard_normal(shape)}, "base.safetensors")
    with pytest.raises(ValueError, match=r"no weight of the name .* any layer of .*'proj' \(24 × 16\)"):
        inspect(write_adapter(*factors(rng)), base)


def test_a_layer_that_the_base_has_no_weight_for_is_missing_from_the_figures(write_peft, write_file, rng):
    tensors = {}
    for name in ("k", "q"):
        B, A = factors(rng)
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    base = write_file({"q.weight": rng.standard_normal(SHAPE)}, "base.safetensors")
    report = inspect(write_peft(tensors), base, intruders=4)
    assert [layer.base is None for layer in report.layers] == [True, False]
    assert report.warnings == ("the base has no readable weight of the name and shape of 1 layer, as 'k' (24 × 16)",)
    assert not report.complete


def test_a_base_that_is_not_finite_is_that_layers_failure(write_adapter, write_file, rng):
    base = write_file({"proj.weight": np.full(SHAPE, np.nan)}, "base.safetensors")
    report = inspect(write_adapter(*factors(rng)), base)
    assert "the base's weight of 'proj' contains NaN or infinity in 384 of its 384" in report.failures["proj"]
    assert [verdict.kind for verdict in report.verdicts] == ["not-finite"]


def test_a_base_of_zeros_has_no_ratio_in_json(write_adapter, write_file, rng):
    base = write_file({"proj.weight": np.zeros(SHAPE)}, "base.safetensors")
    report = inspect(write_adapter(*factors(rng)), base)
    assert report.layers[0].base.relative_norm == np.inf
    assert report.totals.relative_norm is None


def test_json_and_rows_have_every_figure(write_adapter, write_file, rng):
    base = write_file({"proj.weight": rng.standard_normal(SHAPE)}, "base.safetensors")
    report = inspect(write_adapter(*factors(rng)), base, intruders=2)
    described = to_json(report)["layers"][0]["base"]
    row = to_rows(report)[0]
    for name, figure in described.items():
        assert figure is not None
        assert row[f"base_{name}" if name in ("norm", "spectral_norm") else name] == figure
    assert row["norm"] == report.layers[0].norm


def lost(weight, update):
    """Return the fraction of the squared norm of an update that a merge loses, and of the weights that stay."""
    exact = weight.astype(float) + update
    stored = exact.astype(np.float16).astype(float)
    return np.sum((stored - exact) ** 2) / np.sum(update**2), np.mean(stored == weight.astype(float))


@pytest.mark.parametrize(("fraction", "is_lost"), [(0.89, False), (0.91, True)])
def test_an_update_under_the_rounding_of_the_weights_is_named(write_adapter, write_file, rng, fraction, is_lost):
    B, A = (factor.astype(np.float32).astype(float) for factor in factors(rng, size=1e-3))
    weight = rng.uniform(1, 2, SHAPE).astype(np.float16)
    scales = np.geomspace(1.0, 1e-3, 4000)
    scale = next(scale for scale in scales if lost(weight, scale * B @ A)[0] >= fraction)
    B = (scale * B).astype(np.float32).astype(float)
    expected, unchanged = lost(weight, B @ A)
    base = write_file({"proj.weight": weight}, "base.safetensors")
    adapter = write_adapter(B, A)
    report = inspect(adapter, base)
    assert report.layers[0].base.merge_error ** 2 == pytest.approx(expected, rel=1e-6)
    assert inspect(adapter).verdicts == ()
    assert bool(report.verdicts) is is_lost
    for verdict in report.verdicts:
        assert (verdict.kind, verdict.layers) == ("under-rounding", ("proj",))
        assert verdict.number == pytest.approx(expected, rel=1e-6)
        assert f"A merge loses {expected:.1%} of its squared norm in proj, where {unchanged:.1%} of" in verdict.sentence


def test_the_same_update_is_not_under_the_rounding_of_a_finer_base(write_adapter, write_file, rng):
    B, A = factors(rng, size=1e-6)
    weight = rng.uniform(1, 2, SHAPE).astype(np.float16)
    adapter = write_adapter(B, A)
    kinds = [
        [verdict.kind for verdict in inspect(adapter, write_file({"proj.weight": each}, f"{i}.safetensors")).verdicts]
        for i, each in enumerate((weight, weight.astype(np.float32), weight.astype(np.float64)))
    ]
    assert kinds == [["under-rounding"], [], []]


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
@pytest.mark.parametrize("small", [0, 1024])
def test_intruders_are_counted_as_defined(rng, monkeypatch, shape, small):
    """From none to all of eight, by the Lanczos steps with what they leave open, and by all left vectors of W."""
    monkeypatch.setattr(intruders, "_SMALL", small)
    weight = rng.standard_normal(shape).astype(np.float32)
    update = rng.standard_normal((shape[0], 6)) @ rng.standard_normal((6, shape[1]))
    counts = []
    for size in (0.01, 0.1, 0.3, 1.0, 10.0):
        counts.append(intruders.count_intruders(weight, size * update, 8))
        assert counts[-1] == dense_count(weight, size * update, 8)
    assert counts[0] == 0
    assert len(set(counts)) > 2


def test_steps_decide_only_what_is_so(rng):
    """Unit vectors with cosines on both sides of ½, at leading and at inner singular values."""
    m, steps = 120, 40
    U, V = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
    weight = (U * np.concatenate([[9.0, 6.0, 4.0], np.linspace(2, 0.1, m - 3)])) @ V.T
    sure = [0, 0]
    for index in (0, 1, 2, 3, 40, m - 1):
        others = np.delete(U, index, axis=1)
        vectors = []
        for cosine in (0.0, 0.3, 0.49, 0.51, 0.9):
            rest = others @ rng.standard_normal(m - 1)
            vectors.append(cosine * U[:, index] + np.sqrt(1 - cosine**2) * rest / np.linalg.norm(rest))
        Y = np.stack(vectors, axis=1)
        largest = np.max(np.abs(U.T @ Y), axis=0)
        intruder, near = intruders.decide_by_steps(weight, Y, steps)
        assert not np.any(intruder & (largest >= 0.5))
        assert not np.any(near & (largest < 0.5))
        sure = [sure[0] + np.sum(intruder), sure[1] + np.sum(near)]
    # Of 18 intruders and 12 others; those at the ends of the spectrum are certain.
    assert sure[0] >= 12
    assert sure[1] >= 4


@pytest.mark.parametrize(("arguments", "message"), [((), "give the base too"), (("base",), "0 or more; got -1")])
def test_intruders_need_a_base_and_a_number(write_adapter, write_file, rng, arguments, message):
    paths = [write_file({"proj.weight": rng.standard_normal(SHAPE)}, "base.safetensors") for _ in arguments]
    with pytest.raises(ValueError, match=message):
        inspect(write_adapter(*factors(rng)), *paths, intruders=-1)


def test_an_update_of_zero_loses_nothing_in_a_merge(write_adapter, write_file, rng):
    B, A = factors(rng)
    path = write_file({"proj.weight": rng.standard_normal(SHAPE).astype(np.float32)}, "base.safetensors")
    figures = inspect(write_adapter(0 * B, A), path).layers[0].base
    assert (figures.merge_error, figures.merge_unchanged) == (0.0, 1.0)
