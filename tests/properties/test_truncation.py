"""Theorems on the best update of rank r."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowrank_core import rank_for_variance, reconstruction_error, spectrum, truncate, update_with_spectrum
from lowrank_core.testing import (
    assert_eckart_young,
    assert_same_update,
    assert_spectrum,
    low_rank_updates,
    ranks_for,
    updates,
)
from tests import bounds

# LAPACK's own residual is 12.5·max(m, n)·eps·‖Δ‖ here.
STEEP = np.array(
    [
        [0.1943, 0.02577, -0.3164, 0.1581],
        [-0.8228, -0.1356, 1.349, -0.6694],
        [-1.031, -0.3875, 1.755, -0.915],
        [-3.52, -0.8022, 5.832, -2.951],
    ],
    dtype=np.float16,
)
doubles = updates(dtypes=["float64"])
# The spectral norm of what a Gram matrix leaves is known to the root of its own rounding.
EPS = {"lapack": bounds.EPS64, "direct": bounds.EPS64, "gram": bounds.EPS32, "krylov": bounds.EPS32}


def norms(matrix):
    """Frobenius and spectral norm."""
    return np.array([np.linalg.norm(matrix), np.linalg.norm(matrix, 2)])


def unit(update):
    """The update over a power of two, so that its norms neither overflow nor underflow."""
    return np.ldexp(update, -int(np.frexp(np.abs(update).max())[1]))


@pytest.mark.parametrize("method", ["direct", "gram"])
@given(data=st.data(), update=updates())
def test_a_truncation_is_the_best_update_of_its_rank(method, data, update):
    rank = data.draw(ranks_for(update))
    best = truncate(update, rank, method=method)
    assert best.rank == rank
    assert best.shape == update.shape
    assert best.scaling == 1
    assert_eckart_young(update, best, rank, eps=EPS[method])


@given(data=st.data(), update=updates())
def test_truncations_by_auto_and_krylov_are_the_best_of_their_rank(data, update):
    rank = data.draw(ranks_for(update))
    for method in ("auto", "krylov"):
        assert_eckart_young(update, truncate(update, rank, method=method), rank, eps=bounds.EPS32)


@given(st.data(), doubles, st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_no_rival_of_the_same_rank_is_nearer(data, update, seed, smallness):
    update = unit(update)
    rank = data.draw(ranks_for(update))
    best = truncate(update, rank)
    left = norms(update - best.to_dense())
    rng = np.random.default_rng(seed)
    noise_B, noise_A = rng.standard_normal(best.B.shape), rng.standard_normal(best.A.shape)
    near = (best.B + np.ldexp(noise_B, -smallness)) @ (best.A + np.ldexp(noise_A, -smallness))
    # The best for a random row space, and the truncation shrunk.
    basis = np.linalg.qr(noise_A.T)[0]
    for rival in (near, update @ basis @ basis.T, 0.999 * best.to_dense(), noise_B @ noise_A):
        assert np.all(left <= norms(update - rival) + 20 * max(update.shape) * bounds.EPS64)


@given(st.data(), doubles)
def test_factors_are_orthogonal_and_contain_the_values(data, update):
    rank = data.draw(ranks_for(update))
    update = unit(update)
    best, values = truncate(update, rank), spectrum(update).values[:rank]
    slack = 10 * max(update.shape) * bounds.EPS64
    assert np.all(np.abs(best.A @ best.A.T - np.eye(rank)) <= slack)
    # Relative to σ₁², which is up to mn here. Where rows are equal their errors are too, and add up: to 5.5·eps·σ₁².
    assert np.all(np.abs(best.B.T @ best.B - np.diag(values**2)) <= slack * np.square(values[:1]))


@pytest.mark.parametrize("method", ["direct", "gram", "krylov"])
@given(data=st.data(), update=updates(dtypes=["float64", "float32"]))
def test_every_method_puts_the_values_into_one_factor_and_directions_into_the_other(method, data, update):
    rank = data.draw(ranks_for(update))
    best, values = truncate(unit(update), rank, method=method), spectrum(unit(update), method=method, rank=rank).values
    slack = (bounds.EPS32 if method != "direct" else 10 * max(update.shape) * bounds.EPS64) * (1 + values[:1].sum())
    assert np.all(np.abs(np.linalg.norm(best.B, axis=0) - values) <= slack)
    # Where a value is lost to rounding, so is its direction; others are as long as LAPACK's own vectors.
    lengths, orthonormal = np.linalg.norm(best.A, axis=1), 30 * max(update.shape) * bounds.EPS64
    assert np.all((np.abs(lengths - 1) <= orthonormal) | ((lengths == 0) & (values <= slack)))


@given(st.data(), updates(dtypes=["float32", "float16", "bfloat16"]))
def test_the_gram_route_loses_orthogonality_as_the_square_of_a_falling_value_and_no_more(data, update):
    update = unit(update)
    best = truncate(update, data.draw(ranks_for(update)), method="gram")
    largest = spectrum(update, method="direct", rank=1).values[:1].sum() if update.size else 0.0
    sizes, lengths = np.linalg.norm(best.B, axis=0), np.linalg.norm(best.A, axis=1)
    # Of unit directions: |aᵢᵀaⱼ| ≤ 10·max(m, n)·eps64·σ₁²/(σᵢσⱼ), and the same for B's columns over their lengths.
    slack = 10 * max(update.shape) * bounds.EPS64 * largest**2
    assert np.all(np.abs(off_diagonal(best.A @ best.A.T)) * np.outer(sizes, sizes) <= slack)
    assert np.all(np.abs(off_diagonal(best.B.T @ best.B)) * np.outer(lengths, lengths) <= slack)


def off_diagonal(matrix):
    return matrix - np.diag(np.diag(matrix))


@pytest.mark.parametrize("shape", [(200, 300), (300, 200)])
def test_rows_of_a_are_orthogonal_by_gram_unless_the_update_is_wide_and_its_values_steep(shape):
    values = np.geomspace(1, 1e-7, 200)
    update = update_with_spectrum(values, shape, rng=0).astype(np.float32)
    best = truncate(update, 150, method="gram")
    lost = np.abs(best.A @ best.A.T - np.eye(150))
    bound = 10 * 300 * bounds.EPS64 / np.outer(values[:150], values[:150])
    assert np.all(lost <= (bound if shape[0] < shape[1] else 10 * 300 * bounds.EPS64))
    # The longer side's directions do lose digits: no smaller bound would hold for both shapes.
    assert (lost.max() > 1e-9) == (shape[0] < shape[1])
    direct = truncate(update, 150, method="direct")
    assert np.all(np.abs(direct.A @ direct.A.T - np.eye(150)) <= 10 * 300 * bounds.EPS64)


@given(updates())
@example(STEEP)
def test_a_truncation_of_full_rank_is_the_update(update):
    assert_same_update(truncate(update, min(update.shape), method="direct"), update)
    assert_same_update(truncate(update, min(update.shape)), update, eps=bounds.EPS32)


@given(st.data(), doubles)
def test_values_of_a_truncation_are_the_leading_ones_and_its_error_is_the_tail(data, update):
    update = unit(update)
    rank = data.draw(ranks_for(update))
    best, s = truncate(update, rank), spectrum(update)
    assert np.all(
        np.abs(spectrum(best).values - s.values[:rank]) <= 3 * bounds.of_values(s.shape, "float64", s.values[0])
    )
    lost = np.linalg.norm(update - best.to_dense())
    assert abs(lost - s.norm * reconstruction_error(s, rank)) <= 20 * max(s.shape) * bounds.EPS64 * s.norm


@given(st.data(), doubles)
def test_truncating_twice_is_truncating_to_the_lower_rank(data, update):
    update = unit(update)
    high, low = sorted([data.draw(ranks_for(update)), data.draw(ranks_for(update))], reverse=True)
    again = truncate(truncate(update, high), low)
    assert_eckart_young(update, again, low, c=20)


@given(st.data(), updates(), st.sampled_from(["auto", "direct", "gram"]))
def test_a_rank_by_a_function_is_that_rank(data, update, method):
    rank = data.draw(ranks_for(update))
    seen = []
    chosen = truncate(update, lambda s: seen.append(s) or rank, method=method)
    given_rank = truncate(update, rank, method=method)
    assert np.array_equal(chosen.B, given_rank.B)
    assert np.array_equal(chosen.A, given_rank.A)
    assert seen[0].complete
    assert seen[0].dtype == spectrum(update).dtype
    assert_spectrum(update, seen[0], eps=bounds.EPS64 if method == "direct" else bounds.EPS32)


@given(updates(), st.floats(0.0, 0.999))
def test_a_rank_for_a_variance_captures_it(update, fraction):
    update = unit(update.astype(np.float64))
    best = truncate(update, lambda s: rank_for_variance(s, fraction))
    norm = np.linalg.norm(update)
    assert np.linalg.norm(best.to_dense()) ** 2 >= (fraction - 1e-13) * norm**2


@given(st.data(), updates(dtypes=["float64"], kinds=["ordinary", "repeated", "deficient"]), st.integers(-300, 300))
def test_powers_of_two_come_out_exactly(data, update, power):
    rank = data.draw(ranks_for(update))
    best, scaled = truncate(update, rank), truncate(np.ldexp(update, power), rank)
    assert np.array_equal(scaled.A, best.A)
    assert np.array_equal(scaled.B, np.ldexp(best.B, power))


@given(st.data(), low_rank_updates())
def test_a_product_is_truncated_to_its_best(data, update):
    rank = data.draw(ranks_for(update))
    best, dense = truncate(update, rank), update.to_dense()
    assume(np.any(dense))
    size = abs(update.scaling) * np.linalg.norm(update.B.astype(float)) * np.linalg.norm(update.A.astype(float))
    assert best.rank == min(rank, update.rank, *update.shape)
    assert_eckart_young(dense, best, rank, c=20 * max(1.0, size / np.linalg.norm(dense)))
