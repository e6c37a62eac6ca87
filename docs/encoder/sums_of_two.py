"""Add two adapters of one base, and compare what the sum does to each task with what was to be seen before."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import classifier as networks
import numpy as np
import torch
import truncations
from classifier import significant
from fine_tunes import ready
from schedule import FEW_TEXTS, MOMENT_TEXTS, SUMMED_RANK
from texts import Examples

from lowrank_core.models import compare, open_adapter


def summed(job, materials):
    """Return the record of a pair: the comparison of both adapters, and what their sum does to the task of each."""
    pair = [learn(materials, *who) for who in ((job.task, job.seed), job.other)]
    report = compare([one.folder for one in pair], rank=SUMMED_RANK).pairs[0]
    return {
        "cosine": significant(report.totals.cosine),
        "overlap": {side: mean_overlap(report, side, "overlap") for side in ("columns", "rows")},
        "overlap_by_chance": {side: mean_overlap(report, side, "overlap_by_chance") for side in ("columns", "rows")},
        "tasks": [disturbance(*pair, materials), disturbance(*pair[::-1], materials)],
    }


def mean_overlap(report, side, what):
    """Return the mean over layers of the overlap of whole column or row spaces."""
    return significant(np.mean([getattr(getattr(layer, side), what)[-1, -1] for layer in report.layers]))


@cache
def learn(materials, task, seed):
    """Return an adapter's update, its head and test texts, and their embeddings with it and without."""
    shown, asked = materials.examples(task, seed)
    folder = ready(materials, "lora", task, seed, SUMMED_RANK)
    updates = {layer.name: layer.update().to_dense() for layer in open_adapter(folder).layers}
    classifier = materials.make(task, seed)
    classifier.head.load_state_dict(torch.load(folder / "head.pt"))
    before = embed_with(materials, classifier, {}, asked.texts)
    alone = embed_with(materials, classifier, updates, asked.texts)
    moments = networks.second_moments(classifier, shown.texts[:MOMENT_TEXTS])
    return Learned(folder, updates, classifier, asked, before, alone, moments)


@dataclass(frozen=True)
class Learned:
    """A trained adapter, what it is tested on, and the second moments of its layers' inputs."""

    folder: Path
    updates: dict
    classifier: networks.Classifier
    asked: Examples
    before: np.ndarray
    alone: np.ndarray
    moments: dict


def embed_with(materials, classifier, updates, texts):
    """Return the embeddings of texts with updates on the base."""
    base = networks.weights(materials.encoder)
    networks.set_weights(classifier.encoder, {name: base[name] + updates.get(name, 0.0) for name in base})
    return networks.embeddings(classifier, texts)


def disturbance(one, other, materials):
    """Return what adding the other adapter does to the task of one, and each figure that could have told it."""
    both = {name: update + other.updates[name] for name, update in one.updates.items()}
    summed = embed_with(materials, one.classifier, both, one.asked.texts)
    few = slice(FEW_TEXTS)
    others = embed_with(materials, one.classifier, other.updates, one.asked.texts[:FEW_TEXTS])
    own, foreign = (truncations.energy(updates, one.moments) for updates in (one.updates, other.updates))
    crossed = truncations.inner(one.updates, other.updates, one.moments)
    moved = np.linalg.norm(one.alone[few] - one.before[few])
    figures = {
        "norm_ratio": norm(other.updates) / norm(one.updates),
        "weighted_cosine": crossed / np.sqrt(own * foreign),
        "weighted_ratio": np.sqrt(foreign / own),
        "output_ratio": np.linalg.norm(others - one.before[few]) / moved,
        "sum_change": np.linalg.norm(summed[few] - one.alone[few]) / moved,
    }
    return {name: significant(figure) for name, figure in figures.items()} | {
        name: networks.score(one.classifier.head, outputs, one.asked.labels)
        for name, outputs in (("before", one.before), ("alone", one.alone), ("summed", summed))
    }


def norm(updates):
    """Return the Frobenius norm of all updates together."""
    return np.sqrt(sum(np.sum(update**2) for update in updates.values()))
