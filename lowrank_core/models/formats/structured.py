"""Updates of LyCORIS' kinds, made from their tensors without being dense: LoHa, LoKr, Tucker cores, differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core import KroneckerUpdate, LowRankUpdate, low_rank_hadamard, low_rank_tucker
from lowrank_core.models.files.tensors import PLAIN_WEIGHTS, StoredTensor, as_matrix, describe_shape
from lowrank_core.models.norms import Update

TUCKER = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

Tensors = Mapping[str, StoredTensor]
"""The tensors of one module, by the ends of their names, as "hada_w1_a"."""


class Parts(NamedTuple):
    """What the tensors of a module make.

    `build` makes the update from the content of `tensors`; `dims` is the module's shape as far as the tensors tell it,
    and `rank` the most that the rank of the update can be. Alpha is divided by `divisor`, the rank of the tensor that
    `factor` names; it is None where the scale is 1 whatever alpha is.
    """

    tensors: tuple[StoredTensor, ...]
    build: Callable[..., Update]
    dims: tuple[int, ...]
    rank: int
    divisor: int | None
    factor: str


def tucker_parts(module: str, tensors: Tensors) -> Parts:
    """Return the parts of a convolution's LoRA with a Tucker core: up, mid (r, r, kh, kw) and down."""
    down, up, mid = tensors_of(module, tensors, TUCKER)
    check_inner(module, (up.shape[1], mid.shape[0]), (mid.shape[1], down.shape[0]))
    for factor in (down, up):
        if math.prod(factor.shape[2:]) != 1:
            raise ValueError(
                f"{factor.key!r} has shape {describe_shape(factor.shape)}, but beside a Tucker core (lora_mid), which "
                "has the kernel, a factor is a matrix"
            )
    dims = (up.shape[0], down.shape[1], *mid.shape[2:])
    return Parts((up, mid, down), tucker_product, dims, _at_most(dims, up.shape[1]), down.shape[0], "lora_down")


def loha_parts(module: str, tensors: Tensors) -> Parts:
    """Return the parts of a LoHa: the Hadamard product of two products, or of two with Tucker cores."""
    w1_a, w1_b, w2_a, w2_b = tensors_of(module, tensors, LOHA[:4])
    rank, other_rank = w1_b.shape[0], w2_b.shape[0]
    if not tensors.keys() & set(LOHA[4:]):
        check_inner(module, (w1_a.shape[1], rank), (w2_a.shape[1], other_rank))
        dims = (w1_a.shape[0], *w1_b.shape[1:])
        bound = _at_most(dims, rank * other_rank)
        return Parts((w1_a, w1_b, w2_a, w2_b), hadamard_product, dims, bound, rank, "hada_w1_b")
    t1, t2 = tensors_of(module, tensors, LOHA[4:])
    check_inner(module, (w1_a.shape[0], t1.shape[0]), (t1.shape[1], rank), (w2_a.shape[0], t2.shape[0]))
    dims = (w1_a.shape[1], w1_b.shape[1], *t1.shape[2:])
    bound = _at_most(dims, w1_a.shape[0] * w2_a.shape[0])
    return Parts((t1, w1_a, w1_b, t2, w2_a, w2_b), tucker_hadamard_product, dims, bound, rank, "hada_w1_b")


def lokr_parts(module: str, tensors: Tensors) -> Parts:
    """Return the parts of a LoKr: the Kronecker product of two sides, each whole or a product."""
    left = _side(module, tensors, "lokr_w1")
    right = _side(module, tensors, "lokr_w2")
    if "lokr_t2" in tensors and len(right) == 2:
        (core,) = tensors_of(module, tensors, ("lokr_t2",))
        check_inner(module, (right[0].shape[0], core.shape[0]), (core.shape[1], right[1].shape[0]))
        right = (core, *right)
        right_dims, right_rank = (right[1].shape[1], right[2].shape[1], *core.shape[2:]), core.shape[0]
    else:
        right_dims, right_rank = (right[0].shape[0], *right[-1].shape[1:]), _inner_rank(module, right)
    rows, columns = left[0].shape[0], left[-1].shape[1]
    dims = (rows * right_dims[0], columns * right_dims[1], *right_dims[2:])
    left_rank = _inner_rank(module, left)
    bound = _at_most(left[0].shape[:1] + left[-1].shape[1:], left_rank) * _at_most(right_dims, right_rank)
    split = next(((side, name) for side, name in ((right, "lokr_w2_b"), (left, "lokr_w1_b")) if len(side) > 1), None)
    divisor, factor = (None, "") if split is None else (split[0][-1].shape[0], split[1])
    build = partial(kronecker_product, len(left))
    return Parts((*left, *right), build, dims, min(bound, *as_matrix(dims)), divisor, factor)


