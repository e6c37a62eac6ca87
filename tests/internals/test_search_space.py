"""The search space of a block Krylov iteration: what its basis and its projection are, to the rounding of products."""

import numpy as np
import pytest

from lowrank_core import update_with_spectrum
from lowrank_core._linalg.kernels.sizes import BAND, COLUMNS
from lowrank_core._linalg.narrow_products import rows_of, tall_matrix
from lowrank_core._linalg.orthogonal import ORTHONORMAL, lq
from lowrank_core._linalg.search_space import CHOLESKY_QR_TOL, SearchSpace, orthonormalised
from lowrank_core._linalg.threads import Team

INDEX = np.arange(1.0, 401)
# What is outside a space falls slowly, fast, to nothing, or is far below one value.
MATRICES = {
    "noise": np.random.default_rng(0).standard_normal((450, 400)),
    "1/i": update_with_spectrum(1 / INDEX, (450, 400), rng=0),
    "steep": update_with_spectrum(0.8**INDEX + 1e-12, (450, 400), rng=0),
    "spike": update_with_spectrum(np.r_[1e4, 2 - INDEX[1:] / 400], (450, 400), rng=0),
    "low rank": update_with_spectrum(np.r_[np.ones(70), np.zeros(330)], (450, 400), rng=0),
    "few rows": np.vstack([np.eye(40, 400), np.zeros((410, 400))]),
}
# How far a basis may be from orthonormal, in eps: in float64 by ORTHONORMAL, and in float32 by products with it.
DISTANCES = {"float32": 2.0, "float64": 30.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MATRICES)
def test_a_basis_is_orthonormal_to_the_rounding_of_its_precision_however_it_grows(name, dtype):
    matrix, eps = MATRICES[name].astype(dtype), float(np.finfo(dtype).eps)
    exact = matrix.astype(np.float64)
    with Team(2) as team:
        X, _ = tall_matrix(matrix, team)
        space = SearchSpace(X, COLUMNS)
        block = orthonormalised(np.random.default_rng(0).standard_normal((COLUMNS, 400)))[0]
        for _ in range(9):
            space.extend(block)
            block = space.gram_block
        Q = space.Q.astype(np.float64)
        assert Q.shape == (9 * COLUMNS, 400)
        assert np.max(np.abs(Q @ Q.T - np.eye(len(Q)))) <= DISTANCES[dtype] * eps
        assert np.max(np.abs(Q @ block.T)) <= eps
        products = Q @ exact.T
        largest = np.linalg.norm(exact, 2) ** 2
        assert np.max(np.abs(space.projection - products @ products.T)) <= 3 * eps * largest
        # What the projection has beside a band is rounding, in that of columns of its own size.
        beside = np.max(np.abs(np.tril(space.projection, -BAND - 1)))
        assert beside <= 2 * eps * np.max(np.diagonal(space.projection))
        # XᵀX times the last block is in the space but for what couples it to the next.
        image = products[-COLUMNS:] @ exact
        outside = image - (image @ Q.T) @ Q
        assert np.max(np.linalg.norm(outside - space.coupling @ block, axis=1)) <= 2 * eps * largest


def test_a_space_goes_on_in_another_precision_with_what_it_has():
    matrix = MATRICES["1/i"]
    with Team(1) as team:
        X, _ = tall_matrix(matrix, team)
        space = SearchSpace(X, 3 * COLUMNS)
        space.extend(orthonormalised(np.random.default_rng(0).standard_normal((COLUMNS, 400)))[0])
        Q, projection, block = space.Q.copy(), space.projection.copy(), space.gram_block
        space.multiply_by(X.in_precision("float32"))
        assert space.Q.dtype == np.float32
        assert np.array_equal(space.Q, Q.astype(np.float32))
        assert np.array_equal(space.projection, projection)
        space.extend(block)
        assert np.array_equal(space.projection[:COLUMNS, :COLUMNS], projection)
        assert np.allclose(space.projection, space.Q @ matrix.T @ matrix @ space.Q.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_which_nothing_is_outside_are_completed(dtype):
    rng, eps = np.random.default_rng(0), float(np.finfo(dtype).eps)
    basis = lq(rng.standard_normal((50, 90)), CHOLESKY_QR_TOL)[1]
    others = lq(rng.standard_normal((20, 90)) @ (np.eye(90) - basis.T @ basis), CHOLESKY_QR_TOL)[1]
    new = rng.standard_normal(90)
    block = np.vstack([rng.standard_normal((3, 50)) @ basis, np.zeros(90), new, 1e-9 * new, others[:2]])
    with Team(1) as team:
        bases = [rows_of(rows.astype(dtype), team) for rows in (basis, others)]
        for first in (None, [], bases[:1]):
            rows, coupling = orthonormalised(block, *bases, first=first)
            every = np.vstack([basis, others, rows])
            assert np.max(np.abs(every @ every.T - np.eye(len(every)))) <= 10 * eps
            outside = block - block @ basis.T @ basis - block @ others.T @ others
            assert np.max(np.abs(coupling @ rows - outside)) <= 20 * eps * np.max(np.linalg.norm(block, axis=1))


def test_one_cholesky_qr_is_enough_for_rows_in_good_condition_alone_and_in_a_batch():
    rng = np.random.default_rng(0)
    good, bad = rng.standard_normal((2, 8, 400))
    bad[1] = bad[0] + 1e-5 * bad[1]
    L, Q = lq(good[np.newaxis], CHOLESKY_QR_TOL)
    (gram,) = Q @ Q.swapaxes(-1, -2)
    assert np.max(np.abs(gram - np.eye(8))) <= ORTHONORMAL
    assert np.allclose(L @ Q, good, rtol=0, atol=1e-13)
    together = lq(np.stack([bad, good]), CHOLESKY_QR_TOL)
    assert np.array_equal(together[0][1], L[0])
    assert np.array_equal(together[1][1], Q[0])
    gram = together[1][0] @ together[1][0].T
    assert np.max(np.abs(gram - np.eye(8))) <= ORTHONORMAL
    assert np.allclose(together[0][0] @ together[1][0], bad, rtol=0, atol=1e-10)
