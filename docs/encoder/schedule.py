"""What is run, in which order: fine-tunes in full and by LoRA, heads alone, and sums of two adapters."""

import itertools
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
# Not tuned: a usual rate of full fine-tuning, and ten times that for LoRA, as LoRA Without Regret found.
RATES = {"full": 1e-4, "lora": 1e-3}
SEEDS = (0, 1, 2)
# The seeds of the adapters that are added.
FEWER_SEEDS = (0, 1)
RANKS = (1, 8)
SUMMED_RANK = 8
PLAIN_RANKS = (1, 2, 4, 8, 16, 32)
WEIGHTED_RANKS = (1, 2, 4)
WRITTEN_RANKS = (4, 8, 16, 32)
STEPS, BATCH = 60, 16
TEST = 400
# Texts for the inputs' second moments (trained on), and for the change of the outputs (tested on, labels unused).
MOMENT_TEXTS, FEW_TEXTS = 128, 32
SUMMED_TASKS = ("movies", "tweets", "corpus")


@dataclass(frozen=True)
class Job:
    """One line of the results: a training, or what is done with trained models."""

    kind: str
    task: str
    seed: int
    rank: int | None = None
    other: tuple | None = None

    @property
    def key(self):
        """What names it in the results."""
        return [self.kind, self.task, self.seed, self.rank, list(self.other) if self.other else None]


def jobs():
    """Yield every job, a job that needs another after it, and what answers most first."""
    yield Job("full", "movies", 0)
    yield from (Job("lora", task, 0, SUMMED_RANK) for task in SUMMED_TASKS)
    yield Job("full", "corpus", 0)
    yield Job("written", "movies", 0)
    yield Job("full", "movies", 1)
    yield from (Job("lora", task, 1, SUMMED_RANK) for task in SUMMED_TASKS)
    for one, other in itertools.combinations(itertools.product(SUMMED_TASKS, FEWER_SEEDS), 2):
        # Two seeds of one task, or two tasks of one seed.
        if (one[0] == other[0]) != (one[1] == other[1]):
            yield Job("sum", *one, SUMMED_RANK, other)
    yield Job("full", "movies", 2)
    yield Job("lora", "movies", 2, SUMMED_RANK)
    yield from (Job("lora", "movies", seed, rank) for rank in RANKS if rank != SUMMED_RANK for seed in SEEDS)
    yield from (Job("head", "movies", seed) for seed in SEEDS)
    yield Job("head", "corpus", 0)
