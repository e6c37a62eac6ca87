"""The command line's words in Python: each chooses the ranks that the rule, budget or noise of its name chooses."""

import numpy as np
import pytest

from lowrank_core import rank_for_error, rank_for_ratio, rank_for_variance
from lowrank_core.models import AboveNoise, Budget, extract, merge, plan, resize, to_json
from tests.models.models_on_disk import checkpoint_pair

SAME = {
    "variance": ({"variance": 0.8}, lambda spectrum: rank_for_variance(spectrum, 0.8)),
    "error": ({"error": 0.5, "max_rank": 4}, lambda spectrum: min(4, int(rank_for_error(spectrum, 0.5)))),
    "ratio": ({"ratio": 0.4}, lambda spectrum: rank_for_ratio(spectrum, 0.4)),
    "parameters": ({"parameters": 150}, Budget(parameters=150)),
    # For the relative errors the ranks would be others.
    "objective": ({"parameters": 150, "objective": "absolute"}, Budget(parameters=150, objective="absolute")),
    "megabytes": (
        {"megabytes": 0.005, "objective": "absolute", "max_rank": 2},
        Budget(megabytes=0.005, objective="absolute", max_rank=2),
    ),
}


@pytest.mark.parametrize("word", SAME)
def test_words_choose_what_their_values_do(tmp_path, rng, word):
    paths, _ = checkpoint_pair(tmp_path, rng)
    words, rank = SAME[word]
    whole = tmp_path / "whole"
    extract(*paths, whole, rank=12)
    for operation, sources in ((extract, paths), (resize, (whole,)), (merge, ([whole],))):
        out = tmp_path / f"{operation.__name__}-{word}"
        by_word = operation(*sources, out, **words, dry_run=True)
        assert to_json(by_word) == to_json(operation(*sources, out, rank=rank, dry_run=True))
        assert 0 < sum(layer.rank for layer in by_word.layers) < 28


def test_what_is_above_noise_is_chosen_by_word(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng, dtype=np.float16)
    for words, rank in (
        ({"above_noise": True}, AboveNoise()),
        ({"above_noise": True, "sides": 2, "max_rank": 3}, AboveNoise(2, 3)),
    ):
        by_word = extract(*paths, tmp_path / "out", **words, dry_run=True)
        assert to_json(by_word) == to_json(extract(*paths, tmp_path / "out", rank=rank, dry_run=True))


@pytest.mark.parametrize("ranks", [[4, 2, 2], (2, 4), np.array([4, 2]), range(2, 5, 2)])
def test_several_ranks_are_taken_from_any_sequence(tmp_path, rng, ranks):
    paths, _ = checkpoint_pair(tmp_path, rng)
    reports = extract(*paths, tmp_path / "out", rank=ranks, dry_run=True)
    assert [max(layer.rank for layer in report.layers) for report in reports] == [2, 4]


def test_a_plan_takes_what_its_budget_is_made_of(tmp_path, rng):
    (base, tuned), _ = checkpoint_pair(tmp_path, rng)
    words = {"parameters": 150, "objective": "absolute", "max_rank": 3}
    assert to_json(plan(tuned, base, **words)) == to_json(plan(tuned, base, budget=Budget(**words)))
    with pytest.raises(ValueError, match=r"^how much to keep.*parameters or variance, and only one"):
        plan(tuned, base)
    with pytest.raises(ValueError, match=r"^a budget has variance in it"):
        plan(tuned, base, budget=Budget(parameters=1), variance=0.9)


REFUSED = [
    ({}, "Give one of rank, variance, error, ratio, parameters, megabytes and above_noise"),
    ({"rank": 4, "variance": 0.9}, "rank and variance exclude each other"),
    ({"rank": 4, "max_rank": 8}, "max_rank bounds what variance.*for a fixed rank, give rank alone"),
    ({"variance": 0.9, "sides": 2}, "sides belongs to above_noise"),
    ({"rank": 4, "objective": "base"}, "objective belongs to parameters or megabytes"),
    ({"variance": 95}, "variance is a fraction between 0 and 1; got 95"),
    ({"error": "small"}, "error is a fraction between 0 and 1; got small"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_contradicts_itself_is_refused_in_the_words_of_python(tmp_path, words, message):
    with pytest.raises(ValueError, match=message) as refused:
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", **words)
    assert "--" not in str(refused.value)


def test_one_adapter_has_one_rank(tmp_path):
    with pytest.raises(ValueError, match=r"^rank is one number here; got 2,4"):
        merge([tmp_path / "one"], tmp_path / "out", rank=[2, 4])
