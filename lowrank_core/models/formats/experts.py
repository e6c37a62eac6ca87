"""Experts whose factors are stacked in two tensors: a layer for each of them, and the stack that they are stored as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.adapter import AdapterLayer


def without_experts(title: str, experts: int) -> str:
    """Return why a format does not store a layer that is one of several in a stack."""
    return f"one of {experts} experts that are stacked in one tensor, which {title} does not have"


def expert_layers(
    stack: AdapterLayer, experts: int, factors_of: Callable[[int], tuple[StoredTensor, StoredTensor]]
) -> list[AdapterLayer]:
    """Return a layer for each expert of a stack, as "name[0]", with its own parts of B and A."""
    return [
        replace(
            stack,
            placement=replace(
                stack.placement, name=f"{stack.placement.name}[{expert}]", expert=expert, experts=experts
            ),
            tensors=factors_of(expert),
        )
        for expert in range(experts)
    ]


def stacked(updates: Mapping[int, LowRankUpdate], experts: int, rank: int) -> LowRankUpdate:
    """Return the updates of experts as one batch of this rank; one of zeros where an expert has none."""
    first = next(iter(updates.values()))
    B = np.zeros((experts, first.shape[0], rank), first.B.dtype)
    A = np.zeros((experts, rank, first.shape[1]), first.A.dtype)
    for expert, update in updates.items():
        B[expert, :, : update.rank], A[expert, : update.rank] = update.B, update.A
    return LowRankUpdate(B, A, first.scaling)


def experts_last(update: LowRankUpdate) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return factors of a batch as PEFT stacks them: A (experts·r, in), and B (out, r·experts), the experts last."""
    B, A = update.B, update.A
    return A.reshape(-1, A.shape[-1]), np.moveaxis(B, 0, -1).reshape(B.shape[1], -1)
