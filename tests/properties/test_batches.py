"""A batch changes nothing: f(stack)[i] is f(stack[i]) to the bit, whatever the layout, the dtype or the workers."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core import (
    LowRankUpdate,
    Spectrum,
    effective_rank,
    error_sweep,
    learning_sweep,
    numerical_rank,
    rank_above_noise,
    rank_for_error,
    rank_for_ratio,
    rank_for_variance,
    reconstruction_error,
    spectrum,
    stable_rank,
    truncate,
    variance_captured,
)
from lowrank_core.testing import low_rank_updates, stacks_of_updates

QUESTIONS = {
    "variance_captured": variance_captured,
    "variance_captured at ranks": lambda s: variance_captured(s, [[0], [1]]),
    "reconstruction_error": lambda s: reconstruction_error(s, None, 0.7),
    "rank_for_variance": lambda s: rank_for_variance(s, 0.9),
    "rank_for_error": lambda s: rank_for_error(s, 0.3),
    "rank_for_ratio": lambda s: rank_for_ratio(s, 0.4),
    "rank_above_noise": lambda s: rank_above_noise(s, 0.2),
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "numerical_rank": numerical_rank,
    "error_sweep.errors": lambda s: error_sweep(s, None, alpha=[4.0, 16.0]).errors,
    "error_sweep.optimal": lambda s: error_sweep(s, None).optimal,
}
workers = st.sampled_from([None, 1, 2, 5])
methods = st.sampled_from(["auto", "lapack", "direct", "gram", "krylov"])


def assert_identical(batched, single):
    """Equal to the bit, and of one dtype."""
    batched, single = np.asarray(batched), np.asarray(single)
    assert batched.dtype == single.dtype
    assert batched.shape == single.shape
    assert batched.tobytes() == single.tobytes()


@given(stacks_of_updates(), methods, workers)
def test_a_spectrum_in_a_batch_is_that_of_its_matrix(stack, method, count):
    rank = 1 if method == "krylov" else None
    whole = spectrum(stack, rank=rank, method=method, workers=count)
    for index in np.ndindex(stack.shape[:-2]):
        single = spectrum(stack[index], rank=rank, method=method)
        assert_identical(whole.values[index], single.values)
        assert_identical(whole.norm[index], single.norm)
        assert whole.dtype == single.dtype


@given(st.integers(0, 2**32 - 1), st.sampled_from(["float64", "float32"]), methods, workers)
def test_a_spectrum_in_a_batch_on_several_threads_is_that_of_its_matrix(seed, dtype, method, count):
    stack = np.random.default_rng(seed).standard_normal((24, 40, 60)).astype(dtype)
    rank = 3 if method == "krylov" else None
    whole = spectrum(stack, rank=rank, method=method, workers=count)
    for i in (0, 11, 23):
        assert_identical(whole.values[i], spectrum(stack[i], rank=rank, method=method).values)


@given(st.integers(0, 2**32 - 1), workers)
def test_a_generator_is_one_seed_for_the_whole_stack(seed, count):
    # More matrices than workers.
    stack = np.random.default_rng(1).standard_normal((6, 60, 40))
    whole = spectrum(stack, rank=3, method="krylov", workers=count, rng=np.random.default_rng(seed))
    for i in (0, 3, 5):
        single = spectrum(stack[i], rank=3, method="krylov", rng=np.random.default_rng(seed))
        assert_identical(whole.values[i], single.values)


@given(low_rank_updates(max_dims=2), st.sampled_from(["auto", "lapack", "direct", "gram"]), workers)
def test_a_spectrum_in_a_batch_of_products_is_that_of_its_product(update, method, count):
    whole = spectrum(update, method=method, workers=count)
    batch = update.shape[:-2]
    B = np.broadcast_to(update.B, (*batch, *update.B.shape[-2:]))
    A = np.broadcast_to(update.A, (*batch, *update.A.shape[-2:]))
    for index in np.ndindex(batch):
        single = spectrum(LowRankUpdate(B[index], A[index], update.scaling), method=method)
        assert_identical(whole.values[index], single.values)
        assert_identical(whole.norm[index], single.norm)


@given(stacks_of_updates(), methods, workers)
def test_a_truncation_in_a_batch_is_that_of_its_matrix(stack, method, count):
    whole = truncate(stack, 1, method=method, workers=count)
    for index in np.ndindex(stack.shape[:-2]):
        single = truncate(stack[index], 1, method=method)
        assert_identical(whole.B[index], single.B)
        assert_identical(whole.A[index], single.A)


@given(low_rank_updates(max_dims=2), workers)
def test_a_truncation_in_a_batch_of_products_is_that_of_its_product(update, count):
    whole = truncate(update, 1, workers=count)
    batch = update.shape[:-2]
    B = np.broadcast_to(update.B, (*batch, *update.B.shape[-2:]))
    A = np.broadcast_to(update.A, (*batch, *update.A.shape[-2:]))
    for index in np.ndindex(batch):
        single = truncate(LowRankUpdate(B[index], A[index], update.scaling), 1)
        assert_identical(whole.B[index], single.B)
        assert_identical(whole.A[index], single.A)


@pytest.mark.parametrize("question", sorted(QUESTIONS))
@given(stack=stacks_of_updates(max_side=10), order=st.sampled_from("CF"))
def test_an_answer_in_a_batch_is_that_of_its_spectrum(question, stack, order):
    ask = QUESTIONS[question]
    s = spectrum(stack)
    laid_out = dataclasses.replace(s, values=np.array(s.values, order=order), norm=np.array(s.norm, order=order))
    whole = ask(laid_out)
    for index in np.ndindex(stack.shape[:-2]):
        assert_identical(whole[index], ask(Spectrum(s.values[index], s.norm[index], s.shape, True, s.dtype)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@given(
    stack=stacks_of_updates(max_side=5, kinds=["ordinary", "zero", "repeated", "deficient"]),
    repeats=st.integers(1, 3),
    rate=st.sampled_from([1e-3, 1e-1, 10.0]),
)
def test_a_learning_sweep_in_a_batch_is_that_of_its_matrix(optimizer, stack, repeats, rate):
    def learn(update):
        return learning_sweep(update, [0, 1], steps=6, repeats=repeats, optimizer=optimizer, learning_rate=rate)

    with warnings.catch_warnings():
        # The largest rate makes some runs diverge, which must be the same in a batch.
        warnings.simplefilter("ignore", RuntimeWarning)
        whole = learn(stack)
        for index in np.ndindex(stack.shape[:-2]):
            single = learn(stack[index])
            for field in ("errors", "spread", "curves", "gradient_norms", "optimal"):
                assert_identical(getattr(whole, field)[index], getattr(single, field))


@given(stacks_of_updates(), st.randoms(use_true_random=False))
def test_the_order_of_a_batch_does_not_matter(stack, shuffler):
    flat = stack.reshape(-1, *stack.shape[-2:])
    order = list(range(len(flat)))
    shuffler.shuffle(order)
    assert_identical(spectrum(flat[order]).values, spectrum(flat).values[order])


@given(stacks_of_updates(), stacks_of_updates())
def test_inputs_are_never_modified(stack, other):
    for matrices in (stack, other):
        before = matrices.tobytes()
        spectrum(matrices)
        spectrum(matrices, method="gram")
        truncate(matrices, 1)
        learning_sweep(matrices, [1], steps=1, optimizer="adam")
        assert matrices.tobytes() == before
