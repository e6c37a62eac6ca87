import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.files.tensors import open_file
from lowrank_core.models.formats.adapter import AdapterLayer, GroupedProduct, OtherTensor, Placement, product


def make_layer(write_file, A, B, **changes):
    tensors, _ = open_file(write_file({"A": A, "B": B}))
    placement = Placement("some", "x", "x", ("A", "B"), (B.shape[0], *A.shape[1:]))
    layer = AdapterLayer(placement, A.shape[0], 1.0, "standard", 0.5, "", (tensors["B"], tensors["A"]))
    return replace(layer, **changes)


def test_factors_keep_their_dtype_and_the_scale(write_file, rng):
    A, B = rng.standard_normal((2, 5)).astype(ml_dtypes.bfloat16), rng.standard_normal((3, 2)).astype(np.float16)
    layer = make_layer(write_file, A, B)
    update = layer.update()
    assert (update.A.dtype, update.B.dtype, update.scaling) == (A.dtype, B.dtype, 0.5)
    assert np.array_equal(update.to_dense(), 0.5 * (B.astype(float) @ A.astype(float)))
    assert (layer.dtype, layer.parameters) == ("float16 · bfloat16", 16)


def test_a_layer_whose_weight_is_stored_as_in_by_out_has_the_transposed_update(write_file, rng):
    A, B = rng.standard_normal((2, 5)), rng.standard_normal((3, 2))
    layer = make_layer(write_file, A, B, transposed=True)
    assert layer.update().shape == layer.shape == (5, 3)
    assert np.allclose(layer.update().to_dense(), 0.5 * (B @ A).T, rtol=1e-14, atol=0)
    assert np.allclose(layer.untransposed_update().to_dense(), 0.5 * B @ A, rtol=1e-14, atol=0)


def test_groups_make_a_block_diagonal_factor(write_file, rng):
    A, B = rng.standard_normal((4, 3, 2, 2)), rng.standard_normal((6, 2, 1, 1))
    dense = make_layer(write_file, A, B, build=GroupedProduct(2)).update().to_dense()
    rows = A.reshape(4, 12)
    expected = 0.5 * np.vstack([B[:3, :, 0, 0] @ rows[:2], B[3:, :, 0, 0] @ rows[2:]])
    assert np.allclose(dense, expected, rtol=1e-14, atol=1e-15)


def test_a_factor_that_is_not_finite_is_named(write_file):
    layer = make_layer(write_file, np.ones((1, 2)), np.array([[1.0], [np.inf], [np.nan]]))
    with pytest.raises(ValueError, match=r"^'B' contains NaN or infinity in 2 of its 3 entries"):
        layer.update()


def test_layers_are_values_that_survive_pickling(write_file):
    for build in (product, GroupedProduct(1)):
        layer = make_layer(write_file, np.ones((1, 2)), np.ones((3, 1)), build=build)
        assert pickle.loads(pickle.dumps(layer)) == layer


def test_other_tensors_are_described_with_their_norm_and_scale(write_file):
    tensors, _ = open_file(write_file({"b": np.array([3.0, 4.0]), "n": np.arange(3)}))
    assert OtherTensor(tensors["b"], "b", "a bias", -2.0).describe() == "a bias: 2, float64, norm 10"
    assert OtherTensor(tensors["b"], "b", "a bias").describe() == "a bias: 2, float64, norm 5"
    assert OtherTensor(tensors["n"], "n", "counters").describe() == "counters: 3, int64"
