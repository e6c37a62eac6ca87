"""Singular values of small matrices, eight at a time, against LAPACK's."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import dqds, small
from tests.compiled import plain
from tests.internals.kernels.matrices import KINDS, with_values

EPS = 2.0**-52


def small_values(matrices, kernel=small.small_values):
    values = np.empty((len(matrices), min(matrices.shape[1:])))
    exponents = np.empty(len(matrices), np.int64)
    assert kernel(matrices, values, exponents) == 0
    return values, exponents


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (2, 2), (2, 3), (3, 2), (5, 17), (17, 5), (16, 16), (33, 31)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0, -1060, 1000])
def test_small_values_are_lapacks(shape, kind, power):
    matrices = np.ldexp(with_values(3, *shape, KINDS[kind](min(shape))), power)
    values, exponents = small_values(matrices)
    back = 1060 if power < 0 else -power  # where LAPACK loses no digit
    exact = np.linalg.svd(np.ldexp(matrices, back), compute_uv=False)
    found = np.ldexp(values, exponents[:, np.newaxis] + back)
    assert np.all(np.diff(found) <= 0)
    assert np.all(np.abs(found - exact) <= 4 * max(shape) * EPS * exact[:, :1])


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(20), np.eye(20, k=1), np.eye(20)[::-1].copy(), np.ones((20, 20)), np.tri(20), np.tri(20) - np.eye(20),
        np.diag(np.arange(20.0)), np.kron(np.eye(5), np.ones((4, 4))), np.diag([1.0, 1e-200, 5e-324]),
        np.full((20, 20), -1e300),
    ],
)  # fmt: skip
def test_small_values_of_matrices_with_structure(matrix):
    values, exponents = small_values(matrix[np.newaxis])
    exact = np.linalg.svd(matrix, compute_uv=False)
    assert np.all(np.abs(np.ldexp(values[0], exponents[0]) - exact) <= 20 * EPS * exact[0])


@pytest.mark.parametrize("n", [1, 5, 8, 33])
def test_what_the_other_lanes_hold_changes_no_bit(n):
    # Lanes that split, fail, finish early or have nothing to do, beside ordinary ones.
    matrices = np.concatenate([with_values(3, n, n, kind(n)) for kind in KINDS.values()])
    values, exponents = small_values(matrices)
    order = np.random.default_rng(0).permutation(len(matrices))
    for chosen in ([i] for i in range(len(matrices))), [order], [order[:5]]:
        for part in chosen:
            again = small_values(matrices[part])
            assert np.array_equal(again[0], values[part])
            assert np.array_equal(again[1], exponents[part])


def test_small_values_as_plain_python():
    matrices = np.concatenate([with_values(1, 4, 6, kind(4)) for kind in KINDS.values()])
    found = [
        np.ldexp(v, e[:, np.newaxis])
        for v, e in (small_values(matrices), small_values(matrices, plain(small.small_values)))
    ]
    assert np.allclose(*found, rtol=0, atol=1e-15 * found[0].max())


def test_small_matrices_that_do_not_converge_are_left_at_nan(monkeypatch):
    # No step allowed: a diagonal matrix needs none.
    monkeypatch.setattr(dqds, "NBIG", 0)
    monkeypatch.setattr(small, "dqds", plain(dqds.dqds))
    matrices = np.stack([np.diag([1.0, 3.0, 2.0]), with_values(1, 3, 3, KINDS["drawn"](3))[0]])
    values, exponents = np.empty((2, 3)), np.empty(2, np.int64)
    assert plain(small.small_values)(matrices, values, exponents) == 1
    assert np.allclose(np.ldexp(values[0], exponents[0]), [3.0, 2.0, 1.0], rtol=4 * EPS)
    assert np.isnan(values[1, 0])
