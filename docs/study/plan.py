"""What is run: rules, tasks, ranks, rates and seeds."""

import itertools
from dataclasses import dataclass

from lowrank_core import rslora, standard

ALPHA = 16
# The rank at which a rate is tuned that is then kept for every other rank: α/r and α = 2r are the same rule there.
TUNED_AT = 8
RULES = {
    "standard": lambda rank: standard(ALPHA, rank),
    "rslora": lambda rank: rslora(ALPHA, rank),
    "twice": lambda rank: standard(2 * rank, rank),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a study."""

    seeds: int = 3
    fresh_seeds: int = 8
    base_facts: int = 1024
    held_out: int = 256
    facts: tuple = (512, 128, 32)
    ranks: tuple = (1, 2, 4, 8, 16, 32, 64)
    few_facts_ranks: tuple = (1, 2, 4, 8, 16)
    sgd_ranks: tuple = (1, 4, 8, 16, 64)
    style_rates: tuple = (1e-3, 3e-3, 1e-2, 3e-2)
    facts_rates: tuple = (1e-3, 3e-3, 1e-2, 3e-2)
    few_facts_rates: tuple = (1e-2, 3e-2)
    full_rates: tuple = (3e-4, 1e-3, 4e-3, 1.2e-2, 3.6e-2)
    sgd_rates: tuple = (4e-3, 2e-2, 5e-2, 1e-1, 5e-1, 2.5)
    base_steps: int = 700
    base_batch: int = 256
    steps: int = 256
    batch: int = 32

    @property
    def tasks(self):
        """Return style, and facts by their number; every rule is tried on the first of the latter."""
        return ("style", *(f"facts {count}" for count in self.facts))


QUICK = Sizes(
    seeds=1,
    fresh_seeds=1,
    base_facts=64,
    held_out=16,
    facts=(32, 16, 8),
    ranks=(1, 8, 64),
    few_facts_ranks=(1, 8),
    sgd_ranks=(8, 64),
    style_rates=(1e-2,),
    facts_rates=(1e-2,),
    few_facts_rates=(1e-2,),
    full_rates=(4e-3,),
    sgd_rates=(1e-1,),
    base_steps=3,
    base_batch=16,
    steps=2,
    batch=16,
)


@dataclass(frozen=True)
class Run:
    """One fine-tune; rule and rank are None for a full one."""

    task: str
    optimizer: str
    rate: float
    seed: int
    rule: str | None = None
    rank: int | None = None


def runs_of(sizes, seed):
    """Yield all runs of one seed, the full ones first."""
    style, facts, *fewer = sizes.tasks
    full = itertools.product(sizes.tasks, ["adamw"], sizes.full_rates)
    full_sgd = itertools.product([facts], ["sgd"], sizes.sgd_rates)
    yield from (Run(*arms, seed) for arms in itertools.chain(full, full_sgd))
    for task, rates in ((style, sizes.style_rates), (facts, sizes.facts_rates)):
        for rate, (rule, rank) in itertools.product(rates, distinct(sizes.ranks)):
            yield Run(task, "adamw", rate, seed, rule, rank)
    for rate, (rule, rank) in itertools.product(sizes.sgd_rates, distinct(sizes.sgd_ranks)):
        yield Run(facts, "sgd", rate, seed, rule, rank)
    for task, rate, rank in itertools.product(fewer, sizes.few_facts_rates, sizes.few_facts_ranks):
        yield Run(task, "adamw", rate, seed, *canonical("twice", rank))


def fresh_runs_of(sizes, seed, rate):
    """What is run again on a fresh seed: facts, at rank TUNED_AT and at the largest, at the rates chosen before.

    `rate` gives the rate of (choice, task, optimizer, rule, rank).
    """
    facts, top = sizes.tasks[1], sizes.ranks[-1]
    for optimizer in ("adamw", "sgd"):
        yield Run(facts, optimizer, rate("best", facts, optimizer), seed)
        cells = itertools.product(("kept", "best"), RULES, (TUNED_AT, top))
        yield from dict.fromkeys(
            Run(facts, optimizer, rate(choice, facts, optimizer, rule, rank), seed, *canonical(rule, rank))
            for choice, rule, rank in cells
        )


def distinct(ranks):
    """(rule, rank) for each distinct γ at a rank: where two rules give the same γ, they are one run."""
    return list(dict.fromkeys(canonical(rule, rank) for rank in ranks for rule in RULES))


def canonical(rule, rank):
    """(rule, rank) with the first of the rules that give this γ at this rank."""
    if rule is None:
        return rule, rank
    gamma = RULES[rule](rank)
    return next(name for name, other in RULES.items() if abs(other(rank) - gamma) < 1e-9 * gamma), rank
