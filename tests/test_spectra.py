"""Spectrum as a value, and calls of spectrum()."""

import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

from lowrank_core import LowRankUpdate, Spectrum, error_sweep, reconstruction_error, spectrum, variance_captured
from tests import oracles


def test_fields_of_a_spectrum():
    s = Spectrum([[4, 3], [2, 0]], [5, 2], (3, 2), complete=True, dtype=np.float32)
    assert s.values.dtype == s.norm.dtype == np.float64
    assert s.values.tolist() == [[4.0, 3.0], [2.0, 0.0]]
    assert s.norm.tolist() == [5.0, 2.0]
    assert (s.shape, s.complete, s.dtype) == ((3, 2), True, "float32")
    assert Spectrum([1.0], 1.0, (1, 1), complete=True).dtype == "float64"
    assert Spectrum([1.0], 1.0, (1, 1), complete=True, dtype=ml_dtypes.bfloat16).dtype == "bfloat16"
    assert Spectrum([1.0], 1.0, (1, 1), complete=True, dtype="bfloat16").dtype == "bfloat16"


def test_values_are_copied_and_read_only():
    given = np.array([4.0, 3.0])
    s = Spectrum(given, 5.0, (2, 2), complete=True)
    given[0] = 100
    assert s.values[0] == 4
    for array in (s.values, s.norm, spectrum(np.eye(2)).values):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    "values", [[3.0, 4.0], [4.0, -1.0], [np.nan, 1.0], [np.inf, 1.0], [[4.0, 3.0], [1.0, 2.0]], [4.0, np.nan]]
)
def test_values_must_descend_and_be_finite_and_not_negative(values):
    norm = np.ones(np.shape(values)[:-1]) * 5.0
    with pytest.raises(ValueError, match=r"values must be finite, not negative, and descending"):
        Spectrum(values, norm, (2, 2), complete=False)


@pytest.mark.parametrize(
    ("values", "norm", "shape"),
    [([3.0, 2.0, 1.0], 4.0, (2, 5)), ([[1.0], [1.0]], 1.0, (2, 2)), (1.0, 1.0, (2, 2)), ([1.0], [1.0], (2, 2))],
)
def test_shapes_of_values_and_norm_must_fit(values, norm, shape):
    with pytest.raises(
        ValueError, match=r"values of shape .* and norm of shape .* do not make .*p at most min\(m, n\)"
    ):
        Spectrum(values, norm, shape, complete=True)


@pytest.mark.parametrize(
    ("values", "norm", "complete"),
    [
        ([4.0, 3.0], 4.9, True),
        ([4.0, 3.0], 5.1, True),
        ([4.0, 3.0], 4.9, False),
        ([4.0, 3.0], np.nan, False),
        ([4.0, 3.0], np.inf, False),
        ([4.0, 3.0], -5.0, False),
        ([1e200], 0.0, True),
        ([0.0], 1e-300, True),
        ([5e-324], 1e-300, True),
        ([], 1.0, True),
    ],
)
def test_the_norm_must_fit(values, norm, complete):
    with pytest.raises(
        ValueError, match=r"norm does not fit values: it is the Frobenius norm.*equal to it when complete"
    ):
        Spectrum(values, norm, (3, 3), complete=complete)


@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200, 1e307, 1e-320])
def test_a_norm_that_fits_is_accepted_at_any_size(size):
    assert Spectrum([4 * size, 3 * size], 5 * size, (3, 3), complete=True).norm == 5 * size
    assert Spectrum([4 * size, 3 * size], 7 * size, (3, 3), complete=False).norm == 7 * size
    assert Spectrum([], 0.0, (3, 3), complete=True).norm == 0


