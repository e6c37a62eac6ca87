"""Kronecker products, sums, Hadamard products and Tucker factors: dtypes, layouts, batches, and what LyCORIS builds."""

from dataclasses import FrozenInstanceError

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import (
    KroneckerUpdate,
    LowRankUpdate,
    learning_sweep,
    low_rank_hadamard,
    low_rank_sum,
    low_rank_tucker,
    numerical_rank,
    spectrum,
    truncate,
)
from tests.cells import Cells

L = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
R = np.arange(8.0).reshape(4, 2) - 3.0
FACTORS = LowRankUpdate(R[:, :1], R[:1], 2.0)


def test_a_kronecker_product_of_subnormal_factors_has_a_norm():
    tiny = np.float32(1e-42)
    L = LowRankUpdate(np.full((2, 1), tiny), np.full((1, 2), tiny))
    whole = spectrum(KroneckerUpdate(L, L))
    assert abs(whole.norm / (4 * float(tiny) ** 4) - 1) <= 1e-15
    assert whole.values[0] == whole.norm


def test_a_kronecker_product_has_the_shape_rank_scaling_and_dtype_of_its_sides():
    update = KroneckerUpdate(L, R, -0.5)
    assert (update.shape, update.rank, update.scaling, update.dtype) == ((8, 6), 4, -0.5, "float64")
    assert np.array_equal(update.to_dense(), -0.5 * np.kron(L, R))
    assert KroneckerUpdate(L, FACTORS).rank == 2
    # A factor of a rank beyond min(m, n) has no more values than that.
    assert KroneckerUpdate(L, LowRankUpdate(np.ones((2, 5)), np.ones((5, 2)))).rank == 4
    assert repr(update).count("shape") == 0


def test_sides_are_lists_arrays_or_products():
    assert KroneckerUpdate([[1, 2]], [[3], [4]]).to_dense().tolist() == [[3.0, 6.0], [4.0, 8.0]]
    assert np.array_equal(KroneckerUpdate(FACTORS, L).to_dense(), np.kron(FACTORS.to_dense(), L))
    assert KroneckerUpdate(FACTORS, FACTORS, 3).scaling == 3.0
    assert KroneckerUpdate(L, FACTORS).right is FACTORS


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_sides_keep_their_own_dtype(dtype):
    update = KroneckerUpdate(L.astype(dtype), R)
    assert update.left.dtype == dtype
    assert update.right.dtype == np.float64
    assert update.dtype == spectrum(update).dtype == np.dtype(dtype).name
    assert update.to_dense().dtype == update.apply(np.ones(6)).dtype == np.float64
    # Entries that these dtypes hold exactly.
    assert np.allclose(spectrum(update).values, spectrum(KroneckerUpdate(L, R)).values, rtol=0, atol=1e-5)
    assert truncate(update, 2).B.dtype == np.float64


@pytest.mark.parametrize("left", [L, FACTORS])
@pytest.mark.parametrize("right", [R, FACTORS])
def test_values_and_truncations_are_those_of_the_dense_matrix(left, right):
    update = KroneckerUpdate(left, right, -0.5)
    U, values, Vt = np.linalg.svd(update.to_dense(), full_matrices=False)
    result = spectrum(update)
    p = len(result.values)
    assert result.complete
    assert np.allclose(result.values, values[:p], rtol=1e-14, atol=1e-14)
    assert np.allclose(values[p:], 0.0, atol=1e-13)
    best = truncate(update, 1)
    assert best.scaling == 1.0
    assert np.allclose(best.to_dense(), values[0] * np.outer(U[:, 0], Vt[0]), atol=1e-13)
    assert np.allclose(best.A @ best.A.T, 1.0, rtol=1e-14)
    assert truncate(update, 0).rank == 0
    assert np.allclose(truncate(update, min(update.shape)).to_dense(), update.to_dense(), atol=1e-12)


def test_read_only_strided_and_transposed_sides():
    wide, tall = np.repeat(np.repeat(L, 2, 0), 2, 1)[::2, ::2], np.asfortranarray(R)
    wide.flags.writeable = tall.flags.writeable = False
    exact, update = KroneckerUpdate(L, R), KroneckerUpdate(wide, tall)
    assert np.array_equal(spectrum(update).values, spectrum(exact).values)
    assert np.array_equal(update.to_dense(), exact.to_dense())
    assert np.array_equal(truncate(update, 2).B, truncate(exact, 2).B)
    assert np.array_equal(update.apply(np.ones(6)), exact.apply(np.ones(6)))


