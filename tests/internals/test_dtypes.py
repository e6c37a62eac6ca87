"""The table of dtypes against NumPy's and ml_dtypes' own figures."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core._dtypes import FLOATS, INTEGERS, as_dtype, coarsest


@pytest.mark.parametrize("name", FLOATS)
def test_each_floating_dtype_has_the_figures_of_finfo(name):
    dtype, finfo = FLOATS[name], ml_dtypes.finfo(as_dtype(name))
    assert as_dtype(name).name == dtype.name == name
    assert dtype.significand_bits == finfo.nmant + 1
    assert dtype.eps == float(finfo.eps)
    assert np.ldexp(1.0, dtype.min_exponent) == float(finfo.tiny)
    assert np.ldexp(1.0, dtype.subnormal_exponent) == float(finfo.smallest_subnormal)
    assert np.frexp(float(finfo.max))[1] == dtype.max_exponent + 1


def test_floating_dtypes_are_listed_finest_first():
    assert [dtype.eps for dtype in FLOATS.values()] == sorted(dtype.eps for dtype in FLOATS.values())
    assert coarsest("float64", "bfloat16", "float32") == "bfloat16"
    assert coarsest("float16", "float32") == "float16"


@pytest.mark.parametrize("name", INTEGERS)
def test_each_integer_dtype_is_numpys(name):
    assert as_dtype(name).name == name
    assert as_dtype(name).kind in "iub"
