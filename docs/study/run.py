"""Run the study: train all models, and write their measures, one line per run, to results/runs.jsonl.

    pip install -e '.[all]' --group test
    python docs/study/run.py                # two processes, well under an hour on two cores
    python docs/study/run.py --quick OUT    # the same code at a very small size, in seconds

A run that is already in the file is not repeated, so that an interrupted study goes on where it was. The page is made
from the file alone: docs/study/index.md says what was found, and why it was done so.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields, replace
from functools import lru_cache, partial
from pathlib import Path

# One thread per process: on two cores two processes are faster than two threads on one small matrix.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import analysis
import numpy as np
import tasks
import torch
import training
from model import TARGETS, Transformer
from plan import QUICK, Run, Sizes, fresh_runs_of, runs_of

from lowrank_core import (
    Spectrum,
    effective_rank,
    numerical_rank,
    rank_for_variance,
    stable_rank,
    variance_captured,
)

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
# The measures of rank of the library.
MEASURES = {
    "effective rank": effective_rank,
    "stable rank": stable_rank,
    "variance 0.9": partial(rank_for_variance, fraction=0.9),
    "variance 0.95": partial(rank_for_variance, fraction=0.95),
    "variance 0.99": partial(rank_for_variance, fraction=0.99),
    "numerical rank": numerical_rank,
}
# The ranks that the library picks for a matrix, from its spectrum; the numerical rank loses nothing, so it is left out.
PICKED = {
    name: lambda s, measure=measure: int(np.ceil(measure(s)))
    for name, measure in MEASURES.items()
    if name != "numerical rank"
}


@lru_cache(maxsize=1)
def materials(sizes, seed, folder):
    """Return the base of a seed, read from the folder or trained into it, and its tasks as (train, test) sentences."""
    rng = np.random.default_rng(seed)
    facts = tasks.draw_facts(sizes.base_facts + max(sizes.facts), rng)
    known, new = facts[: sizes.base_facts], facts[sizes.base_facts :]
    base = base_model(sizes, seed, known, Path(folder, f"base-{seed}.pt"))
    shown = sizes.base_facts - sizes.held_out
    examples = {f"facts {count}": (tasks.plain(new[:count]),) * 2 for count in sizes.facts}
    return base, examples | {"style": (tasks.styled(known[:shown]), tasks.styled(known[shown:]))}


def base_model(sizes, seed, known, path):
    """Train the base on its corpus, once."""
    torch.manual_seed(seed)
    base = Transformer(tasks.VOCABULARY, tasks.LENGTH)
    if path.exists():
        base.load_state_dict(torch.load(path))
        return base
    corpus = torch.cat([tasks.plain(known), tasks.polite(known), tasks.inverted(known)])
    training.train(
        base, corpus, optimizer="adamw", rate=3e-3, steps=sizes.base_steps, batch=sizes.base_batch, seed=seed
    )
    partial_file = path.with_suffix(f".{os.getpid()}")
    torch.save(base.state_dict(), partial_file)
    partial_file.replace(path)
    return base


def prepare(sizes, seed, folder):
    """Train the base of a seed, and return its scores on its corpus and on the tasks."""
    torch.set_num_threads(1)
    begun = time.process_time()
    base, examples = materials(sizes, seed, folder)
    scores = {task: training.score(base, test) for task, (_, test) in examples.items()}
    return {"seed": seed, "base": scores, "cpu_seconds": round(time.process_time() - begun, 2)}


def perform(run, sizes, folder):
    """Return the record of one run."""
    torch.set_num_threads(1)
    begun = time.process_time()
    base, examples = materials(sizes, run.seed, folder)
    shown, asked = examples[run.task]
    network = training.fully(base) if run.rank is None else training.adapted(base, run.rule, run.rank, run.seed)
    training.train(
        network, shown, optimizer=run.optimizer, rate=run.rate, steps=sizes.steps, batch=sizes.batch, seed=run.seed
    )
    found = training.score(network, asked) | {"train_loss": training.score(network, shown)["loss"]}
    update = training.lora_update(network) if run.rank else training.full_update(base, network)
    spectra = training.spectra_of(update)
    if spectra:
        found |= training.measured(spectra)
    if run.rank:
        found["scaling"] = next(iter(update.values())).scaling
    elif spectra:
        found |= dissected(base, update, spectra, asked, sizes.ranks)
    return asdict(run) | found | {"cpu_seconds": round(time.process_time() - begun, 2)}


def dissected(base, update, spectra, asked, ranks):
    """Return the ranks of a full update by every measure, its variance by rank, and the scores of its adapters."""
    wanted = {str(rank): rank for rank in ranks} | PICKED
    return {
        "measures": {
            name: [training.significant(measure(matrix)) for measure in MEASURES.values()]
            for name, matrix in spectra.items()
        },
        "captured": {
            kind: [training.significant(part, 4) for part in variance_captured(stack_of(spectra, kind)).mean(0)[1:]]
            for kind in TARGETS
        },
        "extracted": {name: training.extracted(base, update, asked, rank) for name, rank in wanted.items()},
    }


def stack_of(spectra, kind):
    """Return the spectra of every layer's matrix of one kind, as a batch."""
    found = [s for name, s in spectra.items() if name.endswith(kind)]
    return Spectrum(
        np.stack([s.values for s in found]), np.array([s.norm for s in found]), found[0].shape, complete=True
    )


def key(line):
    """Return what identifies a run."""
    return tuple(line.get(name) for name in (field.name for field in fields(Run)))


def study(sizes, out, workers):
    """Do every run that the file does not have yet, seed by seed; then those of the fresh seeds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for seed in range(sizes.seeds):
            one_seed(pool, sizes, seed, runs_of(sizes, seed), out)
        rate = analysis.load(out, sizes).rate
        for seed in range(sizes.seeds, sizes.seeds + sizes.fresh_seeds):
            one_seed(pool, sizes, seed, fresh_runs_of(sizes, seed, rate), out)


def one_seed(pool, sizes, seed, runs, out):
    """Do those runs of a seed that the file does not have yet."""
    folder = out.parent / "bases"
    folder.mkdir(exist_ok=True)
    done = {key(json.loads(line)) for line in out.read_text(encoding="utf-8").splitlines()} if out.exists() else set()
    with out.open("a", encoding="utf-8") as file:
        if key({"seed": seed}) not in done:
            write(file, pool.submit(prepare, sizes, seed, folder).result())
        jobs = [pool.submit(perform, run, sizes, folder) for run in runs if key(asdict(run)) not in done]
        for count, job in enumerate(as_completed(jobs), 1):
            write(file, job.result())
            print(f"\rseed {seed}: {count} of {len(jobs)} runs", end="", flush=True)
        print()


def write(file, found):
    """Append a line and flush it, so that an interrupt loses no finished run."""
    file.write(json.dumps(found) + "\n")
    file.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=Sizes.seeds)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", type=Path, metavar="OUT", help="a tiny study into this folder")
    options = parser.parse_args()
    if options.quick:
        study(QUICK, options.quick / "runs.jsonl", options.workers)
    else:
        study(replace(Sizes(), seeds=options.seeds), RESULTS, options.workers)


if __name__ == "__main__":
    main()
