import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.inspection import layers
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.inspection.report import to_rows
from lowrank_core.models.results import to_json

RANKS = (0, 1, 3, 50)
RULES = ("standard", "rslora")


def write_pair(write_file, rng, dtype=np.float32):
    base = {
        f"{name}.weight": rng.standard_normal(shape).astype(dtype) for name, shape in (("a", (12, 8)), ("b", (5, 20)))
    }
    tuned = {
        key: (weight.astype(float) + 0.1 * rng.standard_normal(weight.shape)).astype(dtype)
        for key, weight in base.items()
    }
    paths = write_file(tuned, "tuned.safetensors"), write_file(base, "base.safetensors")
    return paths, {key[0]: tuned[key].astype(float) - base[key].astype(float) for key in base}


def dense_error(update, rank, scaling):
    U, s, Vt = np.linalg.svd(update, full_matrices=False)
    return np.linalg.norm(update - scaling * (U[:, :rank] * s[:rank]) @ Vt[:rank]) / np.linalg.norm(update)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_figure_of_a_layer_is_that_of_its_dense_update(write_file, rng, dtype):
    paths, updates = write_pair(write_file, rng, dtype)
    report = inspect(*paths, ranks=RANKS, rules=RULES, alpha=4)
    assert [layer.name for layer in report.layers] == ["a", "b"]
    for layer in report.layers:
        update = updates[layer.name]
        values = np.linalg.svd(update, compute_uv=False)
        variance = np.cumsum(values**2) / np.sum(values**2)
        weights = values / values.sum()
        assert np.max(np.abs(layer.singular_values - values)) < 1e-6 * values[0]
        assert layer.shape == update.shape
        assert layer.parameters == update.size
        assert layer.norm == pytest.approx(np.linalg.norm(update), rel=1e-6)
        assert layer.effective_rank == pytest.approx(math.exp(-np.sum(weights * np.log(weights))), rel=1e-5)
        assert layer.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-5)
        assert layer.numerical_rank == min(update.shape)
        assert layer.rank_for_variance == {t: int(np.argmax(variance >= t)) + 1 for t in (0.90, 0.95, 0.99)}
        assert layer.ranks == (0, 1, 3, min(update.shape))
        assert layer.best_error == pytest.approx([dense_error(update, r, 1.0) for r in layer.ranks], abs=1e-6)
        for rule, gamma in (
            ("standard", lambda r: 4 / r if r else 0),
            ("rslora", lambda r: 4 / math.sqrt(r) if r else 0),
        ):
            expected = [dense_error(update, r, gamma(r)) for r in layer.ranks]
            assert layer.errors[rule] == pytest.approx(expected, rel=1e-5)


def test_totals_are_those_of_the_block_diagonal_update(write_file, rng):
    paths, updates = write_pair(write_file, rng)
    totals = inspect(*paths, ranks=RANKS, rules=RULES, alpha=4).totals
    norm = math.sqrt(sum(np.linalg.norm(update) ** 2 for update in updates.values()))
    assert (totals.layers, totals.failures, totals.parameters, totals.adapter_parameters) == (2, 0, 196, None)
    assert totals.norm == pytest.approx(norm, rel=1e-6)

    def together(rank, gamma):
        parts = [
            dense_error(u, min(rank, *u.shape), gamma(min(rank, *u.shape))) * np.linalg.norm(u)
            for u in updates.values()
        ]
        return math.hypot(*parts) / norm

    assert totals.best_error == pytest.approx([together(r, lambda _: 1.0) for r in RANKS], abs=1e-6)
    assert totals.errors["standard"] == pytest.approx(
        [together(r, lambda k: 4 / k if k else 0) for r in RANKS], rel=1e-5
    )
    assert totals.variance_captured == pytest.approx([1 - together(r, lambda _: 1.0) ** 2 for r in RANKS], abs=1e-6)
    for fraction, rank in totals.rank_for_variance.items():
        kept = [1 - together(r, lambda _: 1.0) ** 2 for r in (rank - 1, rank)]
        assert kept[0] < fraction <= kept[1]
        assert totals.error_for_variance[fraction] == pytest.approx(together(rank, lambda _: 1.0), abs=1e-6)


