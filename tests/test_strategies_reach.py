"""Strategies reach the sizes, bases and scalings that they document, and pass none of their limits."""

import numpy as np
import pytest
from hypothesis import given

from lowrank_core.testing import (
    DTYPES,
    FACTOR_KINDS,
    KINDS,
    LAYOUTS,
    kronecker_updates,
    low_rank_updates,
    spectra,
    stacks_of_updates,
    updates,
)
from tests.drawing import drawn


def test_the_names_of_what_is_drawn():
    assert KINDS == ("ordinary", "zero", "repeated", "clustered", "deficient", "graded", "subnormal", "huge")
    assert LAYOUTS == ("C", "F", "strided", "read-only")
    assert FACTOR_KINDS == ("ordinary", "unbalanced", "deficient", "padded", "cancelled")
    assert set(DTYPES) == {"float64", "float32", "float16", "bfloat16"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (8, 8)])
def test_sides_go_from_1_to_8_unless_asked_otherwise(shape):
    drawn(updates(dtypes=["float64"]), lambda update: update.shape == shape)
    drawn(spectra(), lambda s: s.shape == shape)
    drawn(low_rank_updates(dtypes=["float64"]), lambda update: update.shape == shape)


@given(updates(), spectra(), low_rank_updates(), stacks_of_updates(), kronecker_updates())
def test_nothing_is_larger_unless_asked_for(update, s, factored, stack, product):
    assert max(*update.shape, *s.shape, *factored.shape) <= 8
    assert factored.rank <= 4
    assert len(factored.shape) == 2
    assert max(stack.shape[-2:]) <= 6
    assert max(stack.shape[:-2]) <= 3
    assert max(product.shape) <= 9


@pytest.mark.parametrize("batch", [(1,), (3,), (1, 3), (3, 3)])
def test_stacks_have_one_batch_axis_or_two(batch):
    drawn(stacks_of_updates(dtypes=["float64"]), lambda stack: stack.shape[:-2] == batch)


@pytest.mark.parametrize(
    "is_basis",
    [
        lambda column: np.count_nonzero(column) == 1,
        lambda column: np.ptp(column) == 0,
        lambda column: len(set(np.abs(column))) == 3,
    ],
    ids=["coordinates", "Helmert", "random"],
)
def test_every_basis_is_drawn(is_basis):
    columns = updates(max_side=3, kinds=["ordinary"], dtypes=["float64"])
    drawn(columns, lambda update: update.shape == (3, 1) and is_basis(update[:, 0]))


def test_values_of_repeated_and_clustered_spectra():
    @given(spectra(kinds=["repeated"]))
    def repeated(s):
        assert set(s.values) <= {s.values[0], s.values[-1]}

    @given(spectra(kinds=["clustered"]))
    def clustered(s):
        assert s.values[0] - s.values[-1] <= 2.0**-20 * 8 * s.values[0]
        assert np.all(np.diff(s.values) < 0)

    repeated()
    clustered()
    drawn(spectra(kinds=["repeated"]), lambda s: len(s.values) > 3 and s.values[0] == s.values[-2] > s.values[-1])
    drawn(spectra(kinds=["repeated"]), lambda s: len(s.values) > 3 and s.values[0] > s.values[1] == s.values[-1])


@pytest.mark.parametrize("power", [20, 50])
def test_clusters_are_as_narrow_as_rounding_and_as_wide_as_a_millionth(power):
    nearest = spectra(kinds=["clustered"])
    drawn(nearest, lambda s: len(s.values) > 1 and s.values[1] == s.values[0] * (1 - 2.0**-power))


def test_what_is_beyond_an_incomplete_spectrum_is_anything_up_to_its_norm():
    @given(spectra(complete=False, kinds=["ordinary"]))
    def holds(s):
        assert s.norm <= np.sqrt(2.0 + 1e-12) * np.linalg.norm(s.values)

    holds()
    drawn(spectra(complete=False), lambda s: s.norm < 1.001 * np.linalg.norm(s.values))


@pytest.mark.parametrize("scaling", [1.0, 0.25, -2.0, 1e-3, 16.0])
def test_every_scaling_is_drawn(scaling):
    drawn(low_rank_updates(), lambda update: update.scaling == scaling)
    if scaling in {1.0, -2.0, 1e-3}:
        drawn(kronecker_updates(), lambda update: update.scaling == scaling)


@pytest.mark.parametrize("names", [("float32", "float16"), ("float16", "float32")])
def test_each_factor_has_a_dtype_of_its_own(names):
    mixed = low_rank_updates(dtypes=["float32", "float16"])
    drawn(mixed, lambda update: (update.B.dtype.name, update.A.dtype.name) == names)
