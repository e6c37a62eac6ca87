"""Summaries of the study: what is kept of a fine-tune, and which measure predicts it."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from schedule import FEWER_SEEDS, RANKS, RESULTS, SEEDS
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

sys.path.append(str(Path(__file__).parents[1] / "study"))

from analysis import estimate

__all__ = ["estimate"]

# A part is enough when it keeps this fraction of the accuracy gained, as in the study of a small transformer.
ENOUGH = 0.95
FINE_TUNES = [("movies", seed) for seed in SEEDS] + [("corpus", seed) for seed in FEWER_SEEDS]
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

    def kept(self, task, seed, row, what="accuracy"):
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


def text_interval(results, task, way, rank, draws=1000):
    """Return the 95 % interval of the mean fraction kept when the texts of each test set are drawn again."""
    rng, kept = np.random.default_rng(0), np.zeros(draws)
    for seed in results.seeds(task):
        whole = results.of("full", task, seed)
        drawn = rng.integers(whole["texts"], size=(draws, whole["texts"]))
        rows = (results.part(task, seed, "nothing"), whole, results.part(task, seed, way, rank))
        before, after, part = (right(row, whole["texts"])[drawn].mean(1) for row in rows)
        kept += (part - before) / (after - before) / len(results.seeds(task))
    return np.quantile(kept, [0.025, 0.975])


def rank_enough(results, task, seed, way):
    """Return the least rank whose part keeps ENOUGH of the accuracy gained; infinite where none does."""
    rows = [row for row in results.parts(task, seed) if row["way"] == way]
    return min((row["rank"] for row in rows if results.kept(task, seed, row) >= ENOUGH), default=math.inf)


def enough_by(results, task, seed, way, measure, limit):
    """Return the least rank at which a measure of the part is at least, or at most, a limit."""
    sign = MEASURES[measure]
    rows = [row for row in results.parts(task, seed) if row["way"] == way]
    return min((row["rank"] for row in rows if sign * row[measure] >= sign * limit), default=math.inf)


def lora_enough(results, seed):
    """Return the least rank at which LoRA on the movies has ENOUGH of the accuracy gained by full fine-tuning."""
    trained = {rank: results.of("lora", "movies", seed, rank) for rank in RANKS}
    return min((rank for rank, row in trained.items() if results.kept("movies", seed, row) >= ENOUGH), default=math.inf)


def points(results, measure, ways=None):
    """Return the measure, the fraction of the accuracy kept and the fine-tune's number, for every part of some ways."""
    rows = [
        (row[measure], results.kept(task, seed, row), number)
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
    """Return for each adapter that another was added to: both, what is kept of its gain, and every candidate."""
    rows = []
    for record in results.kind("sum"):
        pair = tuple(record["job"][1:3]), tuple(record["job"][4])
        for one, other, task in zip(pair, pair[::-1], record["tasks"], strict=True):
            gained = task["alone"]["accuracy"] - task["before"]["accuracy"]
            lost = task["alone"]["accuracy"] - task["summed"]["accuracy"]
            figures = {"cosine": record["cosine"]} | record["overlap"] | task
            rows.append(
                {"one": one, "other": other, "relation": relation(one, other), "kept": 1 - lost / gained}
                | {name: task[name]["accuracy"] for name in ("before", "alone", "summed")}
                | {name: figures[name] for name in CANDIDATES}
            )
    return rows


def relation(one, other):
    """Return what two adapters have in common."""
    if one[0] == other[0]:
        return "one task, two seeds"
    kind = "sentiment and corpus" if "corpus" in (one[0], other[0]) else "sentiment of two corpora"
    return f"{kind}, {'one seed' if one[1] == other[1] else 'two seeds'}"


def predict_sums(rows, candidate):
    """Return the rank correlation of a candidate with what a sum keeps, and its range as each adapter is left out."""
    left_out = [
        correlate(candidate, [row for row in rows if adapter not in (row["one"], row["other"])])
        for adapter in {row["one"] for row in rows}
    ]
    return Prediction(float(correlate(candidate, rows)), min(left_out), max(left_out))


def correlate(candidate, rows):
    """Return the rank correlation of a candidate with what a sum keeps."""
    return spearmanr([row[candidate] for row in rows], [row["kept"] for row in rows]).statistic


def cost(results):
    """Return the processor time of all jobs, in seconds."""
    return sum(record["cpu_seconds"] for record in results.records)