@pytest.mark.parametrize("missed", [-1e-9, 1.1, np.nan, [0.1, 0.1, 0.1]])
def test_what_is_missed_is_a_fraction_for_each_update(missed):
    with pytest.raises(ValueError, match=r"missed is a fraction from 0 to 1.*of the shape \(2,\) of norm"):
        Spectrum([[1.0], [2.0]], [2.0, 3.0], (2, 2), complete=False, missed=missed)
    accepted = Spectrum([[1.0], [2.0]], [2.0, 3.0], (2, 2), complete=False, missed=[0.0, 1e-7])
    assert accepted.missed.tolist() == [0.0, 1e-7]
    assert Spectrum([[1.0], [2.0]], [2.0, 3.0], (2, 2), complete=False).missed.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["int32", "float8_e3m4", "complex64", np.int8])
def test_an_unsupported_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=r"dtype.*float64, float32, float16, bfloat16"):
        Spectrum([1.0], 1.0, (1, 1), complete=True, dtype=dtype)


def test_all_values_or_the_leading_ones():
    update = np.diag([4.0, 3.0, 2.0, 1.0])[:, :3]
    s = spectrum(update)
    assert (s.shape, s.complete, s.dtype) == ((4, 3), True, "float64")
    assert s.values == pytest.approx([4.0, 3.0, 2.0], rel=1e-15)
    part = spectrum(update, rank=2)
    assert part.values.tolist() == s.values[:2].tolist()
    assert part.norm == s.norm
    assert not part.complete
    assert spectrum(update, rank=3).complete


@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (200, 150), (150, 200), (520, 515)])
def test_lapack_is_numpys_svd_to_the_bit(shape):
    update = np.random.default_rng(0).standard_normal(shape)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        exact = np.linalg.svd(update, compute_uv=False)
        assert np.array_equal(spectrum(update, method="lapack").values, exact)
        assert np.array_equal(spectrum(np.stack([update, update]), method="lapack").values[1], exact)
        narrow = update.astype(np.float32)
        exact = np.linalg.svd(narrow.astype(np.float64), compute_uv=False)
        assert np.array_equal(spectrum(narrow, method="lapack").values, exact)


def test_lapack_of_a_product_is_what_direct_is():
    rng = np.random.default_rng(0)
    product = LowRankUpdate(rng.standard_normal((3, 20, 4)), rng.standard_normal((4, 15)).astype(np.float32), -0.5)
    result, direct = (spectrum(product, method=method) for method in ("lapack", "direct"))
    assert np.array_equal(result.values, direct.values)
    assert np.array_equal(result.norm, direct.norm)


def test_a_product_is_complete_with_as_many_values_as_its_rank():
    product = LowRankUpdate(np.eye(5, 2) * [3.0, 1.0], np.eye(2, 4), 2.0)
    s = spectrum(product)
    assert s.values == pytest.approx([6.0, 2.0], rel=1e-15)
    assert (s.shape, s.complete) == ((5, 4), True)
    assert reconstruction_error(s, [2, 3, 4]).tolist() == [0, 0, 0]
    assert variance_captured(s, 4) == 1
    part = spectrum(product, rank=1)
    assert not part.complete
    assert part.norm == s.norm
    assert spectrum(product, rank=3).complete
    assert spectrum(product, rank=3).values.shape == (2,)


def test_rank_0_of_any_update():
    for s in (spectrum(np.eye(3), rank=0), spectrum(np.stack([np.eye(3)] * 2), rank=0)):
        assert s.values.shape[-1] == 0
        assert not s.complete
        assert np.all(variance_captured(s) == 0)
        assert np.all(reconstruction_error(s, [0]) == 1)
        assert np.all(error_sweep(s, [0]).errors == 1)
    nothing = spectrum(LowRankUpdate(np.ones((4, 0)), np.ones((0, 3))))
    assert nothing.complete
    assert nothing.norm == 0
    assert reconstruction_error(nothing, [0, 3]).tolist() == [0, 0]