def difference_parts(tensor: StoredTensor) -> Parts:
    """Return the parts of a difference that is stored whole."""
    _check_matrix(tensor)
    return Parts((tensor,), whole_difference, tensor.shape, min(as_matrix(tensor.shape)), None, "")


def tensors_of(module: str, tensors: Tensors, names: tuple[str, ...]) -> tuple[StoredTensor, ...]:
    """Return the tensors of these names, once each is known to be there and a matrix."""
    for name in names:
        if name not in tensors:
            given = min(tensors)
            raise ValueError(
                f"{module!r} has {given} but no {name}: part of a product is not an update; the file is incomplete, "
                "save the adapter again"
            )
        _check_matrix(tensors[name])
    return tuple(tensors[name] for name in names)


def check_inner(module: str, *pairs: tuple[int, int]) -> None:
    """Check that factors agree in their ranks, which are given in pairs."""
    for first, second in pairs:
        if first != second:
            raise ValueError(f"the factors of {module!r} disagree: one has rank {first}, its partner rank {second}")


def tucker_product(up: NDArray[Any], mid: NDArray[Any], down: NDArray[Any], scaling: float) -> LowRankUpdate:
    """Return γ·up·(mid ×₂ down), as a product of rank r."""
    return low_rank_tucker(_matrix(up), mid.reshape(*mid.shape[:2], -1), _matrix(down), scaling)


def hadamard_product(
    w1_a: NDArray[Any], w1_b: NDArray[Any], w2_a: NDArray[Any], w2_b: NDArray[Any], scaling: float
) -> Update:
    """Return γ·(w1_a·w1_b) ⊙ (w2_a·w2_b): as factors where their rank is under that of a dense matrix."""
    first = LowRankUpdate(_matrix(w1_a), _matrix(w1_b))
    second = LowRankUpdate(_matrix(w2_a), _matrix(w2_b), scaling)
    return _hadamard(first, second)


def tucker_hadamard_product(
    t1: NDArray[Any],
    w1_a: NDArray[Any],
    w1_b: NDArray[Any],
    t2: NDArray[Any],
    w2_a: NDArray[Any],
    w2_b: NDArray[Any],
    scaling: float,
) -> Update:
    """Return the Hadamard product of two updates with Tucker cores, times γ."""
    return _hadamard(tucker_product(w1_a.T, t1, w1_b, 1.0), tucker_product(w2_a.T, t2, w2_b, scaling))


def kronecker_product(left: int, *values: Any) -> KroneckerUpdate:
    """Return γ·w1 ⊗ w2 of the arrays of both sides, `left` of which are the first's, and γ."""
    *arrays, scaling = values
    return KroneckerUpdate(_side_of(arrays[:left]), _side_of(arrays[left:]), scaling)


def whole_difference(array: NDArray[Any], scaling: float) -> NDArray[Any]:
    """Return a difference as a matrix."""
    return _matrix(array) if scaling == 1.0 else scaling * _matrix(array).astype(np.float64)


def _hadamard(first: LowRankUpdate, second: LowRankUpdate) -> Update:
    if first.rank * second.rank < min(first.shape):
        return low_rank_hadamard(first, second)
    return np.asarray(first.to_dense() * second.to_dense())


def _side_of(arrays: list[NDArray[Any]]) -> LowRankUpdate | NDArray[Any]:
    """Return one side of a Kronecker product: whole, or a product of two or, with a Tucker core, three arrays."""
    if len(arrays) == 1:
        return _matrix(arrays[0])
    if len(arrays) == 2:
        return LowRankUpdate(_matrix(arrays[0]), _matrix(arrays[1]))
    core, up, down = arrays
    return tucker_product(up.T, core, down, 1.0)


def _matrix(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(array.shape[0], -1)


def _side(module: str, tensors: Tensors, name: str) -> tuple[StoredTensor, ...]:
    halves = tensors.keys() & {f"{name}_a", f"{name}_b"}
    if name in tensors and halves:
        raise ValueError(f"{module!r} has {name} and {min(halves)}: which of them is applied is unknown")
    return tensors_of(module, tensors, (f"{name}_a", f"{name}_b") if halves else (name,))


def _inner_rank(module: str, side: tuple[StoredTensor, ...]) -> int:
    if len(side) == 1:
        return min(as_matrix(side[0].shape))
    check_inner(module, (side[0].shape[1], side[1].shape[0]))
    return side[0].shape[1]


def _at_most(dims: tuple[int, ...], rank: int) -> int:
    return min(rank, dims[0], math.prod(dims[1:]))


def _check_matrix(tensor: StoredTensor) -> None:
    if not tensor.is_floating:
        raise ValueError(f"{tensor.key!r} is stored as {tensor.dtype}: {PLAIN_WEIGHTS}")
    if len(tensor.shape) < 2 or not tensor.size:
        raise ValueError(f"{tensor.key!r} has shape {describe_shape(tensor.shape)}, but a factor is a matrix")
