"""Summaries of the study: what is kept of a fine-tune, and which measure predicts it."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from schedule import RANKS, RESULTS, SEEDS
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

sys.path.append(str(Path(__file__).parents[1] / "study"))

# What is enough is what the study of a small transformer takes for enough.
from analysis import CLOSED, WITHIN, estimate

__all__ = ["CLOSED", "WITHIN", "estimate"]

FINE_TUNES = [("movies", seed) for seed in SEEDS] + [("corpus", 0)]
# Each measure, and whether more of it is better.
MEASURES = {"variance": 1, "base_relative": -1, "weighted_error": -1, "output_change": -1}
RANKED = ("plain", "weighted")
# Figures of a pair that were to be seen before the sum was scored, and the sign of a loss.
CANDIDATES = (
    "cosine",
    "columns",
    "rows",
    "norm_ratio",
    "weighted_cosine",
    "weighted_ratio",
    "output_ratio",
    "sum_change",
)


@dataclass(frozen=True)
class Results:
    """The records of the study by job."""

    records: list

    def of(self, kind, task, seed, rank=None):
        """Return the record of a job."""
        return next(one for one in self.records if one["job"] == [kind, task, seed, rank, None])

    def kind(self, kind):
        """Return all records of a kind."""
        return [one for one in self.records if one["job"][0] == kind]

    def parts(self, task, seed):
        """Return the rows of the parts of a full update."""
        return self.of("full", task, seed)["parts"]

    def part(self, task, seed, way, rank=None):
        """Return one row of them."""
        rank = 0 if way in ("nothing", "vectors") else rank
        return next(row for row in self.parts(task, seed) if (row["way"], row["rank"]) == (way, rank))

    def kept(self, task, seed, row, what):
        """Return the fraction of what the fine-tune gained, over its head on the untouched encoder, that a row has."""
        nothing, whole = self.part(task, seed, "nothing")[what], self.of("full", task, seed)[what]
        return (row[what] - nothing) / (whole - nothing)

    def seeds(self, task):
        """Return the seeds of a task's full fine-tunes."""
        return [seed for name, seed in FINE_TUNES if name == task]


