"""PyTorch's tensors as input, recognised by their methods: each means its numbers, or is refused in words."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lowrank_core import KroneckerUpdate, LowRankUpdate, numerical_rank, spectrum, truncate, variance_captured
from lowrank_core.rounding_noise import rounding_noise
from lowrank_core.testing import assert_eckart_young, assert_same_update, assert_spectrum, updates
from tests import bounds
from tests.internals.test_validation import MATRIX, calls, means_its_numbers, refused

NARROW = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("update", "dtype"),
    [
        (torch.tensor(MATRIX), "float64"),
        (torch.tensor(MATRIX, dtype=torch.float32, requires_grad=True), "float32"),
        (torch.tensor(MATRIX, dtype=torch.float16), "float16"),
        (torch.tensor(MATRIX, dtype=torch.bfloat16), "bfloat16"),
        (torch.nn.Parameter(torch.tensor(MATRIX, dtype=torch.bfloat16)), "bfloat16"),
        (torch.tensor(MATRIX).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.tensor(MATRIX).to(torch.float8_e5m2), "float8_e5m2"),
        (torch.tensor(MATRIX).T.contiguous().T, "float64"),
        (torch.tensor(np.repeat(MATRIX, 2, axis=1))[:, ::2], "float64"),
        (torch.tensor(np.repeat(MATRIX, 2, axis=0), dtype=torch.bfloat16)[::2], "bfloat16"),
        (torch.tensor(4 * MATRIX).to(torch.int64) / 4, "float32"),
    ],
)
@calls
def test_each_stored_dtype_and_layout_means_its_numbers(call, update, dtype):
    means_its_numbers(call, update, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_operators_keep_the_stored_dtype(dtype):
    factor = torch.tensor(MATRIX).to(dtype)
    for update in (LowRankUpdate(factor, factor.T), KroneckerUpdate(factor, factor)):
        for result in (1.0 * update, update / 1, -1 * -update):
            assert result.dtype == str(dtype).removeprefix("torch.")
            assert result == update
            assert numerical_rank(spectrum(result)) == numerical_rank(spectrum(update))


def test_integers_are_taken_as_float64_and_a_whole_number_is_a_rank():
    assert spectrum(torch.ones((2, 3), dtype=torch.int64)).dtype == "float64"
    assert variance_captured(spectrum(MATRIX), torch.tensor(3)) == variance_captured(spectrum(MATRIX), 3)
    assert truncate(MATRIX, torch.tensor(3)).rank == 3


def test_they_are_read_in_place_and_not_tracked():
    tensor = torch.ones(3, 3, requires_grad=True)
    update = LowRankUpdate(tensor, np.eye(3))
    assert np.shares_memory(update.B, tensor.detach().numpy())
    spectrum(tensor)
    assert tensor.grad is None


@calls
def test_what_is_elsewhere_than_in_memory_or_complex_is_refused(call):
    refused(call, torch.ones((2, 2), device="meta"), "tensor on meta", "no numbers", "load its weights")
    refused(call, torch.ones((2, 2), dtype=torch.complex64), "dtype complex64", "accepted are float64, float32")


def test_a_dtype_that_numpy_lacks_is_refused():
    for dtype in (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        refused(spectrum, torch.ones((2, 2)).to(dtype), "float8", "accepted are float64", ".float()")
    refused(spectrum, torch.ones((2, 2)).to_sparse(), "sparse", "accepted are float64", ".to_dense()")


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_factors(dtype):
    B, A = np.arange(6.0).reshape(3, 2), np.array([[1.0, 0.0, -1.0, 2.0], [0.5, 1.0, 0.0, 0.0]])
    left = torch.nn.Parameter(torch.tensor(B, dtype=dtype))
    update = LowRankUpdate(left, torch.tensor(A, dtype=dtype), 0.5)
    assert isinstance(update.B, np.ndarray)
    assert update.dtype == str(dtype).removeprefix("torch.")
    assert np.array_equal(update.to_dense(), 0.5 * B @ A)


def test_apply_is_what_a_linear_layer_does():
    update = LowRankUpdate(MATRIX, np.eye(4, 6), 0.5)
    layer = torch.nn.Linear(6, 5, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(update.to_dense()))
    x = np.random.default_rng(0).standard_normal((5, 6, 6))
    assert np.allclose(update.apply(x), layer(torch.tensor(x)).detach().numpy(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", NARROW)
def test_truncations_and_verifiers(dtype):
    tensor = torch.nn.Parameter(torch.tensor(MATRIX, dtype=dtype))
    assert_spectrum(tensor, np.linalg.svd(MATRIX, compute_uv=False))
    assert_eckart_young(tensor, truncate(tensor, 2), 2, eps=bounds.EPS32)
    assert_same_update(truncate(tensor, 4), tensor, eps=bounds.EPS32)


def test_stored_weights_are_read_in_their_own_dtype():
    base = np.random.default_rng(9).standard_normal((20, 10)).astype(np.float32)
    tuned = base + np.float32(0.1)
    tensors = [torch.from_numpy(array).to(torch.bfloat16) for array in (base, tuned)]
    assert rounding_noise(*tensors) == rounding_noise(base.astype(ml_dtypes.bfloat16), tuned.astype(ml_dtypes.bfloat16))


def test_the_strategies_find_a_randomised_routine_out():
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(updates(dtypes=["float32"], kinds=["graded", "clustered", "ordinary"]))
    def torch_lowrank(update):
        torch.manual_seed(0)  # or the same update would pass once and fail once
        _, values, _ = torch.svd_lowrank(torch.tensor(np.ascontiguousarray(update)), q=min(update.shape), niter=0)
        assert_spectrum(update, values.numpy()[:1], eps=2.0**-52)

    with pytest.raises(AssertionError, match="singular value"):
        torch_lowrank()
