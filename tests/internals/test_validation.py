"""Which arguments are accepted, how they are converted, and how others are refused."""

import re

import ml_dtypes
import numpy as np
import pytest
from scipy import sparse

from lowrank_core import (
    KroneckerUpdate,
    LowRankUpdate,
    Spectrum,
    error_sweep,
    learning_sweep,
    rank_for_variance,
    reconstruction_error,
    spectrum,
    standard,
    truncate,
    update_with_spectrum,
    variance_captured,
)
from lowrank_core._validation import (
    as_alpha,
    as_factors,
    as_fraction,
    as_ranks,
    as_stack,
    as_whole_numbers,
    check_finite,
)

RNG = np.random.default_rng(0)
MATRIX = RNG.integers(-8, 9, (5, 4)) / 4  # exact in every dtype
CALLS = {
    "spectrum": spectrum,
    "truncate": lambda update: truncate(update, 1),
    "learning_sweep": lambda update: learning_sweep(update, [1], steps=1),
    "adam": lambda update: learning_sweep(update, [1], steps=1, optimizer="adam"),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def refused(call, update, *words):
    """The message says what was given, what is accepted, and what to do: each of the words is in it."""
    with pytest.raises(ValueError, match=".*".join(re.escape(word) for word in words)):
        call(update)


def means_its_numbers(call, update, dtype):
    """Stored in that dtype, and read as the numbers of MATRIX."""
    assert spectrum(update).dtype == dtype
    result, exact = (call(given) for given in (update, MATRIX))
    for field in ("values", "errors"):
        if hasattr(exact, field):
            assert np.allclose(getattr(result, field), getattr(exact, field), rtol=1e-6, atol=1e-7)
    if call is CALLS["truncate"]:
        assert np.allclose(result.to_dense(), exact.to_dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("update", "dtype"),
    [
        (MATRIX, "float64"),
        (MATRIX.astype(np.float32), "float32"),
        (MATRIX.astype(np.float16), "float16"),
        (MATRIX.astype(ml_dtypes.bfloat16), "bfloat16"),
        (MATRIX.astype(ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
        (MATRIX.astype(ml_dtypes.float8_e5m2), "float8_e5m2"),
        (MATRIX.tolist(), "float64"),
    ],
)
@calls
def test_each_dtype_is_read_as_its_numbers(call, update, dtype):
    means_its_numbers(call, update, dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.bool_])
def test_integers_and_booleans_are_taken_as_float64(dtype):
    update = RNG.integers(0, 2, (4, 3)).astype(dtype)
    result = spectrum(update)
    assert result.dtype == "float64"
    assert np.array_equal(result.values, spectrum(update.astype(np.float64)).values)


def test_the_largest_integers_do_not_overflow():
    assert spectrum(np.full((2, 2), np.iinfo(np.int64).min)).values[0] == pytest.approx(2.0**64, rel=1e-15)
    assert spectrum(np.full((2, 2), 127, dtype=np.int8)).values[0] == pytest.approx(254, rel=1e-15)


@pytest.mark.parametrize("layout", ["F", "read-only", "strided", "reversed"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int32"])
@calls
def test_layouts_change_nothing_but_rounding(call, layout, dtype):
    matrix = (4 * MATRIX).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    other = {
        "F": np.asfortranarray(matrix),
        "read-only": matrix.copy(),
        "strided": np.repeat(np.repeat(matrix, 2, axis=0), 3, axis=1)[::2, ::3],
        "reversed": matrix[::-1, ::-1].copy()[::-1, ::-1],
    }[layout]
    other.flags.writeable = False
    result, exact = call(other), call(matrix)
    for field in ("values", "errors"):
        if hasattr(exact, field):
            assert np.allclose(getattr(result, field), getattr(exact, field), rtol=1e-12, atol=1e-7)


@calls
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_an_entry_that_is_not_finite_is_named_with_its_position(call, bad, dtype):
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    stack = np.ones((2, 3, 4, 5), dtype=stored)
    stack[1, 0, 2, 3] = bad
    stack[1, 2, 0, 0] = bad
    refused(call, stack, "at batch index (1, 0)", f"contains {bad}", "row 2, column 3", "must be finite", "Look for")
    with pytest.raises(ValueError, match="contains") as raised:
        call(stack[1, 0])
    assert "batch index" not in str(raised.value)


@pytest.mark.parametrize("name", ["B", "A"])
def test_an_entry_of_a_factor_that_is_not_finite_is_named(name):
    factors = {"B": np.ones((2, 4, 3)), "A": np.ones((2, 3, 5))}
    factors[name][1, 2, 0] = np.nan
    for call in CALLS.values():
        refused(call, LowRankUpdate(**factors), name, "at batch index (1,)", "row 2, column 0", "must be finite")


@calls
def test_other_dtypes_are_refused_with_the_accepted_ones(call):
    accepted = "accepted are float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, integers and booleans"
    refused(call, np.ones((2, 2), dtype=complex), "dtype complex128", accepted, ".real")
    refused(call, np.ones((2, 2), dtype=object), "dtype object", accepted, ".astype('float64')")
    refused(call, np.ones((2, 2), dtype=np.longdouble), "dtype " + np.dtype(np.longdouble).name, accepted)
    refused(call, np.ones((2, 2), dtype=ml_dtypes.float8_e4m3fnuz), "dtype float8_e4m3fnuz", accepted)
    refused(call, [["one", "two"]], "dtype str", accepted)


@calls
def test_arrays_that_are_not_plain_are_refused(call):
    masked = np.ma.MaskedArray(MATRIX, mask=MATRIX > 0)
    refused(call, masked, "masked array", "plain arrays are accepted", ".filled(0)")
    refused(call, sparse.csr_array(MATRIX), "sparse array", "dense ones are accepted", ".toarray()")
    refused(call, sparse.coo_matrix(MATRIX), "sparse array", "dense ones are accepted", ".toarray()")
    refused(call, MATRIX.astype([("entry", np.float64)]), "dtype void", "accepted are float64", "one of its fields")
    refused(call, MATRIX.astype("datetime64[s]"), "dtype datetime64", "accepted are float64", ".astype")


def test_factors_and_vectors_that_are_not_plain_are_refused():
    masked = np.ma.MaskedArray(MATRIX, mask=MATRIX > 0)
    refused(lambda B: LowRankUpdate(B, np.eye(4)), masked, "B is a masked array")
    refused(lambda A: LowRankUpdate(np.eye(5), A), sparse.csr_array(MATRIX), "A is a sparse array")
    refused(LowRankUpdate(MATRIX, np.eye(4)).apply, masked[0, :4], "x is a masked array")
    refused(LowRankUpdate(MATRIX, np.eye(4)).apply, np.ones(4, dtype=object), "x has unsupported dtype object")
    refused(lambda values: update_with_spectrum(values, (4, 4), rng=0), np.ma.ones(2), "values is a masked array")


@calls
def test_vectors_scalars_and_empty_matrices_are_refused(call):
    refused(call, np.ones(3), "shape (3,)", "(m, n)", "Reshape")
    refused(call, 1.0, "shape ()", "(m, n)", "Reshape")
    refused(call, np.ones((0, 3)), "shape (0, 3)", "empty", "at least 1")
    refused(call, np.ones((2, 3, 0)), "shape (2, 3, 0)", "empty", "at least 1")


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (5, ["rank 5 is beyond min(m, n) = 4", "0 to 4", "numpy.minimum"]),
        (-1, ["rank must be a whole number", "at least 0", "-1"]),
        (1.5, ["whole number", "1.5"]),
        (np.nan, ["whole number", "nan"]),
        (np.inf, ["whole number", "inf"]),
        (True, ["whole number", "True"]),
        ("two", ["whole number", "two"]),
        (10**30, ["whole number"]),
        (1j, ["whole number"]),
    ],
)
def test_ranks_beyond_negative_or_not_whole_are_refused(rank, words):
    s = spectrum(MATRIX)
    product = LowRankUpdate(MATRIX, np.eye(4))
    for ask in (
        lambda r: variance_captured(s, r),
        lambda r: reconstruction_error(s, [r]),
        lambda r: error_sweep(s, [r]),
        lambda r: learning_sweep(s, [r], steps=1),
        lambda r: spectrum(MATRIX, rank=r),
        lambda r: spectrum(product, rank=r),
        lambda r: truncate(MATRIX, r),
        lambda r: truncate(product, r),
        lambda r: truncate(MATRIX, lambda _: r),
    ):
        with pytest.raises(ValueError, match=r"rank|whole number"):
            ask(rank)
    with pytest.raises(ValueError, match=".*".join(re.escape(word) for word in words)):
        variance_captured(s, rank)


@pytest.mark.parametrize("rank", [3, 3.0, np.int8(3), np.uint64(3), np.float32(3)])
def test_a_whole_number_of_any_kind_is_a_rank(rank):
    assert variance_captured(spectrum(MATRIX), rank) == variance_captured(spectrum(MATRIX), 3)
    assert truncate(MATRIX, rank).rank == 3


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf, "16", None, 1j, True, [16.0, 0.0]])
def test_alpha_must_be_finite_and_positive(alpha):
    s = spectrum(MATRIX)
    for ask in (
        lambda a: standard(a, 4),
        lambda a: error_sweep(s, [1], alpha=a),
        lambda a: learning_sweep(s, [1], alpha=a, steps=1),
    ):
        refused(ask, alpha, "alpha must be finite and positive", f"got {alpha!r}", "Common choices")


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 95, np.nan, "0.9", None])
def test_fractions_lie_between_0_and_1(fraction):
    refused(
        lambda f: rank_for_variance(spectrum(MATRIX), f), fraction,
        "fraction must lie between 0 and 1", repr(fraction), "95 % as 0.95",
    )  # fmt: skip


