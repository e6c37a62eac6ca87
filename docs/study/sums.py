"""Add two adapters of the study's model, style and facts, and compare what they are with what their sum does.

    python docs/study/sums.py    # some minutes; one line per seed, in results/sums.jsonl

Both adapters have rank 16 and one base. A seed that is already in the file is not repeated.
"""

import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import training
from plan import Sizes
from run import materials, write

from lowrank_core.models import compare

RESULTS = Path(__file__).parent / "results" / "sums.jsonl"
SEEDS, RANK = 3, 16
# The learning rate of each task with the best recall at this rank, of those that the study tried.
RATES = {"style": 3e-3, "facts 512": 1e-2}
WEIGHTS = (1.0, 0.5)


def perform(seed, folder):
    """Return the record of one seed: recalls alone and summed, and the comparison of both adapters."""
    begun = time.process_time()
    sizes = Sizes()
    base, examples = materials(sizes, seed, folder)
    updates, paths, recalls = {}, [], {}
    for task, rate in RATES.items():
        shown, asked = examples[task]
        network = training.adapted(base, "twice", RANK, seed)
        training.train(network, shown, optimizer="adamw", rate=rate, steps=sizes.steps, batch=sizes.batch, seed=seed)
        recalls[task] = training.score(network, asked)["recall"]
        updates[task] = training.lora_update(network)
        paths.append(Path(folder, f"{task}-{seed}".replace(" ", "-")))
        network.save_pretrained(paths[-1])
    summed = {
        str(weight): {task: training.score(network, examples[task][1])["recall"] for task in RATES}
        for weight in WEIGHTS
        for network in [with_updates(base, updates.values(), weight)]
    }
    return (
        {"seed": seed, "recall": recalls, "summed": summed}
        | compared(paths)
        | {"cpu_seconds": round(time.process_time() - begun, 2)}
    )


def with_updates(base, updates, weight):
    """Return a copy of the base with all updates added, each times a weight."""
    network = copy.deepcopy(base)
    with torch.no_grad():
        for update in updates:
            for name, factors in update.items():
                network.get_submodule(name).weight += weight * torch.from_numpy(factors.to_dense())
    return network


def compared(paths):
    """Return the figures of a comparison of two adapters."""
    pair = compare(paths, rank=RANK).pairs[0]
    spaces = {side: [getattr(layer, side) for layer in pair.layers] for side in ("columns", "rows")}
    return {
        "cosine": training.significant(pair.totals.cosine),
        "cosine_deviation": training.significant(pair.totals.cosine_deviation),
        "growth": training.significant(pair.totals.sum_norm / pair.totals.orthogonal_norm),
        "overlap": {side: mean(space.overlap for space in each) for side, each in spaces.items()},
        "overlap_by_chance": {side: mean(space.overlap_by_chance for space in each) for side, each in spaces.items()},
    }


def mean(overlaps):
    """Return the mean over layers of the overlap of whole spaces."""
    return training.significant(np.mean([overlap[-1, -1] for overlap in overlaps]))


def main():
    torch.set_num_threads(1)
    done = {json.loads(line)["seed"] for line in RESULTS.read_text().splitlines()} if RESULTS.exists() else set()
    with tempfile.TemporaryDirectory() as folder, RESULTS.open("a", encoding="utf-8") as file:
        for seed in sorted(set(range(SEEDS)) - done):
            write(file, perform(seed, folder))


if __name__ == "__main__":
    main()