def test_the_figures_of_an_adapter_include_its_scale_and_alpha(write_peft, rng):
    A, B = rng.standard_normal((2, 6)).astype(np.float32), rng.standard_normal((4, 2)).astype(np.float32)
    tensors = {"proj.lora_A.weight": A, "proj.lora_B.weight": B, "head.weight": np.ones((2, 2), np.float32)}
    path = write_peft(tensors, use_rslora=True, modules_to_save=["head"])
    report = inspect(path, ranks=[1, 2], rules=RULES)
    (layer,) = report.layers
    update = 8 / math.sqrt(2) * (B.astype(float) @ A.astype(float))
    assert (report.format, report.base, report.alpha) == ("peft", None, None)
    assert (layer.rank, layer.alpha, layer.dtype, layer.adapter_parameters) == (2, 8.0, "float32", 20)
    assert layer.scaling == pytest.approx(8 / math.sqrt(2))
    assert layer.singular_values == pytest.approx(np.linalg.svd(update, compute_uv=False)[:2], rel=1e-6)
    assert layer.errors["standard"] == pytest.approx(
        [dense_error(update, 1, 8.0), dense_error(update, 2, 4.0)], rel=1e-5
    )
    assert list(report.not_low_rank) == ["head.weight"]
    assert report.warnings
    assert report.totals.adapter_parameters == 20
    other = inspect(path, ranks=[1, 2], rules=RULES, alpha=2.0)
    assert other.alpha == 2.0
    assert other.layers[0].alpha == 8.0
    assert other.layers[0].errors["standard"][1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("stored", "used"), [(0.5, 0.5), (-3.0, 16.0)])
def test_the_alpha_of_a_file_is_the_one_of_the_rules_where_it_is_positive(write_peft, rng, stored, used):
    A, B = rng.standard_normal((2, 6)).astype(np.float32), rng.standard_normal((4, 2)).astype(np.float32)
    path = write_peft({"proj.lora_A.weight": A, "proj.lora_B.weight": B}, lora_alpha=stored)
    errors = [inspect(path, ranks=[1, 2], rules=RULES, alpha=alpha).layers[0].errors for alpha in (None, used)]
    assert errors[0] == errors[1]


def test_a_bad_layer_is_a_failure_beside_the_reports_of_the_others(write_file, write_peft, rng):
    base = {f"{name}.weight": np.ones((3, 2), np.float32) for name in "abc"}
    tuned = base | {"a.weight": np.full((3, 2), np.nan, np.float32), "b.weight": np.ones((4, 2), np.float32)}
    report = inspect(write_file(tuned, "t.safetensors"), write_file(base, "b.safetensors"))
    assert [layer.name for layer in report.layers] == ["c"]
    assert "tuned checkpoint contains NaN" in report.failures["a"]
    assert "shapes differ" in report.failures["b"]
    assert (report.totals.layers, report.totals.failures) == (1, 2)
    bad = {
        "x.lora_A.weight": np.full((2, 6), np.inf, np.float32),
        "x.lora_B.weight": np.ones((4, 2), np.float32),
    }
    report = inspect(write_peft(bad))
    assert not report.layers
    assert "'base_model.model.x.lora_A.weight' contains NaN or infinity" in report.failures["x"]
    assert report.totals.norm == 0.0
    json.dumps(to_json(report), allow_nan=False)


def test_a_layer_that_did_not_change_has_nothing_to_lose(write_file):
    weights = {"a.weight": np.ones((3, 2), np.float32)}
    paths = write_file(weights, "t.safetensors"), write_file(weights, "b.safetensors")
    report = inspect(*paths, ranks=[0, 1], rules=RULES)
    (layer,) = report.layers
    assert (layer.norm, layer.effective_rank, layer.stable_rank, layer.numerical_rank) == (0.0, 0.0, 0.0, 0)
    assert layer.best_error == (0.0, 0.0)
    assert layer.rank_for_variance == {0.90: 0, 0.95: 0, 0.99: 0}
    assert report.totals.variance_captured == (1.0, 1.0)
    assert report.totals.errors["rslora"] == (0.0, 0.0)


def test_totals_at_extreme_magnitudes(write_file, rng):
    update = rng.standard_normal((4, 4))
    paths = [
        (write_file({"a": scale * update}, f"t{i}.safetensors"), write_file({"a": 0 * update}, f"b{i}.safetensors"))
        for i, scale in enumerate((1.0, 1e-200, 1e200))
    ]
    one, *others = [inspect(*pair).totals for pair in paths]
    for other in others:
        assert other.best_error == pytest.approx(one.best_error, rel=1e-12, abs=1e-14)
    assert others[1].norm == pytest.approx(1e200 * one.norm, rel=1e-14)


def test_totals_with_an_alpha_whose_square_overflows(write_peft):
    factors = {"q.lora_A.weight": np.diag([3.0, 0.0]), "q.lora_B.weight": np.eye(2)}
    zero = {"z.lora_A.weight": np.ones((2, 2)), "z.lora_B.weight": np.zeros((2, 2))}
    report = inspect(write_peft(factors | zero, lora_alpha=1e200), ranks=[1], rules=RULES)
    assert report.totals.errors["standard"] == pytest.approx([1e200], rel=1e-12)
    json.dumps(to_json(report), allow_nan=False)