def test_zero_sides_have_zero_values():
    for update in (KroneckerUpdate(np.zeros((2, 3)), R), KroneckerUpdate(L, R, 0.0)):
        assert spectrum(update).values.tolist() == [0.0] * 4
        assert numerical_rank(spectrum(update)) == 0
        assert not truncate(update, 3).to_dense().any()
    empty = LowRankUpdate(np.ones((3, 0)), np.ones((0, 3)))
    assert spectrum(KroneckerUpdate(L, empty)).values.shape == (0,)
    assert truncate(KroneckerUpdate(L, empty), 2).rank == 0
    assert not KroneckerUpdate(L, empty).apply(np.ones(9)).any()


@pytest.mark.parametrize(
    ("left", "right", "scaling"), [(1e200, 1e-200, 1.0), (1e-200, 1e-100, 1e250), (1e300, 1e300, 1e-300)]
)
def test_sides_of_any_size(left, right, scaling):
    update = KroneckerUpdate(left * L, right * R, scaling)
    size = left * scaling * right if left * scaling < np.inf else left
    exact = spectrum(KroneckerUpdate(L, R)).values
    assert np.allclose(spectrum(update).values / size, exact, rtol=1e-13)
    assert np.allclose(truncate(update, 4).B / size, truncate(KroneckerUpdate(L, R), 4).B, rtol=1e-12, atol=1e-12)


def test_values_of_a_kronecker_product_that_a_side_alone_could_not_hold():
    # σ₁ of the left side is 2e308.
    update = KroneckerUpdate(np.full((2, 2), 1e308), np.array([[1e-300]]))
    assert np.allclose(spectrum(update).values, [2e8, 0.0], rtol=1e-15, atol=1e-6)
    assert np.allclose(truncate(update, 1).to_dense(), 1e8, rtol=1e-14)


def test_experts_are_a_batch_axis():
    rng = np.random.default_rng(0)
    experts = rng.standard_normal((5, 3, 4))
    update = KroneckerUpdate(experts, R, 2.0)
    assert update.shape == (5, 12, 8)
    assert np.allclose(update.to_dense()[3], 2 * np.kron(experts[3], R), rtol=1e-15)
    x = rng.standard_normal((7, 1, 8))
    assert np.allclose(update.apply(x)[2, 3], 2 * np.kron(experts[3], R) @ x[2, 0], rtol=1e-12)
    assert spectrum(update).values.shape == (5, 6)
    assert truncate(update, 2).B.shape == (5, 12, 2)
    assert KroneckerUpdate(experts[:1], R).rank == 6
    factored = KroneckerUpdate(LowRankUpdate(rng.standard_normal((5, 3, 2)), rng.standard_normal((5, 2, 4))), R)
    assert np.allclose(np.ones(12) @ factored, factored.to_dense().sum(axis=-2), rtol=1e-12)
    factors = LowRankUpdate(rng.standard_normal((5, 3, 2)), rng.standard_normal((2, 4)), 0.5)
    plain = LowRankUpdate(rng.standard_normal((3, 2)), rng.standard_normal((2, 4)))
    assert np.allclose(
        low_rank_sum([plain, factors], [2.0, 1.0]).to_dense(), 2 * plain.to_dense() + factors.to_dense(), atol=1e-13
    )
    assert np.allclose(low_rank_hadamard(plain, factors).to_dense(), plain.to_dense() * factors.to_dense(), atol=1e-13)
    up, mid, down = rng.standard_normal((5, 6, 2)), rng.standard_normal((2, 3, 9)), rng.standard_normal((5, 3, 4))
    whole = low_rank_tucker(up, mid, down, 0.5)
    single = low_rank_tucker(up[4], mid, down[4], 0.5)
    assert whole.shape == (5, 6, 36)
    assert np.array_equal(whole.to_dense()[4], single.to_dense())


def test_adam_learns_a_kronecker_product_as_its_dense_matrix():
    update = KroneckerUpdate(L, R)
    options = {"steps": 2, "optimizer": "adam"}
    assert np.array_equal(
        learning_sweep(update, [1], **options).errors, learning_sweep(update.to_dense(), [1], **options).errors
    )


def test_a_sum_has_weights_of_one_unless_given():
    whole = low_rank_sum([FACTORS, FACTORS, FACTORS])
    assert whole.rank == 3
    assert np.array_equal(whole.to_dense(), 3 * FACTORS.to_dense())
    assert np.array_equal(low_rank_sum(iter([FACTORS]), (-1.0,)).to_dense(), -FACTORS.to_dense())


