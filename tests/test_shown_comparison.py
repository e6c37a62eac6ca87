"""A comparison as a line and as a table, and the level and the deviation of chance as exact fractions."""

import numpy as np
import pytest

from lowrank_core import LowRankUpdate, compare
from tests.cells import Cells

RNG = np.random.default_rng(0)
PAIR = compare(RNG.standard_normal((5, 4)), RNG.standard_normal((5, 2)) @ RNG.standard_normal((2, 4)))
STACK = compare(RNG.standard_normal((2, 5, 4)), LowRankUpdate(RNG.standard_normal((2, 5, 1)), np.ones((2, 1, 4))))


def texts(*numbers):
    return [f"{number:.4g}" for number in numbers]


def test_a_comparison_is_a_line():
    deviation = 1 / np.sqrt(5 * 4)
    assert repr(PAIR) == f"<Comparison 5 × 4: cosine {PAIR.cosine:.4g}, random 0 ± {deviation:.2g}>"
    first, last = texts(*STACK.cosine)
    assert repr(STACK) == f"<Comparison stack of 2, each 5 × 4: cosine {first} to {last}, random 0 ± {deviation:.2g}>"
    assert PAIR.cosine_deviation == pytest.approx(deviation, rel=1e-15)


def test_an_overlap_is_a_line():
    phi = PAIR.columns.overlap[3, 1]
    assert repr(PAIR.columns) == f"<SpaceOverlap in dimension 5: ranks 4 and 2, φ {phi:.4g}, random 0.8>"
    assert repr(PAIR.rows) == "<SpaceOverlap in dimension 4: ranks 4 and 2, φ 1, random 1>"
    assert repr(STACK.rows) == "<SpaceOverlap in dimension 4: ranks 4 and 1>"
    none = compare(LowRankUpdate(np.ones((5, 0)), np.ones((0, 4))), np.ones((5, 4)))
    assert repr(none.columns) == "<SpaceOverlap in dimension 5: ranks 0 and 1>"


def norms_of(comparison):
    return np.transpose(
        [
            np.ravel(each)
            for each in (
                comparison.first_norm,
                comparison.second_norm,
                comparison.cosine,
                comparison.sum_norm,
                comparison.orthogonal_norm,
            )
        ]
    )


def test_a_comparison_is_a_table_of_its_pairs():
    headings = ["pair", "‖Δ₁‖", "‖Δ₂‖", "cosine", "‖Δ₁ + Δ₂‖", "if orthogonal"]
    for comparison, names in ((PAIR, [""]), (STACK, ["(0,)", "(1,)"])):
        rows = [[name, *texts(*norms)] for name, norms in zip(names, norms_of(comparison), strict=True)]
        assert Cells(comparison._repr_html_()).rows == [headings, *rows]


def test_an_overlap_is_a_table_of_its_dimensions_or_of_the_ranks_of_its_pairs():
    space = compare(RNG.standard_normal((9, 7)), RNG.standard_normal((9, 7))).columns
    rows = [[str(i), *texts(space.overlap[i - 1, i - 1], i / 9, np.degrees(space.angles[i - 1]))] for i in (1, 2, 4, 7)]
    assert Cells(space._repr_html_()).rows == [["i", "φ(i, i)", "random", "i-th angle, degrees"], *rows]
    whole, chance = texts(space.overlap[6, 6], 7 / 9)
    assert repr(space) == f"<SpaceOverlap in dimension 9: ranks 7 and 7, φ {whole}, random {chance}>"
    assert Cells(STACK.columns._repr_html_()).rows == [["pair", "ρ₁", "ρ₂"], ["(0,)", "4", "1"], ["(1,)", "4", "1"]]


@pytest.mark.parametrize("dimension", [1, 2, 3, 7])
def test_one_direction_within_a_random_space_has_the_deviation_of_a_beta_distribution(dimension):
    update = np.diag(np.arange(dimension, 0.0, -1.0))
    deviations = compare(update, update).columns.overlap_deviation
    for j in range(1, dimension + 1):
        a, b = j / 2, (dimension - j) / 2
        beta = np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
        # Of a space and of what is orthogonal to it, what a direction has in both adds up to 1.
        assert deviations[0, j - 1] == pytest.approx(beta, rel=1e-14, abs=1e-300)
        assert deviations[j - 1, 0] == deviations[0, j - 1]
        if dimension > 1:
            assert deviations[dimension - 2, j - 1] * min(dimension - 1, j) == pytest.approx(
                beta, rel=1e-14, abs=1e-300
            )


def test_two_planes_in_four_dimensions_have_the_deviation_of_their_products():
    """Σcos² − 1 of their angles is a product of two independent uniform numbers in [−1, 1]: planes are S² × S²."""
    update = np.diag([4.0, 3.0, 2.0, 1.0])
    assert compare(update, update).columns.overlap_deviation[1, 1] == pytest.approx(np.sqrt(1 / 9) / 2, rel=1e-14)
    assert compare(update, np.zeros((4, 4))).columns.overlap_by_chance.tolist() == [[0.0] * 4] * 4
