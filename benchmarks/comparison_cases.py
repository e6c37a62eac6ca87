"""Cases of questions about two updates: their comparison, and the rows of a training run's step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import inputs
from benchmarks.cases import Case, Contender, Floats
from lowrank_core import LowRankUpdate, compare
from lowrank_core.models.operations.history_rows import history_rows

# How far a step moves a factor beside its own size, and the leading directions that a step's angles are between.
STEP, LEADING = 1e-2, 4

Factors = tuple[NDArray[Any], NDArray[Any]]


def pairs(count: int, size: int, rank: int, near: bool) -> Case:
    """Two adapters of layers of size × size, in float32: unrelated, or a step of training apart."""
    first, second = _factors(count, size, rank, near)
    one, other = (LowRankUpdate(B, A) for B, A in (first, second))
    expected = [_by_qr(first, second, i) for i in range(count)]

    def error(answer: list[Floats]) -> float:
        figures = zip(answer, zip(*expected, strict=True), strict=True)
        return max(float(np.max(np.abs(computed - np.stack(exact)))) for computed, exact in figures)

    def ours() -> list[Floats]:
        comparison = compare(one, other)
        sides = (comparison.columns, comparison.rows)
        return [
            comparison.cosine,
            *(figure for side in sides for figure in (side.overlap, side.first_captured, side.second_captured)),
        ]

    return Case(
        f"{count} × ({size} × {rank})({rank} × {size}), float32, compared{' with the step before' if near else ''}",
        Contender("lowrank_core", ours),
        (
            Contender(
                "numpy QR and SVDs of cores",
                lambda: [
                    np.stack(each) for each in zip(*(_by_qr(first, second, i) for i in range(count)), strict=True)
                ],
            ),
        ),
        error,
        unit="",
        bound=1e-10,
        peer_bound=1e-10,
        limits=(Contender("the float64 Gram matrices alone", _grams(first, second)),),
    )


def training_step(layers: int, size: int, rank: int) -> Case:
    """The rows of one step of a LoRA's training, from its factors and from those of the step before."""
    first, second = _factors(layers, size, rank, near=True)
    before, after = (LowRankUpdate(B, A) for B, A in (first, second))
    names = [f"layers.{i}.q_proj" for i in range(layers)]
    expected = np.array([_row_by_svd(first, second, i) for i in range(layers)])

    def ours() -> Floats:
        rows = history_rows(1, names, after, before, LEADING)
        figures = ((row.norm, row.largest_value, row.column_angle, row.row_angle) for row in rows)
        return np.array(list(figures))

    return Case(
        f"rows of {layers} layers of {size}², rank {rank}",
        Contender("lowrank_core", ours),
        (),
        error=lambda answer: float(np.max(np.abs(answer / expected - 1.0))),
        unit="relative",
        # Values of float32 factors are exact to eps32·σ₁.
        bound=2.0**-23,
    )


def _factors(count: int, size: int, rank: int, near: bool) -> tuple[Factors, Factors]:
    """Return two stacks of factors, components falling as 1/√i so that each singular vector is well defined."""
    rng, sizes = inputs.generator(count, size, rank), np.arange(1, rank + 1) ** -0.5
    drawn = [
        (rng.standard_normal((count, size, rank)) * sizes, rng.standard_normal((count, rank, size))) for _ in range(2)
    ]
    if near:
        drawn[1] = (drawn[0][0] + STEP * drawn[1][0], drawn[0][1] + STEP * drawn[1][1])
    first, second = ((B.astype(np.float32), A.astype(np.float32)) for B, A in drawn)
    return first, second


def _decomposed(factors: Factors, i: int) -> tuple[Floats, Floats, Floats]:
    """Return the singular vectors and values of one product, by QR of both factors."""
    (Q_B, R_B), (Q_A, R_A) = (np.linalg.qr(X.astype(np.float64)) for X in (factors[0][i], factors[1][i].T))
    U, values, Vt = np.linalg.svd(R_B @ R_A.T)
    return Q_B @ U, values, Q_A @ Vt.T


def _by_qr(first: Factors, second: Factors, i: int) -> list[Floats]:
    """Return the cosine of a pair, and of both sides the overlaps and what each captures of the other."""
    one, other = _decomposed(first, i), _decomposed(second, i)
    squares = [values**2 / np.sum(values**2) for values in (one[1], other[1])]
    sides = [one[j].T @ other[j] for j in (0, 2)]
    figures = [np.asarray(np.sqrt(squares[0]) @ (sides[0] * sides[1]) @ np.sqrt(squares[1]))]
    for products in sides:
        common, ranks = np.square(products), np.arange(1, len(products) + 1)
        figures += [
            common.cumsum(axis=0).cumsum(axis=1) / np.minimum.outer(ranks, ranks),
            np.cumsum(squares[0] @ common),
            np.cumsum(common @ squares[1]),
        ]
    return figures


def _row_by_svd(first: Factors, second: Factors, i: int) -> tuple[float, ...]:
    """Return the norm, the largest value and the two largest leading angles of a row, in degrees."""
    one, other = _decomposed(first, i), _decomposed(second, i)
    angles = []
    for j in (0, 2):
        before, after = one[j][:, :LEADING], other[j][:, :LEADING]
        sines = np.linalg.svd(after - before @ (before.T @ after), compute_uv=False)
        angles.append(float(np.degrees(np.arcsin(sines[0]))))
    return float(np.linalg.norm(other[1])), float(other[1][0]), *angles


def _grams(first: Factors, second: Factors) -> Any:
    """Return a function that forms the Gram matrices of all pairs of factors, from float64 copies that are there."""
    B = np.concatenate([first[0], second[0]], axis=-1, dtype=np.float64)
    A = np.concatenate([first[1], second[1]], axis=-2, dtype=np.float64)
    return lambda: (B.swapaxes(-1, -2) @ B, A @ A.swapaxes(-1, -2))