def test_conversions_return_the_documented_dtypes_and_shapes():
    assert as_ranks([0, 4.0], 4).dtype == np.int64
    assert as_ranks([], 4).shape == (0,)
    assert as_whole_numbers([[1, 2]], "x").shape == (1, 2)
    assert as_alpha([1, 2]).dtype == np.float64
    assert as_fraction(1, "x") == 1.0
    assert as_stack(np.ones((2, 3, 4, 5)), 2).shape == (6, 4, 5)
    assert as_stack(np.ones((4, 0)), 2).shape == (1, 4, 0)
    assert as_stack(np.ones((2, 0, 4, 5)), 2).shape == (0, 4, 5)
    assert as_factors(np.ones((4, 0)), np.ones((0, 3)))[2] == (4, 3)
    check_finite(np.ones((0, 3, 3)))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("method", ["lapack", "gram"])
def test_the_order_of_bytes_changes_no_bit(dtype, method):
    stored = (MATRIX * {"f2": 1e3, "f4": 1e30, "f8": 1e200}[dtype]).astype(dtype)
    swapped = stored.astype(stored.dtype.newbyteorder())
    assert spectrum(swapped, method=method) == spectrum(stored, method=method)
    assert truncate(swapped, 2) == truncate(stored, 2)
    assert LowRankUpdate(swapped, swapped.T) == LowRankUpdate(stored, stored.T)
    pairs = [KroneckerUpdate(side, side, 1e-200) for side in (swapped, stored)]
    assert spectrum(pairs[0]) == spectrum(pairs[1])


def test_an_empty_batch_gives_empty_batches():
    stack = np.ones((2, 0, 4, 3))
    s = spectrum(stack)
    assert isinstance(s, Spectrum)
    assert s.values.shape == (2, 0, 3)
    assert s.norm.shape == (2, 0)
    assert variance_captured(s, [1, 2]).shape == (2, 0, 2)
    assert reconstruction_error(s).shape == (2, 0, 4)
    assert error_sweep(s, [1]).errors.shape == (2, 0, 2, 1)
    assert rank_for_variance(s, 0.5).shape == (2, 0)
    assert truncate(stack, 2).B.shape == (2, 0, 4, 2)
    for optimizer in ("sgd", "adam"):
        assert learning_sweep(stack, [1], steps=3, optimizer=optimizer).curves.shape == (2, 0, 2, 1, 4)
    assert spectrum(LowRankUpdate(np.ones((0, 4, 2)), np.ones((2, 3)))).values.shape == (0, 2)
