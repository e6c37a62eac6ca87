"""The study of a sentence encoder: its methods do what they say, its data are complete, its page says what they say."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs" / "encoder"))

import curves
import schedule
import truncations


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """An update, and second moments of inputs of which some directions hardly occur and one does not."""
    basis, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    return rng.normal(size=(7, 9)), (basis * [4.0, 2.0, 1.0, 0.5, 0.1, 1e-2, 1e-4, 1e-8, 0.0]) @ basis.T


def weighted_energy(update, moment):
    return truncations.energy({"": update}, {"": moment})


def test_weighted_truncation_is_best_for_the_outputs(layer, rng):
    """The error is the tail of the spectrum of ΔC^½ (Eckart and Young there), and nothing near it is better."""
    update, moment = layer
    values, directions = np.linalg.eigh(moment)
    spectrum = np.linalg.svd(update @ (directions * np.sqrt(values.clip(0))), compute_uv=False)
    for rank, kept in truncations.weighted(update, moment, (1, 2, 4)).items():
        error = weighted_energy(update - kept, moment)
        assert np.linalg.matrix_rank(kept) == rank
        assert error == pytest.approx(np.sum(spectrum[rank:] ** 2), rel=1e-9)
        assert error <= weighted_energy(update - truncations.plain(update, (rank,))[rank], moment)
        for _ in range(50):
            left, _, right = np.linalg.svd(kept + 0.01 * rng.normal(size=kept.shape))
            near = left[:, :rank] @ (left[:, :rank].T @ kept @ right[:rank].T + 0.01 * rng.normal(size=(rank, rank)))
            assert weighted_energy(update - near @ right[:rank], moment) >= error


def test_truncations_at_full_rank_are_the_update(layer):
    update, moment = layer
    np.testing.assert_allclose(truncations.plain(update, (7,))[7], update, atol=1e-12)
    np.testing.assert_allclose(truncations.weighted(update, moment, (7,))[7], update, atol=1e-12)


def test_weighted_truncation_by_equal_inputs_is_the_plain_one(layer):
    update, _ = layer
    for rank, kept in truncations.weighted(update, np.eye(9), (1, 3)).items():
        np.testing.assert_allclose(kept, truncations.plain(update, (rank,))[rank], atol=1e-12)


def test_weighted_energy_is_the_mean_over_the_inputs(layer, rng):
    update, _ = layer
    inputs = rng.normal(size=(30, 9))
    mean = np.mean(np.sum((inputs @ update.T) ** 2, axis=1))
    assert weighted_energy(update, inputs.T @ inputs / 30) == pytest.approx(mean, rel=1e-12)


def test_measures_of_nothing_and_of_everything(layer):
    update, moment = layer
    weights, moments = {"": np.ones((7, 9))}, {"": moment}
    whole = weighted_energy(update, moment)
    nothing = truncations.measure({"": update}, {"": np.zeros_like(update)}, weights, moments, whole)
    assert nothing == pytest.approx(
        {"variance": 0, "base_relative": np.linalg.norm(update) / np.sqrt(63), "weighted_error": 1}
    )
    everything = truncations.measure({"": update}, {"": update}, weights, moments, whole)
    assert everything == {"variance": 1, "base_relative": 0, "weighted_error": 0}
    half = truncations.measure({"": update}, {"": update / 2}, weights, moments, whole)
    assert half["variance"] == pytest.approx(0.75)
    assert half["weighted_error"] == pytest.approx(0.5)


def test_random_part_is_a_projection(layer):
    update, _ = layer
    part = truncations.random_part(update, np.random.default_rng(1))
    assert np.linalg.matrix_rank(part) == round(truncations.RANDOM_FRACTION * 7)
    np.testing.assert_allclose(np.sum(part * (update - part)), 0, atol=1e-12)


def test_a_monotone_relation_predicts_exactly_and_noise_does_not(rng):
    x, groups = np.tile(np.linspace(0, 1, 20), 3), np.repeat(np.arange(3), 20)
    exact = curves.predict(x, x**3, groups, 1)
    assert (exact.correlation, exact.low, exact.high) == pytest.approx((1, 1, 1))
    assert exact.error < 1e-12
    assert curves.predict(x, -x, groups, -1).correlation == pytest.approx(1)
    noise = curves.predict(x, rng.normal(size=60), groups, 1)
    assert abs(noise.correlation) < 0.4
    assert noise.error > 0.8


def test_monotone_fit_averages_what_falls():
    np.testing.assert_allclose(
        curves.monotone(np.array([1.0, 2, 3, 3]), np.array([0.0, 4, 1, 3]), [0, 1, 2.5, 9]), [0, 0, 8 / 3, 8 / 3]
    )


@pytest.fixture(scope="module")
def results():
    return curves.load()


def test_the_data_in_the_repository_are_complete(results):
    assert sorted(map(str, (record["job"] for record in results.records))) == sorted(
        str(job.key) for job in schedule.jobs()
    )
    # As run.py says, on a machine with other work.
    assert curves.cost(results) < 3600
    assert schedule.RESULTS.stat().st_size < 100_000


def test_fine_tunes_are_better_than_heads_of_their_base(results):
    for task, seed in curves.FINE_TUNES:
        whole = results.of("full", task, seed)
        assert whole["accuracy"] > results.part(task, seed, "nothing")["accuracy"] + 0.05
        assert whole["accuracy"] > results.of("head", task, seed)["accuracy"] + 0.05
        assert np.mean(curves.right(whole, whole["texts"])) == pytest.approx(whole["accuracy"], abs=1e-4)


def kept(results, way, rank=None, what="loss"):
    return [results.kept(*each, results.part(*each, way, rank), what) for each in curves.FINE_TUNES]


def test_few_ranks_keep_the_task_where_the_variance_takes_many(results):
    for task, seed in curves.FINE_TUNES:
        update = results.of("full", task, seed)["update"]
        for what in ("accuracy", "loss"):
            enough = curves.rank_enough(results, task, seed, "plain", what)
            assert enough <= 16
            assert min(update["all_together"]["variance 0.9"], update["ranks"]["variance 0.9"]) > 4 * enough
            assert update["ranks"]["effective rank"] > 10 * enough
            # The stable rank is nearest.
            assert update["ranks"]["stable rank"] < 10
    for task in ("movies", "corpus"):
        assert curves.lost(results, task, "plain", 4).mean() < 0.03
    assert min(kept(results, "plain", 4)) > 0.85


def test_the_best_rank_1_is_useless_and_a_trained_one_is_not(results):
    for seed in schedule.SEEDS:
        trained = results.of("lora", "movies", seed, 1)["accuracy"]
        assert trained > results.part("movies", seed, "plain", 1)["accuracy"] + 0.1
        # The leading direction alone is worse than none.
        assert (
            results.part("movies", seed, "plain", 1)["accuracy"] < results.part("movies", seed, "nothing")["accuracy"]
        )


def test_weighing_by_the_inputs_does_not_help_for_sure(results):
    """It lowers the error that it is the best for; the task gains at a low rank here and loses at one there."""
    for each in curves.FINE_TUNES:
        for rank in schedule.WEIGHTED_RANKS:
            plain, weighted = (results.part(*each, way, rank) for way in curves.RANKED)
            assert weighted["weighted_error"] < plain["weighted_error"]
            assert weighted["variance"] < plain["variance"]
    gains = {
        (task, rank): curves.lost(results, task, "plain", rank) - curves.lost(results, task, "weighted", rank)
        for task in ("movies", "corpus")
        for rank in schedule.WEIGHTED_RANKS
    }
    assert gains["corpus", 1].min() > 0
    assert gains["corpus", 2].min() > 0
    assert gains["movies", 2].max() < 0
    assert max(abs(gains[task, 4].mean()) for task in ("movies", "corpus")) < 0.01
    # At rank 1 neither keeps the task.
    assert (
        min(curves.lost(results, task, way, 1).mean() for task in ("movies", "corpus") for way in curves.RANKED) > 0.1
    )


def test_biases_and_norms_hardly_matter(results):
    for each in curves.FINE_TUNES:
        whole, matrices = results.of("full", *each), results.part(*each, "matrices")
        assert abs(matrices["accuracy"] - whole["accuracy"]) < 0.02
    assert min(kept(results, "matrices")) > 0.95


def test_a_variance_is_no_guide_across_kinds_of_parts(results):
    """Δ/2 captures more than rank 4 and keeps less; what looks at inputs or outputs orders all parts better."""
    for each in curves.FINE_TUNES:
        assert results.part(*each, "half")["variance"] == pytest.approx(0.75)
        assert results.part(*each, "plain", 4)["variance"] < 0.75
    assert max(kept(results, "half")) < min(kept(results, "plain", 4))
    found = {
        measure: curves.predict(*curves.points(results, measure, None, "loss"), sign)
        for measure, sign in curves.MEASURES.items()
    }
    geometry, outputs = (
        [found[name] for name in names]
        for names in (("variance", "base_relative"), ("weighted_error", "output_change"))
    )
    assert max(each.high for each in geometry) < min(each.low for each in outputs)
    # Among truncations a variance is as good as any.
    among = {
        measure: curves.predict(*curves.points(results, measure, curves.RANKED, "loss"), sign).correlation
        for measure, sign in curves.MEASURES.items()
    }
    assert among["variance"] > max(among.values()) - 0.05


def test_of_two_tasks_the_smaller_adapter_suffers_in_a_sum_and_no_cosine_says_so(results):
    rows = curves.sums(results)
    assert len(rows) == 18
    pairs = curves.of_two_tasks(rows)
    found = {name: curves.predict_sums(pairs, name, "loss") for name in curves.CANDIDATES}
    for telling in ("norm_ratio", "weighted_ratio", "output_ratio"):
        assert found[telling].high < -0.4
        for silent in ("cosine", "columns", "rows", "weighted_cosine"):
            assert abs(found[telling].correlation) > abs(found[silent].correlation) + 0.4
    # No other figure says it better than the ratio of the norms.
    assert min(found.values(), key=lambda each: each.correlation) == found["norm_ratio"]
    norms = {row["one"]: [] for row in pairs}
    for row in pairs:
        norms[row["one"]].append(row["norm_ratio"])
    assert curves.smaller_suffers(pairs) == (5, 6)
    # The movies' adapters are the smallest: every other one is larger.
    assert {one for one, ratios in norms.items() if min(ratios) > 1} == {("movies", 0), ("movies", 1)}
    # Two seeds of one task can be added at little loss, whatever the figures say.
    same = [row for row in rows if row["relation"] == "one task, two seeds"]
    assert min(row["loss kept"] for row in same) > 0.7
    assert max(row["output_ratio"] for row in same) > 1