def test_a_rank_beyond_an_incomplete_spectrum_is_refused_with_the_call_that_computes_it():
    s = spectrum(np.diag([3.0, 2.0, 1.0]), rank=1)
    for call in (
        lambda: variance_captured(s, 2),
        lambda: reconstruction_error(s, [1, 2]),
        lambda: error_sweep(s, [2, 0]),
    ):
        with pytest.raises(ValueError, match=r"rank 2 is beyond the 1 leading values.*spectrum\(update, rank=2\)"):
            call()
    assert variance_captured(s, [0, 1]).tolist() == [0, 9 / 14]


def test_one_rank_per_call():
    with pytest.raises(ValueError, match=r"one rank is needed.*got \[1, 2\]"):
        spectrum(np.eye(3), rank=[1, 2])


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, 1.0, 1.0], [1.4, 1.4], [3.0, 2.0, 2.0, 1.0]])
def test_subnormal_updates_have_spectra(values):
    for update in (np.diag(values) * 5e-324, np.array([[1.0, 1.0], [1.0, -1.0]]) * 5e-324):
        s = spectrum(update)
        assert s.norm > 0
        assert np.all(variance_captured(s, [0, len(s.values)]) == [0, 1])
    for dtype, smallest in ((np.float32, 2.0**-149), (np.float16, 2.0**-24)):
        exact = np.sort(np.rint(values))[::-1] * smallest
        assert spectrum(np.diag(exact).astype(dtype)).values == pytest.approx(exact, rel=1e-12)


def test_the_tolerance_of_the_norm():
    # One in a million, and one step of float64's grid for each value and one more.
    for error, fits in ((0.9e-6, True), (1.5e-6, False)):
        for norm in (5 * (1 + error), 5 * (1 - error)):
            if fits:
                Spectrum([4.0, 3.0], norm, (2, 2), complete=True)
            else:
                with pytest.raises(ValueError, match="norm does not fit"):
                    Spectrum([4.0, 3.0], norm, (2, 2), complete=True)
    for steps, fits in ((2, False), (3, True), (7, True), (8, False)):
        if fits:
            Spectrum([5 * 5e-324], steps * 5e-324, (1, 1), complete=True)
        else:
            with pytest.raises(ValueError, match="norm does not fit"):
                Spectrum([5 * 5e-324], steps * 5e-324, (1, 1), complete=True)


def test_fields_that_are_not_arrays_are_plain_python():
    s = Spectrum([1.0], 1.0, [np.int64(1), np.int64(2)], np.bool_(True))
    assert s.shape == (1, 2)
    assert [type(s.shape), type(s.shape[0]), type(s.complete)] == [tuple, int, bool]


def test_the_shape_of_a_stack_of_products_is_that_of_one_product():
    s = spectrum(LowRankUpdate(np.ones((5, 3, 2)), np.ones((5, 2, 4))))
    assert (s.shape, s.values.shape, s.norm.shape) == ((3, 4), (5, 2), (5,))


def test_spectra_without_values_keep_their_batch_and_norms():
    norms = np.arange(6.0).reshape(2, 3)
    s = Spectrum(np.empty((2, 3, 0)), norms, (4, 5), complete=False)
    assert s.values.shape == (2, 3, 0)
    assert np.array_equal(s.norm, norms)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("shape", "rank"), [((900, 20), None), ((900, 120), None), ((1100, 1030), 4)])
def test_routes_that_look_for_finite_entries_as_they_go_name_the_first_other_one(shape, rank, bad):
    matrix = np.ones(shape)
    matrix[7, 5] = bad
    with pytest.raises(ValueError, match=rf"contains {bad} at row 7, column 5"):
        spectrum(matrix, rank=rank)


def test_a_matrix_of_which_mpmath_finds_no_values_at_fifty_digits_has_them():
    matrix = np.zeros((2, 8))
    matrix[0], matrix[1, :2] = 0.201171875, [0.40234375, -0.40234375]
    exact = oracles.singular_values(matrix)
    assert exact.tolist() == [matrix[0, 0] * np.sqrt(8.0)] * 2
    assert np.allclose(spectrum(matrix).values, exact, rtol=1e-15)
