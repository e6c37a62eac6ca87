"""Spectrum as a value, and spectrum() as it is called."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import LowRankUpdate, Spectrum, error_sweep, reconstruction_error, spectrum, variance_captured


def test_fields():
    of = Spectrum([[4, 3], [2, 0]], [5, 2], (3, 2), complete=True, dtype=np.float32)
    assert of.values.dtype == of.norm.dtype == np.float64
    assert of.values.tolist() == [[4.0, 3.0], [2.0, 0.0]]
    assert of.norm.tolist() == [5.0, 2.0]
    assert (of.shape, of.complete, of.dtype) == ((3, 2), True, "float32")
    assert Spectrum([1.0], 1.0, (1, 1), complete=True).dtype == "float64"
    assert Spectrum([1.0], 1.0, (1, 1), complete=True, dtype=ml_dtypes.bfloat16).dtype == "bfloat16"
    assert Spectrum([1.0], 1.0, (1, 1), complete=True, dtype="bfloat16").dtype == "bfloat16"


def test_values_are_its_own_and_cannot_be_changed():
    given = np.array([4.0, 3.0])
    of = Spectrum(given, 5.0, (2, 2), complete=True)
    given[0] = 100
    assert of.values[0] == 4
    for held in (of.values, of.norm, spectrum(np.eye(2)).values):
        with pytest.raises(ValueError, match="read-only"):
            held[...] = 0


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
def test_shapes_must_fit(values, norm, shape):
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
def test_a_norm_that_fits_is_taken_at_any_size(size):
    assert Spectrum([4 * size, 3 * size], 5 * size, (3, 3), complete=True).norm == 5 * size
    assert Spectrum([4 * size, 3 * size], 7 * size, (3, 3), complete=False).norm == 7 * size
    assert Spectrum([], 0.0, (3, 3), complete=True).norm == 0


@pytest.mark.parametrize("dtype", ["int32", "float8_e4m3fn", "complex64", np.int8])
def test_a_dtype_that_updates_are_not_stored_in_is_refused(dtype):
    with pytest.raises(ValueError, match=r"dtype.*float64, float32, float16, bfloat16"):
        Spectrum([1.0], 1.0, (1, 1), complete=True, dtype=dtype)


def test_all_values_or_the_leading_ones():
    update = np.diag([4.0, 3.0, 2.0, 1.0])[:, :3]
    of = spectrum(update)
    assert (of.shape, of.complete, of.dtype) == ((4, 3), True, "float64")
    assert of.values == pytest.approx([4.0, 3.0, 2.0], rel=1e-15)
    part = spectrum(update, rank=2)
    assert part.values.tolist() == of.values[:2].tolist()
    assert part.norm == of.norm
    assert not part.complete
    assert spectrum(update, rank=3).complete


def test_a_product_is_complete_with_as_many_values_as_its_rank():
    product = LowRankUpdate(np.eye(5, 2) * [3.0, 1.0], np.eye(2, 4), 2.0)
    of = spectrum(product)
    assert of.values == pytest.approx([6.0, 2.0], rel=1e-15)
    assert (of.shape, of.complete) == ((5, 4), True)
    assert reconstruction_error(of, [2, 3, 4]).tolist() == [0, 0, 0]
    assert variance_captured(of, 4) == 1
    part = spectrum(product, rank=1)
    assert not part.complete
    assert part.norm == of.norm
    assert spectrum(product, rank=3).complete
    assert spectrum(product, rank=3).values.shape == (2,)


def test_rank_0_of_everything():
    for of in (spectrum(np.eye(3), rank=0), spectrum(np.stack([np.eye(3)] * 2), rank=0)):
        assert of.values.shape[-1] == 0
        assert not of.complete
        assert np.all(variance_captured(of) == 0)
        assert np.all(reconstruction_error(of, [0]) == 1)
        assert np.all(error_sweep(of, [0]).errors == 1)
    nothing = spectrum(LowRankUpdate(np.ones((4, 0)), np.ones((0, 3))))
    assert nothing.complete
    assert nothing.norm == 0
    assert reconstruction_error(nothing, [0, 3]).tolist() == [0, 0]


def test_a_question_beyond_an_incomplete_spectrum_names_the_rank_to_ask_for():
    of = spectrum(np.diag([3.0, 2.0, 1.0]), rank=1)
    for ask in (
        lambda: variance_captured(of, 2),
        lambda: reconstruction_error(of, [1, 2]),
        lambda: error_sweep(of, [2, 0]),
    ):
        with pytest.raises(ValueError, match=r"rank 2 is beyond the 1 leading values.*spectrum\(update, rank=2\)"):
            ask()
    assert variance_captured(of, [0, 1]).tolist() == [0, 9 / 14]


def test_one_rank_per_call():
    with pytest.raises(ValueError, match=r"one rank is needed.*got \[1, 2\]"):
        spectrum(np.eye(3), rank=[1, 2])


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, 1.0, 1.0], [1.4, 1.4], [3.0, 2.0, 2.0, 1.0]])
def test_subnormal_updates_have_spectra(values):
    for update in (np.diag(values) * 5e-324, np.array([[1.0, 1.0], [1.0, -1.0]]) * 5e-324):
        of = spectrum(update)
        assert of.norm > 0
        assert np.all(variance_captured(of, [0, len(of.values)]) == [0, 1])
    for dtype, smallest in ((np.float32, 2.0**-149), (np.float16, 2.0**-24)):
        exact = np.sort(np.rint(values))[::-1] * smallest
        assert spectrum(np.diag(exact).astype(dtype)).values == pytest.approx(exact, rel=1e-12)


def test_how_far_the_norm_may_be_off():
    # A part in a million, and one step of float64's grid for each value and one more.
    for off, fits in ((0.9e-6, True), (1.5e-6, False)):
        for norm in (5 * (1 + off), 5 * (1 - off)):
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


def test_fields_are_plain_python_where_they_are_no_arrays():
    of = Spectrum([1.0], 1.0, [np.int64(1), np.int64(2)], np.bool_(True))
    assert of.shape == (1, 2)
    assert [type(of.shape), type(of.shape[0]), type(of.complete)] == [tuple, int, bool]


def test_the_shape_of_a_stack_of_products_is_that_of_one():
    of = spectrum(LowRankUpdate(np.ones((5, 3, 2)), np.ones((5, 2, 4))))
    assert (of.shape, of.values.shape, of.norm.shape) == ((3, 4), (5, 2), (5,))


def test_spectra_without_values_keep_their_batch_and_their_norms():
    norms = np.arange(6.0).reshape(2, 3)
    of = Spectrum(np.empty((2, 3, 0)), norms, (4, 5), complete=False)
    assert of.values.shape == (2, 3, 0)
    assert np.array_equal(of.norm, norms)
