"""Summaries of the runs: means over seeds with their intervals, best rates, ranks that were enough."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from plan import TUNED_AT, Run, Sizes, canonical, fresh_runs_of, runs_of

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
# A rank is enough when it closes this part of the gap between the base's loss and full fine-tuning's ...
CLOSED = 0.95
# ... and, for recall, when it is within this of full fine-tuning's.
WITHIN = 0.02
# Student's t for a two-sided 95 % interval, by degrees of freedom.
STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("up", "down")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and half the width of its 95 % interval (Student's t)."""

    mean: float
    half: float

    def excludes(self, value):
        """Whether the whole interval is on one side of a value."""
        return abs(self.mean - value) > self.half


@dataclass(frozen=True)
class Study:
    """All runs of the complete seeds, on which rates are chosen, and of the fresh seeds, at these rates."""

    sizes: Sizes
    seeds: tuple
    fresh: tuple
    runs: dict
    bases: dict

    def cell(self, task, optimizer, rate, rule=None, rank=None, *, fresh=False):
        """Return the runs that differ in their seed alone."""
        seeds = self.fresh if fresh else self.seeds
        return [self.runs[Run(task, optimizer, rate, seed, *canonical(rule, rank))] for seed in seeds]

    def values(self, what, task, optimizer, rate, rule=None, rank=None, *, fresh=False):
        """Return a loss, recall or other figure for each seed; a diverged run has an infinite loss."""
        found = (run.get(what) for run in self.cell(task, optimizer, rate, rule, rank, fresh=fresh))
        return np.array([math.inf if value is None else value for value in found])

    def rates(self, task, optimizer, rule, rank):
        """Return the rates that were tried."""
        where = (task, optimizer, *canonical(rule, rank))
        return sorted({run.rate for run in self.runs if (run.task, run.optimizer, run.rule, run.rank) == where})

    def best_rate(self, task, optimizer, rule=None, rank=None):
        """Return the rate of the lowest mean loss."""
        rates = self.rates(task, optimizer, rule, rank)
        return min(rates, key=lambda rate: self.values("loss", task, optimizer, rate, rule, rank).mean())

    def rate(self, choice, task, optimizer, rule=None, rank=None):
        """Return the "best" rate of this rank, or the "kept" one, which was best at rank TUNED_AT."""
        return self.best_rate(task, optimizer, rule, TUNED_AT if rank and choice == "kept" else rank)

    def base_loss(self, task, *, fresh=False):
        """Return the loss of each seed's base, before any fine-tune."""
        return np.array([self.bases[seed]["base"][task]["loss"] for seed in (self.fresh if fresh else self.seeds)])

    def at(self, what, choice, task, optimizer, rule=None, rank=None, *, fresh=False):
        """Return a figure for each seed at the rate of a choice."""
        rate = self.rate(choice, task, optimizer, rule, rank)
        return self.values(what, task, optimizer, rate, rule, rank, fresh=fresh)

    def extracted(self, what, task, rank):
        """Return a figure of the adapters extracted from the best full update, at a rank or by a measure, by seed."""
        cell = self.cell(task, "adamw", self.best_rate(task, "adamw"))
        return np.array([run["extracted"][str(rank)][what] for run in cell])

    def measure(self, name, task, kinds, rate=None):
        """Return the mean of a measure over the matrices of these kinds in the full update, for each seed."""
        cell = self.cell(task, "adamw", self.best_rate(task, "adamw") if rate is None else rate)
        place = MEASURES.index(name)
        return np.array(
            [np.mean([row[place] for name, row in run["measures"].items() if name.endswith(kinds)]) for run in cell]
        )

    def captured(self, task, kinds):
        """Return the variance of the full update captured at ranks 1 … p, mean over the kinds: (seeds, p)."""
        cell = self.cell(task, "adamw", self.best_rate(task, "adamw"))
        return np.array([np.mean([run["captured"][kind] for kind in kinds], axis=0) for run in cell])


# In the order in which a run lists them.
MEASURES = ["effective rank", "stable rank", "variance 0.9", "variance 0.95", "variance 0.99", "numerical rank"]


def load(path=RESULTS, sizes=None):
    """Read the complete seeds of a study."""
    sizes = sizes or Sizes()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bases = {line["seed"]: line for line in lines if "base" in line}
    runs = {Run(*(line[name] for name in Run.__dataclass_fields__)): line for line in lines if "task" in line}
    seeds = tuple(seed for seed in range(sizes.seeds) if all(run in runs for run in runs_of(sizes, seed)))
    study = Study(sizes, seeds, (), {run: line for run, line in runs.items() if run.seed in seeds}, bases)
    again = range(sizes.seeds, sizes.seeds + sizes.fresh_seeds)
    fresh = tuple(seed for seed in again if all(run in runs for run in fresh_runs_of(sizes, seed, study.rate)))
    return replace(study, fresh=fresh, runs={run: line for run, line in runs.items() if run.seed in seeds + fresh})


def estimate(values):
    """Return the mean and 95 % interval of one figure per seed: infinity and NaN if a seed diverged."""
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        return Estimate(math.inf, math.nan)
    freedom = len(values) - 1
    half = STUDENT[freedom] * values.std(ddof=1) / math.sqrt(len(values)) if freedom else math.inf
    return Estimate(float(values.mean()), float(half))


def closed(study, task, loss, optimizer="adamw", *, fresh=False):
    """Return the fraction of the gap between the base's loss and full fine-tuning's that a loss closes, by seed."""
    base, full = study.base_loss(task, fresh=fresh), study.at("loss", "best", task, optimizer, fresh=fresh)
    return (base - loss) / (base - full)


def is_enough(study, what, task, values, optimizer="adamw"):
    """Whether each seed's loss or recall is as good as full fine-tuning's, as CLOSED and WITHIN say."""
    if what == "loss":
        return closed(study, task, values, optimizer) >= CLOSED
    return values >= study.at("recall", "best", task, optimizer) - WITHIN


def rank_enough(study, what, task, source):
    """Return the least rank that is enough, for each seed; infinite where none is.

    The source is "extracted", or (choice of rate, rule) for LoRA under AdamW.
    """
    fewer = study.sizes.tasks[2:]
    ranks = study.sizes.few_facts_ranks if task in fewer and source != "extracted" else study.sizes.ranks
    found = {}
    for rank in ranks:
        if source == "extracted":
            values = study.extracted(what, task, rank)
        else:
            choice, rule = source
            values = study.at(what, choice, task, "adamw", rule, rank)
        found[rank] = is_enough(study, what, task, values)
    return [min((rank for rank in ranks if found[rank][seed]), default=math.inf) for seed in range(len(study.seeds))]


def at_an_edge(study):
    """Return (cells whose best rate is at an end of their grid, all cells): in these a better rate may lie outside.

    Not of the smaller sets of facts, which are learned whatever the rate.
    """
    tasks = study.sizes.tasks[:2]
    cells = {(run.task, run.optimizer, run.rule, run.rank) for run in study.runs if run.task in tasks}
    ends = [study.best_rate(*cell) in (study.rates(*cell)[0], study.rates(*cell)[-1]) for cell in cells]
    return sum(ends), len(ends)


def cost(study):
    """Return the processor time of the complete seeds, in seconds."""
    seeds = study.seeds + study.fresh
    return sum(line["cpu_seconds"] for line in [*study.runs.values(), *study.bases.values()] if line["seed"] in seeds)
