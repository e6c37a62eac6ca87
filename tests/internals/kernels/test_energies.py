"""Energies of heads and tails against exact fractions, and errors against their formula."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lowrank_core._linalg.kernels import energies
from tests import oracles
from tests.compiled import both

EPS = 2.0**-52
# On either side of a block of partial sums, and of several blocks at once.
SIZES = [1, 2, 3, 63, 64, 65, 127, 128, 129, 255, 256, 257, 320, 511, 512, 513, 700]


def falling(count, kind):
    values = {
        "flat": np.ones(count),
        "linear": np.linspace(3.0, 0.5, count),
        "graded": np.exp2(np.linspace(0.0, -480.0, count)),
        "steep": np.exp2(-np.minimum(1000.0, 4.0 * np.arange(count))),
        "deficient": np.where(np.arange(count) < (count + 1) // 2, np.linspace(1.0, 0.1, count), 0.0),
    }[kind]
    return np.sort(values)[::-1].copy()


def suffix_sums(values):
    """Exact H_r and T_r for each r."""
    squares = [Fraction(float(value)) ** 2 for value in values]
    heads = [Fraction(0)]
    for square in squares:
        heads.append(heads[-1] + square)
    return heads, [heads[-1] - head for head in heads]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["flat", "linear", "graded", "steep", "deficient"])
@pytest.mark.parametrize("power", [0, 901, -400])
def test_energies_are_the_exact_fractions(size, kind, power):
    values = falling(size, kind)
    exact_heads, exact_tails = suffix_sums(values)
    whole = exact_heads[-1]
    stack = np.ldexp(values[np.newaxis], power)
    norms = np.ldexp([oracles.root(whole)], power)
    if power == -400:
        # Where multiplying has rounded them the exact values are other ones.
        exact_heads, exact_tails = suffix_sums(np.ldexp(stack[0], 400))
        whole = exact_heads[-1]
    heads, tails = np.full((1, size + 1), np.nan), np.full((1, size + 1), np.nan)
    energies.energies(stack, norms, True, np.arange(size + 1), heads, tails)
    exact = np.array([float(head / whole) for head in exact_heads])
    assert np.all(np.abs(heads[0] - exact) <= 2 * size * EPS * exact)
    exact = np.array([float(tail / whole) for tail in exact_tails])
    # Squares under 1e-307 lose digits, and under 1e-323 themselves.
    assert np.all(np.abs(tails[0] - exact) <= 2 * size * EPS * exact + 1e-306)
    assert heads[0, 0] == tails[0, -1] == 0
    assert heads[0, -1] == tails[0, 0] == 1
    assert np.all(np.diff(heads) >= 0)
    assert np.all(np.diff(tails) <= 0)


@pytest.mark.parametrize("size", SIZES)
def test_incomplete_energies_are_over_the_whole_norm(size):
    values = falling(size, "linear")
    norms = np.array([1.5 * np.linalg.norm(values)])
    heads, tails = np.empty((1, size + 1)), np.empty((1, size + 1))
    energies.energies(values[np.newaxis], norms, False, np.arange(size + 1), heads, tails)
    exact = np.concatenate([[0.0], np.cumsum(values**2)]) / norms[0] ** 2
    assert np.all(np.abs(heads[0] - exact) <= 4 * size * EPS)
    assert np.array_equal(tails, 1 - heads)


@both(energies.energies)
def test_energies_at_any_ranks_in_any_order(kernel):
    stack = np.stack([falling(70, "linear"), np.zeros(70), falling(70, "graded")])
    norms = np.array([np.linalg.norm(row) for row in stack])
    ranks = np.array([70, 0, 64, 3, 3, 200, 65])
    heads, tails = np.empty((3, ranks.size)), np.empty((3, ranks.size))
    kernel(stack, norms, True, ranks, heads, tails)
    for b in (0, 2):
        for j, rank in enumerate(ranks):
            assert heads[b, j] == pytest.approx(oracles.variance_captured(stack[b], rank), rel=1e-14)
            assert math.sqrt(tails[b, j]) == pytest.approx(oracles.error(stack[b], rank), rel=1e-14)
    assert not heads[1].any()
    assert not tails[1].any()


@both(energies.energies)
def test_energies_of_no_values(kernel):
    heads, tails = np.full((2, 1), np.nan), np.full((2, 1), np.nan)
    kernel(np.empty((2, 0)), np.array([0.0, 1.0]), False, np.array([0]), heads, tails)
    assert not heads.any()
    assert tails.tolist() == [[0.0], [1.0]]


@both(energies.error_sweep)
@pytest.mark.parametrize("largest", [16.0, 1e200])
def test_errors_by_the_formula(kernel, largest):
    stack = np.stack([falling(9, "linear"), np.zeros(9), falling(9, "deficient")])
    norms = np.array([np.linalg.norm(row) for row in stack])
    ranks = np.array([0, 1, 4, 9])
    scalings = np.array([[0.0, 1.0, 0.5, 1.0], [0.0, -2.0, largest, 1.0 + EPS]])
    errors, optimal = np.empty((3, 2, 4)), np.empty((3, 4))
    kernel(stack, norms, True, ranks, scalings, errors, optimal)
    for b in (0, 2):
        for j, rank in enumerate(ranks):
            assert optimal[b, j] == pytest.approx(oracles.error(stack[b], rank), rel=1e-14)
            for k in range(2):
                assert errors[b, k, j] == pytest.approx(oracles.error(stack[b], rank, scalings[k, j]), rel=1e-14)
    assert not errors[1].any()
    assert not optimal[1].any()
