"""Low-rank updates in factored form."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import KroneckerUpdate, LowRankUpdate, compare

B = np.arange(6.0).reshape(3, 2)
A = np.array([[1.0, 0.0, -1.0, 2.0], [0.5, 1.0, 0.0, 0.0]])
DENSE = 0.5 * B @ A


def test_a_product_has_its_rank_its_shape_and_its_scaling():
    update = LowRankUpdate(B, A, 0.5)
    assert (update.rank, update.shape, update.scaling, update.dtype) == (2, (3, 4), 0.5, "float64")
    assert np.array_equal(update.to_dense(), DENSE)
    assert LowRankUpdate(B, A).scaling == 1.0
    assert LowRankUpdate(B, A, -1).to_dense().tolist() == (-2 * DENSE).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_factors_keep_their_own_dtype(dtype):
    update = LowRankUpdate(B.astype(dtype), A)
    assert update.B.dtype == dtype
    assert update.A.dtype == np.float64
    assert update.dtype == np.dtype(dtype).name
    assert update.to_dense().dtype == np.float64
    assert update.apply(np.ones(4)).dtype == np.float64
    # A product in the stored dtype would be wrong in the fourth digit.
    rough = np.full((1, 1), 1.001).astype(dtype)
    assert LowRankUpdate(rough, rough).to_dense() == float(rough[0, 0]) ** 2


def test_lists_become_arrays():
    update = LowRankUpdate([[1.0], [2.0]], [[3.0, 4.0, 5.0]])
    assert update.rank == 1
    assert isinstance(update.B, np.ndarray)
    assert isinstance(update.A, np.ndarray)
    # What follows from the factors is not repeated.
    assert repr(update).count("shape") == 0


def test_apply_takes_vectors_along_the_last_axis():
    update = LowRankUpdate(B, A, 0.5)
    x = np.random.default_rng(0).standard_normal((5, 6, 4))
    assert np.allclose(update.apply(x), x @ DENSE.T, rtol=1e-14, atol=1e-14)
    assert update.apply(x[0, 0]).shape == (3,)
    assert update.apply([1, 0, 0, 0]).tolist() == DENSE[:, 0].tolist()


def test_batches_broadcast():
    stack = LowRankUpdate(np.stack([B, 2 * B])[:, np.newaxis], np.stack([A, -A, 3 * A]))
    assert stack.shape == (2, 3, 3, 4)
    assert np.array_equal(stack.to_dense()[1, 2], 6 * B @ A)
    assert np.array_equal(stack.apply(np.ones(4)), stack.to_dense() @ np.ones(4))
    x = np.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(stack.apply(x)[1, 2], stack.to_dense()[1, 2] @ x[1, 2])


def test_a_product_of_rank_0_is_zero():
    update = LowRankUpdate(np.ones((3, 0)), np.ones((0, 4)))
    assert update.rank == 0
    assert np.array_equal(update.to_dense(), np.zeros((3, 4)))
    assert np.array_equal(update.apply(np.ones(4)), np.zeros(3))
    assert update.balanced().shape == (3, 4)


def test_balanced_factors_have_the_square_root_of_sigma_each():
    update = LowRankUpdate(np.eye(3, 2) * [8.0, 0.5], np.eye(2, 4), 3.0).balanced()
    assert np.allclose(update.B, np.eye(3, 2) * np.sqrt([8.0, 0.5]), rtol=1e-15)
    assert np.allclose(update.A, np.eye(2, 4) * np.sqrt([[8.0], [0.5]]), rtol=1e-15)
    assert update.scaling == 3.0


@pytest.mark.parametrize("sizes", [(1.0, 1e-200), (1e200, 1e-200), (1e300, 1e-300), (5e-324, 1.0), (1e-160, 1e-160)])
def test_balancing_keeps_components_of_any_size(sizes):
    big, small = sizes
    update = LowRankUpdate(np.diag([big, small]), np.diag([small, big]))
    product = big * small
    assert np.allclose(np.diag(update.balanced().to_dense()), product, rtol=4 * 2.0**-52, atol=5e-324)
    assert np.all(np.isfinite(update.balanced().B))


def test_balanced_factors_of_a_component_with_one_zero_factor_are_zero():
    update = LowRankUpdate([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]]).balanced()
    assert not update.B.any()
    assert not update.A.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_balanced_factors_are_float64(dtype):
    update = LowRankUpdate(B.astype(dtype), A.astype(dtype), 0.5).balanced()
    assert update.B.dtype == update.A.dtype == np.float64
    assert np.allclose(update.to_dense(), DENSE, rtol=1e-14, atol=1e-14)


def test_factors_that_do_not_multiply_are_refused():
    with pytest.raises(ValueError, match=r"B of shape \(3, 2\) has rank 2 but A of shape \(4, 2\) has rank 4; B is"):
        LowRankUpdate(B, A.T)
    with pytest.raises(ValueError, match=r"batch axes of B \(2,\) and A \(3,\) do not broadcast"):
        LowRankUpdate(np.ones((2, 3, 1)), np.ones((3, 1, 4)))
    with pytest.raises(ValueError, match=r"B has shape \(3,\); a matrix"):
        LowRankUpdate(np.ones(3), A)
    with pytest.raises(ValueError, match=r"B of shape \(0, 2\) and A of shape \(2, 4\) make empty matrices; m and n"):
        LowRankUpdate(np.ones((0, 2)), A)
    with pytest.raises(ValueError, match=r"empty"):
        LowRankUpdate(B, np.ones((2, 0)))
    with pytest.raises(ValueError, match=r"A has unsupported dtype complex128; accepted are"):
        LowRankUpdate(B, A.astype(complex))
    for scaling in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"scaling must be finite; got"):
            LowRankUpdate(B, A, scaling)


def test_x_must_end_in_n():
    for x in (np.ones(3), np.ones((4, 3)), 1.0):
        with pytest.raises(ValueError, match=r"its last axis must be n = 4"):
            LowRankUpdate(B, A).apply(x)


@pytest.mark.parametrize(
    ("B_entry", "A_entry", "scaling", "entry"),
    [
        (1e200, 1e200, 1e-300, 1e100),
        (1e-200, 1e-200, 1e300, 1e-100),
        (1e300, 1e-300, -1.0, -1.0),
        (1e-200, 1e200, 1e-200, 1e-200),
    ],
)
def test_products_that_fit_float64_are_computed_whatever_the_parts_are(B_entry, A_entry, scaling, entry):
    exact = np.full((4, 3), entry)
    update = LowRankUpdate(np.full((4, 1), B_entry), np.full((1, 3), A_entry), scaling)
    kronecker = KroneckerUpdate(np.full((4, 1), B_entry), np.full((1, 3), A_entry), scaling)
    for each in (update, kronecker):
        np.testing.assert_allclose(each.to_dense(), exact, rtol=1e-15)
        np.testing.assert_allclose(each.apply(np.ones(3)), exact.sum(axis=1), rtol=1e-15)
        np.testing.assert_allclose(each @ np.eye(3), exact, rtol=1e-15)
        np.testing.assert_allclose(np.eye(4) @ each, exact, rtol=1e-15)
    assert f"norm {np.sqrt(12) * abs(entry):.4g}," in repr(update)
    assert compare(update, -exact).sum_norm <= 1e-15 * abs(entry)


def test_components_of_sizes_far_apart_are_kept_by_products():
    far = LowRankUpdate(np.diag([1e200, 1e-200]), np.diag([1e-200, 1e200]))
    assert far.to_dense().tolist() == np.eye(2).tolist()
    assert far.apply([1.0, 2.0]).tolist() == [1.0, 2.0]
    assert (far @ far).to_dense().tolist() == np.eye(2).tolist()


@pytest.mark.parametrize("power", [-200, 0, 200])
def test_a_product_of_updates_has_no_entry_of_theirs_out_of_range(power):
    first = LowRankUpdate(np.full((4, 1), 10.0**power), np.full((1, 3), 10.0**-power))
    second = LowRankUpdate(np.full((3, 1), 10.0**-power), np.full((1, 5), 10.0**power), 2.0)
    np.testing.assert_allclose((first @ second).to_dense(), np.full((4, 5), 6.0), rtol=1e-15)
    zero = LowRankUpdate(np.ones((3, 0)), np.ones((0, 5)))
    assert not (first @ zero).to_dense().any()
    with pytest.raises(ValueError, match="A of the right side contains nan"):
        first @ LowRankUpdate(np.ones((3, 1)), [[np.nan]])


@pytest.mark.parametrize(("entry", "norm"), [(1e100, "3.464e+200"), (1e-100, "3.464e-200"), (1e300, "inf")])
def test_the_norm_that_is_shown_is_that_of_the_update(entry, norm):
    assert f"norm {norm}," in repr(LowRankUpdate(np.full((4, 1), entry), np.full((1, 3), entry)))


def test_the_scaling_is_a_plain_float():
    for scaling in (2, np.float32(2), np.int64(2)):
        assert type(LowRankUpdate(B, A, scaling).scaling) is float
