"""A matrix is decomposed once, whatever is asked of it, and its factors come from the least work."""

import numpy as np
import pytest

from lowrank_core import (
    KroneckerUpdate,
    LowRankUpdate,
    compare,
    error_sweep,
    learning_sweep,
    rank_for_variance,
    spectrum,
    truncate,
    update_with_spectrum,
)
from lowrank_core._linalg.kernels import gram, small, vectors
from lowrank_core._linalg.routes import Problem, choose_route

UPDATE = update_with_spectrum([4.0, 3.0, 2.0, 1.0], (6, 5), rng=0)


def test_nothing_is_decomposed_twice(monkeypatch):
    calls = []
    for module, name in ((small, "small_values"), (gram, "tridiagonals"), (vectors, "leading_vectors")):
        compiled = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=compiled, _n=name: calls.append((_n, a[0].shape)) or _f(*a))
    for name in ("svd", "eigh", "eigvalsh", "eigvals", "svdvals", "qr"):
        plain = getattr(np.linalg, name)
        monkeypatch.setattr(
            np.linalg, name, lambda *a, _f=plain, _n=name, **k: calls.append((_n, a[0].shape)) or _f(*a, **k)
        )

    def count(function, *args, **kwargs):
        calls.clear()
        function(*args, **kwargs)
        return sum(int(np.prod(shape[:-2])) for name, shape in calls if name != "qr")

    stack = np.stack([UPDATE] * 3)
    s = spectrum(stack)
    for update in (stack, stack.astype(np.float32), LowRankUpdate(stack, np.eye(5, 4))):
        assert count(spectrum, update) == 3
        assert count(truncate, update, 2) == 3
        assert count(truncate, update, lambda s: rank_for_variance(s, 0.9).max()) == 3
    assert count(learning_sweep, stack, [1, 2, 3], steps=2) == 3
    assert count(learning_sweep, s, [1, 2, 3], steps=2) == 0
    assert count(error_sweep, s, None) == 0
    # Six updates, and the products of their vectors on both sides, which have the cosines of their angles.
    first, second = np.zeros((2, 3, 8, 9))
    first[:, :3, :3], second[:, 4:7, 4:7] = np.diag([3.0, 2.0, 1.0]), np.diag([5.0, 4.0, 1e-3])
    for rank in (None, 2):
        assert count(compare, first, second, rank=rank) == 6 + 6
    # Well-conditioned ones, whose spaces are the same: angles below 45° have sines too.
    assert count(compare, first + np.eye(8, 9), second - np.eye(8, 9)) == 6 + 6 + 6
    kronecker = [KroneckerUpdate(left, np.eye(3, 4)) for left in np.array([[[2.0, 0], [0, 1]], [[0, 3.0], [1, 0]]])]
    assert count(compare, *kronecker) == 4 + 2 + 2


@pytest.mark.parametrize(
    ("dtype", "shape", "name"),
    [
        ("float32", (8, 8), "direct"),
        ("float32", (512, 512), "direct"),
        ("float32", (100, 399), "direct"),
        ("float32", (100, 400), "gram"),
        ("float32", (400, 100), "gram"),
        ("float32", (513, 513), "gram"),
        ("float64", (100, 400), "direct"),
        ("float64", (513, 513), "lapack"),
    ],
)
def test_factors_come_from_a_kernel_where_no_gram_matrix_is_less_work(dtype, shape, name):
    expected = choose_route(name, Problem("float64", shape)).factors
    assert choose_route("auto", Problem(dtype, shape)).factors is expected