def load(path=RESULTS):
    """Read the records of the study."""
    return Results([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def right(row, count):
    """Return which texts a row had right."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))[:count].astype(bool)


def lost(results, task, way, rank=None):
    """Return the accuracy that a part loses beside the whole fine-tune, for each seed."""
    return np.array(
        [
            results.of("full", task, seed)["accuracy"] - results.part(task, seed, way, rank)["accuracy"]
            for seed in results.seeds(task)
        ]
    )


def text_interval(results, task, way, rank=None, draws=1000):
    """Return the 95 % interval of the mean accuracy lost when the texts of each test set are drawn again."""
    rng, means = np.random.default_rng(0), []
    for seed in results.seeds(task):
        whole = results.of("full", task, seed)
        drawn = rng.integers(whole["texts"], size=(draws, whole["texts"]))
        after, part = (right(row, whole["texts"])[drawn] for row in (whole, results.part(task, seed, way, rank)))
        means.append(after.mean(1) - part.mean(1))
    return np.quantile(np.mean(means, axis=0), [0.025, 0.975])


def is_enough(results, task, seed, row, what):
    """Whether a row has as good an accuracy or loss as the whole fine-tune, as WITHIN and CLOSED say."""
    if what == "loss":
        return results.kept(task, seed, row, what) >= CLOSED
    return row["accuracy"] >= results.of("full", task, seed)["accuracy"] - WITHIN


def rank_enough(results, task, seed, way, what):
    """Return the least rank that is enough, of a way to extract or of "lora"; infinite where none is."""
    if way == "lora":
        rows = {rank: results.of("lora", task, seed, rank) for rank in RANKS}
    else:
        rows = {row["rank"]: row for row in results.parts(task, seed) if row["way"] == way}
    return min((rank for rank, row in rows.items() if is_enough(results, task, seed, row, what)), default=math.inf)


def points(results, measure, ways, what):
    """Return a measure, what is kept of the accuracy or loss, and the fine-tune's number, for parts of some ways."""
    rows = [
        (row[measure], results.kept(task, seed, row, what), number)
        for number, (task, seed) in enumerate(FINE_TUNES)
        for row in results.parts(task, seed)
        if row["way"] not in ("nothing", "vectors", "plain and vectors") and (ways is None or row["way"] in ways)
    ]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@dataclass(frozen=True)
class Prediction:
    """How well a figure predicts what is kept, over all groups of points and with each of them left out."""

    correlation: float
    low: float
    high: float
    error: float | None = None


def predict(x, kept, groups, sign):
    """Return the rank correlation with what is kept, and the error of a monotone curve on fine-tunes not fitted to."""
    left_out = [spearmanr(sign * x[groups != each], kept[groups != each]).statistic for each in np.unique(groups)]
    residuals = [
        kept[groups == each] - monotone(sign * x[groups != each], kept[groups != each], sign * x[groups == each])
        for each in np.unique(groups)
    ]
    error = math.sqrt(np.mean(np.concatenate(residuals) ** 2))
    return Prediction(float(spearmanr(sign * x, kept).statistic), min(left_out), max(left_out), error)


def monotone(x, y, at):
    """Return at other places the non-decreasing function of x that is nearest to y, joined by straight lines."""
    places, inverse = np.unique(x, return_inverse=True)
    counts = np.bincount(inverse)
    fitted = isotonic_regression(np.bincount(inverse, y) / counts, weights=counts).x
    return np.interp(at, places, fitted)


def sums(results):
    """Return for each adapter that another was added to: both, its scores, what is kept of them, every candidate."""
    rows = []
    for record in results.kind("sum"):
        pair = tuple(record["job"][1:3]), tuple(record["job"][4])
        for one, other, task in zip(pair, pair[::-1], record["tasks"], strict=True):
            figures = {"cosine": record["cosine"]} | record["overlap"] | task
            rows.append(
                {"one": one, "other": other, "relation": relation(one, other)}
                | {name: task[name]["accuracy"] for name in ("before", "alone", "summed")}
                | {f"{what} kept": gain_kept(task, what) for what in ("accuracy", "loss")}
                | {name: figures[name] for name in CANDIDATES}
            )
    return rows


def of_two_tasks(rows):
    """Return the rows of pairs that were trained for two tasks."""
    return [row for row in rows if row["one"][0] != row["other"][0]]


def smaller_suffers(rows):
    """Return in how many pairs the adapter of the smaller norm keeps less of its loss, and the number of pairs."""
    smaller = {frozenset((row["one"], row["other"])): row["loss kept"] for row in rows if row["norm_ratio"] > 1}
    larger = {frozenset((row["one"], row["other"])): row["loss kept"] for row in rows if row["norm_ratio"] < 1}
    return sum(smaller[pair] < larger[pair] for pair in smaller), len(smaller)


def gain_kept(task, what):
    """Return the fraction of an adapter's gain that its sum with another has."""
    before, alone, summed = (task[name][what] for name in ("before", "alone", "summed"))
    return (summed - before) / (alone - before)


def relation(one, other):
    """Return what two adapters have in common."""
    if one[0] == other[0]:
        return "one task, two seeds"
    return "sentiment and corpus" if "corpus" in (one[0], other[0]) else "sentiment of two corpora"


def predict_sums(rows, candidate, what):
    """Return the rank correlation of a candidate with what a sum keeps, and its range as each adapter is left out."""
    left_out = [
        correlate([row for row in rows if adapter not in (row["one"], row["other"])], candidate, what)
        for adapter in {row["one"] for row in rows}
    ]
    return Prediction(float(correlate(rows, candidate, what)), min(left_out), max(left_out))


def correlate(rows, candidate, what):
    """Return the rank correlation of a candidate with what is kept of the accuracy or of the loss."""
    return spearmanr([row[candidate] for row in rows], [row[f"{what} kept"] for row in rows]).statistic


def cost(results):
    """Return the processor time of all jobs, in seconds."""
    return sum(record["cpu_seconds"] for record in results.records)
