"""The reduction of one large matrix to bidiagonal form in two stages, against LAPACK's values."""

import numpy as np
import pytest

from lowrank_core._linalg import two_stage_svd
from lowrank_core._linalg.threads import Team, blas_threads
from tests.internals.kernels.matrices import KINDS, with_values


@pytest.mark.parametrize("shape", [(1, 1), (40, 33), (64, 64), (70, 20), (330, 299), (129, 128)])
@pytest.mark.parametrize("kind", KINDS)
def test_two_stages_to_bidiagonal_form_keep_the_values(shape, kind):
    (matrix,) = with_values(1, *shape, KINDS[kind](min(shape)))
    exact = np.linalg.svd(matrix, compute_uv=False)
    for given in (matrix, matrix.T):
        values = two_stage_svd.two_stage_svd_values(given[np.newaxis], 2).values[0]
        assert np.all(np.abs(values - exact) <= max(shape) * 2.0**-52 * exact[0])


def test_an_upper_band_does_not_depend_on_workers():
    matrix = np.random.default_rng(0).standard_normal((400, 350))
    bands = []
    for workers in (1, 3):
        with blas_threads(1), Team(workers) as team:
            bands.append(two_stage_svd.upper_band(matrix, team))
    assert np.array_equal(*bands)
