"""Ways to keep a part of a fine-tune's update, and the measures of what was kept that need no task."""

import math

import numpy as np

from lowrank_core import truncate

# Whole matrices of the update, by their names: a part that is not the leading one of any matrix.
PARTS = {
    "attention": lambda name: ".attention." in name,
    "MLP": lambda name: ".attention." not in name,
}
RANDOM_FRACTION = 0.5


def plain(update, ranks):
    """Return the best update of each rank in the Frobenius norm."""
    factors = truncate(update, max(ranks))
    return {rank: factors.B[:, :rank] @ factors.A[:rank] for rank in ranks}


def weighted(update, second_moment, ranks):
    """Return the best update of each rank for the outputs, on inputs x with the mean x xᵀ = C.

    The mean of |(Δ − X)x|² is ‖(Δ − X)C^½‖², so that X C^½ is ΔC^½ truncated: X = UᵣUᵣᵀΔ with the left singular vectors
    of ΔC^½, whatever the rank of C.
    """
    factors = truncate(update @ root(second_moment), max(ranks))
    lengths = np.linalg.norm(factors.B, axis=0)
    directions = factors.B / np.where(lengths, lengths, 1.0)
    return {rank: directions[:, :rank] @ (directions[:, :rank].T @ update) for rank in ranks}


def root(second_moment):
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, directions = np.linalg.eigh(second_moment)
    return (directions * np.sqrt(values.clip(0))) @ directions.T


def random_part(update, rng):
    """Return the projection of an update onto random directions of its outputs, RANDOM_FRACTION of them."""
    m = update.shape[0]
    directions, _ = np.linalg.qr(rng.normal(size=(m, round(RANDOM_FRACTION * m))))
    return directions @ (directions.T @ update)


def measure(updates, kept, weights, moments, outputs_energy):
    """Return the variance captured, and the error beside the base and weighted by the inputs, all layers together.

    `outputs_energy` is that of the whole update, computed once for all its parts.
    """
    missed = {name: updates[name] - kept[name] for name in updates}
    error = sum(np.sum(part**2) for part in missed.values())
    whole = sum(np.sum(update**2) for update in updates.values())
    base = sum(np.sum(weight**2) for weight in weights.values())
    return {
        "variance": 1 - error / whole,
        "base_relative": math.sqrt(error / base),
        "weighted_error": math.sqrt(energy(missed, moments) / outputs_energy),
    }


def energy(updates, moments):
    """Return the mean of |Δx|² over the inputs, summed over the layers."""
    return inner(updates, updates, moments)


def inner(first, second, moments):
    """Return the mean of ⟨Δ₁x, Δ₂x⟩ over the inputs, summed over the layers."""
    return sum(float(np.sum((first[name] @ moments[name]) * second[name])) for name in first)


def change(outputs, before, whole):
    """Return the distance of outputs from those of the whole update, over that of the outputs without any update."""
    return float(np.linalg.norm(outputs - whole) / np.linalg.norm(before - whole))
