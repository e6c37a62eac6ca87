"""The article's own numbers, typed from it, and those of the demo compared with them digit by digit."""

import numpy as np
import pytest

from lowrank_core import LearningSweep, learning_sweep
from lowrank_core.cli.demo.experiments import MAX_SEED, Experiments, Reconstruction, Settings, run

RANKS = (2, 4, 8, 16, 32, 48)
ERRORS = {
    ("style", "standard"): "6.608106 2.988677 1.000000 0.063517 0.500869 0.666727",
    ("style", "rslora"): "9.729615 6.970877 4.642097 2.994616 1.827684 1.309361",
    ("facts", "standard"): "2.165376 1.481534 1.000000 0.701083 0.627560 0.685698",
    ("facts", "rslora"): "3.016290 2.858262 2.619609 2.251191 1.701114 1.296699",
}
CAPTURED = {
    "style": "88.8897 99.1524 99.3367 99.5966 99.8841",
    "facts": "7.6851 14.9368 28.3393 50.8483 80.8224",
}
LEADING = {"style": "4.99 3.50 2.01 0.52 0.14", "facts": "3.00 2.96 2.91 2.87 2.84"}
BEST = {2: "0.961", 8: "0.846", 16: "0.700", 32: "0.437", 48: "0.216", 64: "0.000"}
DESCENT = {
    2: (0.971, 0.972),
    8: (0.916, 0.891),
    16: (0.932, 0.788),
    32: (0.963, 0.640),
    48: (0.975, 0.528),
    64: (0.981, 0.462),
}
ADAM_AT_2E3 = {8: (0.848, 0.846), 32: (0.449, 0.439), 48: (0.233, 0.218), 64: (0.071, 0.000)}
ADAM_AT_5E4 = {8: (0.885, 0.869), 32: (0.707, 0.505), 48: (0.666, 0.297), 64: (0.643, 0.129)}


def update_of(results: Experiments, name: str) -> Reconstruction:
    return {"style": results.style, "facts": results.facts}[name]


@pytest.mark.parametrize(("name", "rule"), ERRORS)
def test_reconstruction_errors_in_every_digit(results: Experiments, name: str, rule: str) -> None:
    update = update_of(results, name)
    assert " ".join(f"{error:.6f}" for error in update.at(update.errors[rule], RANKS)) == ERRORS[name, rule]


@pytest.mark.parametrize("name", CAPTURED)
def test_variance_captured_in_every_digit(results: Experiments, name: str) -> None:
    update = update_of(results, name)
    captured = update.at(update.captured, RANKS[:5])
    assert " ".join(f"{100 * share:.4f}" for share in captured) == CAPTURED[name]


@pytest.mark.parametrize("name", LEADING)
def test_leading_singular_values_in_every_digit(results: Experiments, name: str) -> None:
    assert " ".join(f"{value:.2f}" for value in update_of(results, name).singular_values[:5]) == LEADING[name]


def test_scalings_in_every_digit(results: Experiments) -> None:
    scalings = results.scalings
    at = np.isin(scalings.ranks, [1, 4, 8, 16, 32, 64])
    assert [f"{gamma:.5g}" for gamma in scalings.gamma["standard"][at]] == ["16", "4", "2", "1", "0.5", "0.25"]
    assert [f"{gamma:.5g}" for gamma in scalings.gamma["rslora"][at]] == ["16", "8", "5.6569", "4", "2.8284", "2"]
    np.testing.assert_allclose(scalings.gain["standard"] * scalings.ranks, 256)
    np.testing.assert_allclose(scalings.gain["rslora"], 256)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_best_possible_errors_of_learning_in_every_digit(results: Experiments, place: int) -> None:
    learning = results.learning[place]
    best = dict(zip(learning.ranks.tolist(), learning.best, strict=True))
    assert {rank: f"{best[rank]:.3f}" for rank in BEST} == BEST


@pytest.mark.parametrize(
    ("place", "optimizer", "rate", "expected"),
    [(0, "sgd", 1e-3, DESCENT), (1, "adam", 2e-3, ADAM_AT_2E3), (2, "adam", 5e-4, ADAM_AT_5E4)],
)
def test_learning_within_the_seeds_own_scatter(
    results: Experiments, place: int, optimizer: str, rate: float, expected: dict[int, tuple[float, float]]
) -> None:
    learning = results.learning[place]
    assert (learning.optimizer, learning.learning_rate, learning.steps) == (optimizer, rate, 300)
    for rank, errors in expected.items():
        row = learning.ranks.tolist().index(rank)
        learned = [learning.errors[rule][row] for rule in ("standard", "rslora")]
        np.testing.assert_allclose(learned, errors, atol=0.03, rtol=0)


