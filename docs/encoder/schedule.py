"""What is run, in which order: fine-tunes in full and by LoRA, heads alone, and sums of two adapters."""

import itertools
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
# Not tuned: a usual rate of full fine-tuning, and ten times that for LoRA, as LoRA Without Regret found.
RATES = {"full": 1e-4, "lora": 1e-3}
SEEDS = (0, 1, 2)
# The seeds of a second task, and of the adapters that are summed.
FEWER_SEEDS = (0, 1)
RANKS = (1, 2, 4, 8)
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
    """Yield every job; one that needs another comes after it."""
    for seed in FEWER_SEEDS:
        yield Job("full", "movies", seed)
        yield from (Job("lora", task, seed, SUMMED_RANK) for task in SUMMED_TASKS)
        yield Job("full", "corpus", seed)
    yield Job("written", "movies", FEWER_SEEDS[0])
    for one, other in itertools.combinations(itertools.product(SUMMED_TASKS, FEWER_SEEDS), 2):
        yield Job("sum", *one, SUMMED_RANK, other)
    yield from (Job("full", "movies", seed) for seed in SEEDS if seed not in FEWER_SEEDS)
    for rank, seed in itertools.product(RANKS, SEEDS):
        if rank != SUMMED_RANK or seed not in FEWER_SEEDS:
            yield Job("lora", "movies", seed, rank)
    yield from (Job("head", "movies", seed) for seed in SEEDS)
    yield from (Job("head", "corpus", seed) for seed in FEWER_SEEDS)
