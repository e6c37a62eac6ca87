"""Updates that depend on the base model's weight, dense and exact: of DoRA, GLoRA, OFT, BOFT and IA3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.norms import Update

ON_ITS_BASE = (
    "inspect it on its base (lowrank inspect ADAPTER --base BASE), or extract a LoRA of it (lowrank extract BASE "
    "ADAPTER OUT)"
)
"""What to do with an update that depends on the base model: in commands, whose options not every verb has."""
WITH_MAGNITUDES = (
    "DoRA: the update is m·(W + γBA)/‖W + γBA‖ − W, with the magnitudes m, and the figures are of γBA alone: for those "
    f"of the update itself, {ON_ITS_BASE}"
)
"""Why the layer of a DoRA adapter is not its update."""
# What LyCORIS and ComfyUI add to a norm before they divide by it; PEFT adds nothing.
_EPSILON = float(np.finfo(np.float32).eps)


def glora(
    W: NDArray[Any], a1: NDArray[Any], a2: NDArray[Any], b1: NDArray[Any], b2: NDArray[Any], scaling: float
) -> NDArray[np.float64]:
    """Return γ·(W·a1·a2 + b1·b2) of LyCORIS' GLoRA, where a1·a2 maps the inputs of each position of a kernel."""
    inner = _matrix(a1) @ _matrix(a2)
    return scaling * (_matrix(np.einsum("oi...,ij->oj...", W.astype(np.float64), inner)) + _matrix(b1) @ _matrix(b2))


@dataclass(frozen=True)
class OrthogonalBlocks:
    """Rᵀ·W − W of LyCORIS' OFT, whose R has orthogonal blocks, or of BOFT, a product of such R and permutations.

    Each block is Cayley's transform of a skew matrix, of which the Frobenius norm is at most the constraint times the
    number of outputs. `rescaled` says that each row of the product is multiplied by a number of its own.
    """

    constraint: float
    rescaled: bool

    def __call__(self, W: NDArray[Any], blocks: NDArray[Any], *values: Any) -> NDArray[np.float64]:
        """Return the update of a weight."""
        weight = _matrix(W)
        R = self._rotations(blocks.astype(np.float64), len(weight))
        rotated = _blockwise(R, weight) if R.ndim == 3 else _butterfly(R, weight)
        if self.rescaled:
            rotated = rotated * values[0].astype(np.float64).reshape(-1, 1)
        return rotated - weight

    def _rotations(self, blocks: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
        skew = blocks - np.swapaxes(blocks, -1, -2)
        norm, largest = float(np.linalg.norm(skew)) + 1e-8, self.constraint * rows
        if 0 < largest < norm:
            skew *= largest / norm
        identity = np.eye(blocks.shape[-1])
        return (identity + skew) @ np.linalg.inv(identity - skew)


@dataclass(frozen=True)
class ScaledChannels:
    """W·l of IA3, or l·W: the change of a weight whose inputs, or outputs, are multiplied by 1 + l."""

    on_input: bool

    def __call__(self, W: NDArray[Any], scales: NDArray[Any], _scaling: float) -> NDArray[np.float64]:
        """Return the update of a weight."""
        axis = 1 if self.on_input else 0
        shape = tuple(-1 if each == axis else 1 for each in range(W.ndim))
        return _matrix(W.astype(np.float64) * scales.astype(np.float64).reshape(shape))


@dataclass(frozen=True)
class WithMagnitudes:
    """m ⊙ (W + Δ)/‖W + Δ‖ − W of DoRA, with Δ made by `build`.

    The norms are over all but one axis, that of the magnitudes: `axis`, or the one that their shape tells, as LyCORIS
    and ComfyUI take it.
    """

    build: Callable[..., Update]
    axis: int | None

    def __call__(self, W: NDArray[Any], magnitudes: NDArray[Any], *values: Any) -> NDArray[np.float64]:
        """Return the update of a weight."""
        weight = W.astype(np.float64)
        update = self.build(*values)
        dense = update.astype(np.float64) if isinstance(update, np.ndarray) else update.to_dense()
        tuned = weight + dense.reshape(weight.shape)
        axis = self._axis(magnitudes.shape, weight.shape)
        rest = tuple(each for each in range(weight.ndim) if each != axis)
        norms = np.sqrt(np.sum(tuned**2, axis=rest, keepdims=True))
        scales = magnitudes.astype(np.float64).reshape(norms.shape) / (norms + (_EPSILON if self.axis is None else 0.0))
        return _matrix(scales * tuned - weight)

    def _axis(self, magnitudes: tuple[int, ...], weight: tuple[int, ...]) -> int:
        if self.axis is not None:
            return self.axis
        on_input = len(magnitudes) > 1 and magnitudes[0] == 1 < weight[0]
        return 1 if on_input else 0


def _blockwise(R: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of the transpose of a matrix with the blocks R and a weight."""
    rows = weight.reshape(*R.shape[:2], -1)
    return np.asarray(np.einsum("knm,knj->kmj", R, rows).reshape(weight.shape))


def _butterfly(R: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of BOFT's factors, of which number i mixes rows that are 2^i·b/2 apart, and a weight."""
    _, _, size, _ = R.shape
    for i, blocks in enumerate(R):
        step = 2**i * (size // 2)
        rows = weight.reshape(-1, 2, step, weight.shape[-1]).swapaxes(1, 2).reshape(-1, size, weight.shape[-1])
        rows = np.einsum("bij,bjn->bin", blocks, rows)
        weight = rows.reshape(-1, step, 2, weight.shape[-1]).swapaxes(1, 2).reshape(-1, weight.shape[-1])
    return weight


def _matrix(array: NDArray[Any]) -> NDArray[np.float64]:
    return array.astype(np.float64).reshape(len(array), -1)
