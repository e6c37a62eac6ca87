"""Compute what ranks and parts of a full fine-tune's update do for its task."""

import classifier as networks
import numpy as np
import truncations
from classifier import significant
from schedule import FEW_TEXTS, MOMENT_TEXTS, PLAIN_RANKS, WEIGHTED_RANKS

from lowrank_core import effective_rank, rank_for_variance, spectrum, stable_rank

MEASURES = {
    "effective rank": effective_rank,
    "stable rank": stable_rank,
    "variance 0.9": lambda s: rank_for_variance(s, 0.9),
    "variance 0.95": lambda s: rank_for_variance(s, 0.95),
    "variance 0.99": lambda s: rank_for_variance(s, 0.99),
}
# The ranks at which the tuned biases and norms are added, beside the whole update and none of it.
WITH_VECTORS = (1,)


def dissect(base, classifier, shown, asked, outputs, seed):
    """Return the ranks of a full update, and the measures and scores of parts of it; the classifier is left changed."""
    before, after = networks.weights(base), networks.weights(classifier.encoder)
    old, new = networks.vectors(base), networks.vectors(classifier.encoder)
    updates = {name: after[name] - before[name] for name in before}
    moments = networks.second_moments(classifier, shown.texts[:MOMENT_TEXTS])
    whole = truncations.energy(updates, moments)
    rows, untouched = [], None
    for way, rank, kept, is_tuned in ways(updates, moments, np.random.default_rng(seed)):
        networks.set_weights(
            classifier.encoder, {name: before[name] + kept[name] for name in before}, new if is_tuned else old
        )
        vectors = networks.embeddings(classifier, asked.texts)
        # The first way is the base.
        untouched = vectors if untouched is None else untouched
        few = (part[:FEW_TEXTS] for part in (vectors, untouched, outputs))
        measured = truncations.measure(updates, kept, before, moments, whole) | {
            "output_change": truncations.change(*few)
        }
        rows.append(
            {"way": way, "rank": rank}
            | {name: significant(value) for name, value in measured.items()}
            | networks.score(classifier.head, vectors, asked.labels)
        )
    return {"update": describe(updates, before, old, new), "parts": rows}


def ways(updates, moments, rng):
    """Yield (way, rank, update kept, whether with the tuned biases and norms), nothing first."""
    nothing = {name: np.zeros_like(update) for name, update in updates.items()}
    plain = {name: truncations.plain(update, PLAIN_RANKS) for name, update in updates.items()}
    weighted = {name: truncations.weighted(update, moments[name], WEIGHTED_RANKS) for name, update in updates.items()}
    yield "nothing", 0, nothing, False
    yield "vectors", 0, nothing, True
    for rank in PLAIN_RANKS:
        yield "plain", rank, at(plain, rank), False
    for rank in WITH_VECTORS:
        yield "plain and vectors", rank, at(plain, rank), True
    for rank in WEIGHTED_RANKS:
        yield "weighted", rank, at(weighted, rank), False
    yield "matrices", None, updates, False
    for part, belongs in truncations.PARTS.items():
        yield part, None, {name: update if belongs(name) else nothing[name] for name, update in updates.items()}, False
    yield "half", None, {name: update / 2 for name, update in updates.items()}, False
    yield "random", None, {name: truncations.random_part(update, rng) for name, update in updates.items()}, False


def at(truncated, rank):
    """Return every layer's update of a rank."""
    return {name: by_rank[rank] for name, by_rank in truncated.items()}


def describe(updates, before, old, new):
    """Return the ranks of an update by each measure, mean over the layers and all together, and its size."""
    spectra = {name: spectrum(update) for name, update in updates.items()}
    energies = np.zeros(max(len(s.values) for s in spectra.values()))
    for s in spectra.values():
        energies[: len(s.values)] += s.values**2
    captured = np.cumsum(energies) / energies.sum()
    return {
        "ranks": {
            name: significant(np.mean([measure(s) for s in spectra.values()])) for name, measure in MEASURES.items()
        },
        "all_together": {f"variance {part}": int(np.searchsorted(captured, part)) + 1 for part in (0.9, 0.95, 0.99)},
        "base_relative": significant(np.sqrt(energies.sum() / sum(np.sum(weight**2) for weight in before.values()))),
        "vectors_relative": significant(
            np.sqrt(
                sum(((new[name] - old[name]) ** 2).sum().item() for name in old)
                / sum((old[name] ** 2).sum().item() for name in old)
            )
        ),
    }