def test_each_layer_is_decomposed_once(write_file, rng, monkeypatch):
    paths, _ = write_pair(write_file, rng)
    calls = []
    spectrum = layers.spectrum
    monkeypatch.setattr(layers, "spectrum", lambda update: calls.append(update.shape) or spectrum(update))
    inspect(*paths, ranks=[1, 2, 3], rules=["standard", "rslora", "unscaled"])
    assert calls == [(12, 8), (5, 20)]


def test_one_layer_is_in_memory_at_a_time(write_file):
    size, layers = 256, 12
    for name in ("base", "tuned"):
        fill = np.float32(name == "tuned")
        write_file({f"{i:02}": np.full((size, size), fill * i) for i in range(layers)}, f"{name}.safetensors")
    folder = write_file({}, "unused/x.safetensors").parent.parent
    paths = folder / "tuned.safetensors", folder / "base.safetensors"
    inspect(*paths)
    tracemalloc.start()
    inspect(*paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Both weights, their difference, and what the decomposition holds: a few times one layer, far below the twelve.
    assert peak < 10 * size * size * 4 < 2 * layers * size * size * 4


def test_errors_of_scaling_rules_are_given_where_asked_for(write_file, rng):
    paths, _ = write_pair(write_file, rng)
    report = inspect(*paths)
    assert report.rules == ()
    assert report.totals.errors == report.layers[0].errors == {}
    assert not {rule for rule in RULES for column in to_rows(report)[0] if column.startswith(rule)}


def test_progress_is_called_after_each_layer(write_file, rng):
    paths, _ = write_pair(write_file, rng)
    calls = []
    inspect(*paths, progress=lambda *call: calls.append(call))
    assert calls == [("a", 1, 2), ("b", 2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": [-1]}, "ranks are whole numbers of at least 0"),
        ({"ranks": [1.5]}, "ranks are whole numbers"),
        ({"ranks": 8}, "ranks are whole numbers"),
        ({"rules": ["alpha"]}, "rule"),
        ({"rules": RULES, "alpha": 0.0}, "alpha must be finite and positive"),
        ({"rules": RULES, "alpha": math.nan}, "alpha must be finite and positive"),
        ({"alpha": 2.0}, "no rule was given"),
    ],
)
def test_invalid_ranks_rules_and_alphas_are_refused_before_any_layer_is_read(write_file, rng, arguments, message):
    paths, _ = write_pair(write_file, rng)
    read = []
    with pytest.raises((ValueError, TypeError), match=message):
        inspect(*paths, progress=lambda *call: read.append(call), **arguments)
    assert not read


def test_json_holds_every_figure_in_plain_values(write_peft, write_file, rng):
    paths, _ = write_pair(write_file, rng)
    adapter = write_peft(
        {"p.lora_A.weight": np.ones((2, 6), np.float32), "p.lora_B.weight": np.ones((4, 2), np.float32)}
    )
    for report in (inspect(*paths), inspect(adapter)):
        plain = json.loads(json.dumps(to_json(report), allow_nan=False))
        assert plain == to_json(report)
        for layer, described in zip(report.layers, plain["layers"], strict=True):
            assert described["singular_values"] == layer.singular_values.tolist()
            assert described["rank_for_variance"] == {str(t): k for t, k in layer.rank_for_variance.items()}
            assert described["scaling"] == layer.scaling
        assert plain["totals"]["best_error"] == list(report.totals.best_error)


def test_rows_have_one_set_of_columns_and_include_failures(write_file):
    base = {"a": np.zeros((3, 2), np.float32), "b": np.zeros((3, 2), np.float32)}
    tuned = {"a": np.eye(3, 2, dtype=np.float32), "b": np.full((3, 2), np.nan, np.float32)}
    paths = write_file(tuned, "t.safetensors"), write_file(base, "b.safetensors")
    report = inspect(*paths, ranks=[1, 8], rules=RULES)
    good, bad = to_rows(report)
    assert list(good) == list(bad)
    assert (good["rows"], good["columns"], good["rank_for_90_percent"], good["failure"]) == (3, 2, 2, None)
    assert (good["best_error_1"], good["best_error_8"]) == pytest.approx((math.sqrt(0.5), 0.0))
    assert good["standard_8"] == report.layers[0].errors["standard"][1]
    assert bad["name"] == "b"
    assert "NaN" in bad["failure"]
    assert bad["norm"] is None
