"""Factors padded to one rank."""

import numpy as np
import pytest

from lowrank_core import LowRankUpdate
from lowrank_core.models.formats.kohya import KOHYA
from lowrank_core.models.formats.peft import PEFT
from lowrank_core.models.operations import storing


@pytest.mark.parametrize("tail", [(), (1, 1)])
@pytest.mark.parametrize("target", [PEFT, KOHYA])
def test_padding_leaves_the_product_as_it_is(tail, target):
    rng = np.random.default_rng(0)
    dims = (6, 4, 3, 2) if tail else (6, 4)
    update = LowRankUpdate(rng.standard_normal((6, 2)), rng.standard_normal((2, int(np.prod(dims[1:])))))
    padded = storing._padded(update, 5)
    assert (padded.B.shape, padded.A.shape) == ((6, 5), (5, update.A.shape[1]))
    A, B = target.arrange(padded, target.place("x", dims, None, False), 5.0)[:2]
    assert (A.shape, B.shape) == ((5, *dims[1:]), (6, 5, *tail))
    assert np.array_equal(B.reshape(6, 5) @ A.reshape(5, -1), update.to_dense())
    assert np.count_nonzero(A[2:]) == np.count_nonzero(B[:, 2:]) == 0