def test_curves_end_at_the_errors_and_none_beats_the_best(results: Experiments) -> None:
    for learning in results.learning:
        for rule, curves in learning.curves.items():
            np.testing.assert_allclose(curves[:, -1], learning.errors[rule], atol=1e-6)
            np.testing.assert_allclose(curves[:, 0], 1.0)
            assert np.all(learning.errors[rule] >= learning.best - 1e-8)


def naive(size: int, ranks: tuple[int, ...], alpha: float, seed: int) -> dict[str, list[tuple[float, ...]]]:
    """The article's program, as printed there: an SVD and a dense product for every rank and rule."""
    random = np.random.RandomState(seed)
    tables = {}
    for name, true_rank, largest in (("style", 4, 5.0), ("facts", size, 3.0)):
        U = np.linalg.qr(random.standard_normal((size, true_rank)))[0]
        V = np.linalg.qr(random.standard_normal((size, true_rank)))[0]
        update = U @ np.diag(np.linspace(largest, 0.5, true_rank)) @ V.T + 0.01 * random.standard_normal((size, size))
        rows = []
        for rank in ranks:
            left, values, right = np.linalg.svd(update)
            product = (left[:, :rank] * values[:rank]) @ right[:rank]
            norm = np.linalg.norm(update)
            errors = [np.linalg.norm(update - gamma * product) / norm for gamma in (1, alpha / rank, alpha / rank**0.5)]
            rows.append((*errors, np.sum(values[:rank] ** 2) / norm**2))
        tables[name] = rows
    return tables


@pytest.mark.parametrize(
    ("size", "ranks", "alpha", "seed"), [(64, RANKS, 16.0, 0), (20, (1, 3, 19), 4.0, MAX_SEED), (9, (9,), 0.5, 3)]
)
def test_other_settings_equal_the_articles_program(size: int, ranks: tuple[int, ...], alpha: float, seed: int) -> None:
    results = run(Settings(size, ranks, alpha, seed))
    for name, rows in naive(size, ranks, alpha, seed).items():
        update = update_of(results, name)
        columns = (update.best, update.errors["standard"], update.errors["rslora"], update.captured)
        computed = np.transpose([update.at(column, ranks) for column in columns])
        np.testing.assert_allclose(computed, rows, atol=1e-10, rtol=1e-10)


def test_the_seed_decides_the_numbers() -> None:
    errors = [run(Settings(size=8, ranks=(2,), seed=seed)).learning[1].errors["rslora"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(errors[0], errors[1])
    assert not np.array_equal(errors[0], errors[2])


def test_gradient_descent_learns_a_spectrum_and_adam_a_dense_update(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, str, object]] = []

    def recorded(update: object, ranks: object, *, optimizer: str, rng: object, **rest: object) -> LearningSweep:
        given.append((update, optimizer, rng))
        return learning_sweep(update, ranks, optimizer=optimizer, rng=rng, **rest)

    monkeypatch.setattr("lowrank_core.cli.demo.experiments.learning_sweep", recorded)
    for seed in (1, 2):
        run(Settings(size=8, ranks=(2,), seed=seed))
    assert [(optimizer, rng) for _, optimizer, rng in given] == [
        (optimizer, seed) for seed in (1, 2) for optimizer in ("sgd", "adam", "adam")
    ]
    for start in (0, 3):
        exact, first, second = (update for update, _, _ in given[start : start + 3])
        np.testing.assert_array_equal(exact.values, np.linspace(3, 0.5, 8))
        np.testing.assert_allclose(np.linalg.svd(first, compute_uv=False), exact.values, rtol=1e-12)
        np.testing.assert_array_equal(first, second)
    assert not np.allclose(given[1][0], given[4][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "size 3 is too small"),
        ({"ranks": (2, 65)}, "between 1 and the size, 64; got 65"),
        ({"ranks": (0,)}, "got 0"),
        ({"ranks": ()}, "got none"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": MAX_SEED + 1}, "out of range"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)