def test_factors_of_a_sum_keep_their_sizes_where_float64_has_them():
    whole = low_rank_sum([LowRankUpdate(R, L.T[:2], 0.3), FACTORS], [0.7, 5.0])
    assert np.array_equal(whole.B, np.hstack([(0.7 * 0.3) * R, 10.0 * FACTORS.B]))
    assert np.array_equal(whole.A, np.vstack([L.T[:2], FACTORS.A]))


def test_zero_components_of_any_size_stay_zero():
    far = LowRankUpdate([[0.0, 1.0]], [[1e300], [0.0]], 1e300)
    assert low_rank_sum([far], [1e300]).to_dense().tolist() == [[0.0]]
    assert low_rank_hadamard(far, far).to_dense().tolist() == [[0.0]]


def test_low_precision_factors_are_combined_in_float64():
    rough = LowRankUpdate(R.astype(np.float16), L.T[:2].astype(ml_dtypes.bfloat16))
    for update in (low_rank_sum([rough]), low_rank_hadamard(rough, rough)):
        assert update.dtype == "float64"
        assert update.B.dtype == update.A.dtype == np.float64
    large = LowRankUpdate(np.full((1, 1), 6e4, np.float16), np.full((1, 1), 6e4, np.float16))
    assert low_rank_hadamard(large, large).to_dense() == large.to_dense() ** 2


# LyCORIS 4, functional/general.py, lokr.py, loha.py and locon.py, with its own index strings.


def test_lokr_of_a_convolution_is_the_kronecker_product_with_its_flattened_side():
    w2 = np.random.default_rng(0).standard_normal((4, 2, 3, 3))
    weight = np.einsum("ab,cdkl->acbdkl", L, w2).reshape(8, 6, 3, 3)
    update = KroneckerUpdate(L, w2.reshape(4, -1))
    assert np.array_equal(update.to_dense().reshape(8, 6, 3, 3), weight)


def test_lokr_with_a_tucker_core():
    rng = np.random.default_rng(0)
    t2, w2_a, w2_b = rng.standard_normal((2, 2, 3, 3)), rng.standard_normal((2, 5)), rng.standard_normal((2, 4))
    w2 = np.einsum("ijkl,ip,jr->prkl", t2, w2_a, w2_b)
    update = KroneckerUpdate(L, low_rank_tucker(w2_a.T, t2.reshape(2, 2, -1), w2_b))
    assert np.allclose(update.to_dense(), np.kron(L, w2.reshape(5, -1)), atol=1e-13)
    assert len(spectrum(update).values) == 4


def test_loha_with_tucker_cores():
    rng = np.random.default_rng(0)
    cores, ups, downs = (rng.standard_normal((2, *shape)) for shape in [(3, 3, 2, 2), (3, 6), (3, 5)])
    halves = [np.einsum("ijkl,jr,ip->prkl", t, down, up) for t, down, up in zip(cores, downs, ups, strict=True)]
    products = [low_rank_tucker(up.T, t.reshape(3, 3, -1), down) for t, down, up in zip(cores, downs, ups, strict=True)]
    update = low_rank_hadamard(*products)
    assert update.rank == 9
    assert np.allclose(update.to_dense().reshape(6, 5, 2, 2), halves[0] * halves[1], atol=1e-12)


def test_a_kronecker_product_shows_its_sides():
    update = KroneckerUpdate(L, FACTORS, 0.5)
    assert repr(update) == "<KroneckerUpdate 8 × 6: rank up to 2, γ = 0.5, float64>"
    sides = [["L", "2 × 3", "float64"], ["R", "4 × 2", "float64"]]
    assert Cells(update._repr_html_()).rows == [["side", "shape", "dtype"], *sides]
    assert type(KroneckerUpdate(L, R, 3).scaling) is float
    with pytest.raises(FrozenInstanceError):
        update.scaling = 2.0
    with pytest.raises(TypeError, match="shape"):
        KroneckerUpdate(L, R, shape=(8, 6))


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_an_entry_that_fits_float64_is_not_lost_on_the_way_to_it(size):
    stack = np.stack([L, 2 * L])
    update = KroneckerUpdate(size * stack, R / size, 1e-3)
    exact = 1e-3 * np.stack([np.kron(each, R) for each in stack])
    assert np.allclose(update.to_dense(), exact, rtol=1e-15, atol=0)
    huge = KroneckerUpdate(size * stack, R / size * 1e-100, 1e100)
    assert np.allclose(huge.to_dense(), 1e3 * exact, rtol=4e-15, atol=0)
    lone, x = KroneckerUpdate(huge.left[0], huge.right, 1e100), np.arange(12.0).reshape(2, 6)
    assert np.allclose(lone.apply(x), 1e3 * x @ exact[0].T, rtol=0, atol=1e-12)
